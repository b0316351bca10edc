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
setsid nohup "$scripts/podman-root.sh" nsenter --net="/run/netns/nx-$name" podman \
  --root "$dir/root" --runroot "$dir/run" --tmpdir "$dir/tmp" \
  system service --time 0 "unix://$dir/podman.sock" </dev/null >"$dir/log" 2>&1 &
echo $! >"$dir/pid"
wait_for_socket "$dir/podman.sock" "$dir/log"
for image in "$engines"/img/busybox*.tar; do
  curl --silent --fail --unix-socket "$dir/podman.sock" --header 'Content-Type: application/x-tar' \
    --data-binary "@$image" http://engine/v1.40/images/load >&2
done
# The conformance checker asks for this image.
curl --silent --fail --unix-socket "$dir/podman.sock" --request POST \
  "http://engine/v1.40/images/localhost%2Fnoxrunner%2Fbusybox:1/tag?repo=docker.io/library/python&tag=3.12"
echo "export NOXRUNNER_TEST_PODMAN=unix://$dir/podman.sock"
