#!/usr/bin/env bash
# podman-rootless-up.sh [NAME]: starts the API service of a rootless Podman of user 1000, and prints the variables for
# the tests, which must run as that user. NAME defaults to "rootless". Needs root. `podman-rootless-down.sh NAME` stops
# it.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-rootless}
dir=$engines/engine-$name
"$scripts/fetch.sh" podman
mkdir -p "$dir"
setsid nohup "$scripts/podman-rootless.sh" "$name" podman system service --time 0 "unix://$dir/podman.sock" \
  </dev/null >"$dir/log" 2>&1 &
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
