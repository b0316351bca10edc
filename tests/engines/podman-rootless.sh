#!/usr/bin/env bash
# podman-rootless.sh NAME COMMAND...: runs a command as user 1000 in a private mount namespace where the unpacked
# packages lie over /usr and /etc, with a range of ids for Podman. The runtime directory is at /etc/runtime there,
# because Podman cannot clean up containers if its path is longer than 39 characters. Needs root.
. "$(dirname "$(readlink -f "$0")")/env.sh"

dir=$engines/engine-$1
shift
mkdir -p "$engines"/etc-rootless/{upper/runtime,work} "$dir"/{home,runtime}
chmod 700 "$dir/runtime"
chown 1000:1000 "$dir" "$dir"/{home,runtime}
export root engines dir scripts
exec unshare --mount bash -ec '
  mount -t overlay overlay -o "lowerdir=$root/usr:/usr" /usr
  mount -t overlay overlay \
    -o "lowerdir=$root/etc:/etc,upperdir=$engines/etc-rootless/upper,workdir=$engines/etc-rootless/work" /etc
  mount --bind "$dir/runtime" /etc/runtime
  getent passwd 1000 >/dev/null || echo "rootless:x:1000:1000::$dir/home:/bin/sh" >>/etc/passwd
  echo 1000:200000:65536 | tee /etc/subuid >/etc/subgid
  cd "$dir/home"
  exec setpriv --reuid 1000 --regid 1000 --clear-groups env HOME="$dir/home" XDG_RUNTIME_DIR=/etc/runtime \
    CONTAINERS_CONF="$scripts/podman-containers.conf" PATH=/usr/sbin:/usr/bin:/bin "$@"' podman-rootless "$@"
