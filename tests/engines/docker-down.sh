#!/usr/bin/env bash
# docker-down.sh [NAME]: stops an engine of docker-up.sh, and removes it with its containers and images.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-docker}
dir=$engines/engine-$name
host=unix://$dir/docker.sock
with_libraries docker --host "$host" ps --all --quiet 2>/dev/null |
  xargs --no-run-if-empty env LD_LIBRARY_PATH="$libraries" docker --host "$host" rm --force >/dev/null || true
end_process "$dir/pid"
remove_tree "$dir"
ip netns del "nx-$name" 2>/dev/null || true
remove_cgroups "nx-$name"
