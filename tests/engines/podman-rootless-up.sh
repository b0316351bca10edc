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
load_images "$dir/podman.sock" docker.io/library/python
echo "export NOXRUNNER_TEST_PODMAN=unix://$dir/podman.sock"
