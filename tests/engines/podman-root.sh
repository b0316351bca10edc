#!/usr/bin/env bash
# podman-root.sh COMMAND...: runs a command in a private mount namespace where the unpacked packages lie over /usr
# and /etc, because Podman looks for its helpers and settings there. Needs root.
. "$(dirname "$(readlink -f "$0")")/env.sh"

mkdir -p "$engines"/etc/{upper,work}
export root engines
exec unshare --mount bash -ec '
  mount -t overlay overlay -o "lowerdir=$root/usr:/usr" /usr
  mount -t overlay overlay -o "lowerdir=$root/etc:/etc,upperdir=$engines/etc/upper,workdir=$engines/etc/work" /etc
  exec "$@"' podman-root "$@"
