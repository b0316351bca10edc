#!/usr/bin/env bash
# podman-root.sh NAME COMMAND...: runs a command of the engine NAME in a private mount namespace where the unpacked
# packages lie over /usr and /etc, because Podman looks for its helpers and settings there. The engine's runtime
# directory is at /etc/runtime there, because Podman refuses a path longer than 50 characters. Needs root.
. "$(dirname "$(readlink -f "$0")")/env.sh"

dir=$engines/engine-$1
shift
mkdir -p "$engines"/etc/{upper/runtime,work} "$dir/runtime"
export root engines dir
exec unshare --mount bash -ec '
  mount -t overlay overlay -o "lowerdir=$root/usr:/usr" /usr
  mount -t overlay overlay -o "lowerdir=$root/etc:/etc,upperdir=$engines/etc/upper,workdir=$engines/etc/work" /etc
  mount --bind "$dir/runtime" /etc/runtime
  exec "$@"' podman-root "$@"
