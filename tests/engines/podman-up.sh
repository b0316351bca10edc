#!/usr/bin/env bash
# podman-up.sh [NAME]: starts the API service of Podman in a network namespace of its own, and prints the variables
# for the tests. NAME tells several engines apart and defaults to "podman". Needs root. `podman-down.sh NAME` stops it.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-podman}
dir=$engines/engine-$name
"$scripts/fetch.sh" podman
mkdir -p "$dir"
cd "$dir"
ip netns list | grep -qw "nx-$name" || ip netns add "nx-$name"
ip -n "nx-$name" link set lo up
export CONTAINERS_CONF=$scripts/podman-containers.conf
setsid nohup "$scripts/podman-root.sh" "$name" nsenter --net="/run/netns/nx-$name" podman \
  --root "$dir/root" --runroot /etc/runtime/run --tmpdir /etc/runtime/tmp \
  system service --time 0 "unix://$dir/podman.sock" </dev/null >"$dir/log" 2>&1 &
echo $! >"$dir/pid"
wait_for_socket "$dir/podman.sock" "$dir/log"
load_images "$dir/podman.sock" docker.io/library/python
echo "export NOXRUNNER_TEST_PODMAN=unix://$dir/podman.sock"
