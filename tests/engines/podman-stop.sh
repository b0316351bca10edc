#!/usr/bin/env bash
# podman-stop.sh [NAME]: kills the API service of podman-up.sh, but keeps its containers and images. `podman-up.sh NAME`
# starts it again.
. "$(dirname "$(readlink -f "$0")")/env.sh"

kill_process "$engines/engine-${1:-podman}/pid"
