#!/usr/bin/env bash
# podman-down.sh [NAME]: stops an engine of podman-up.sh, and removes it with its containers and images.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-podman}
dir=$engines/engine-$name
export CONTAINERS_CONF=$scripts/podman-containers.conf
end_process "$dir/pid"
"$scripts/podman-root.sh" "$name" podman --root "$dir/root" --runroot /etc/runtime/run --tmpdir /etc/runtime/tmp \
  rm --force --all --time 0 >/dev/null 2>&1 || true
remove_tree "$dir"
ip netns del "nx-$name" 2>/dev/null || true
remove_cgroups libpod_parent
