#!/usr/bin/env bash
# podman-stop.sh [NAME]: kills the API service of podman-up.sh, but keeps its containers and images. `podman-up.sh NAME`
# starts it again.
. "$(dirname "$(readlink -f "$0")")/env.sh"

pid=$(cat "$engines/engine-${1:-podman}/pid")
kill -KILL "$pid"
while [ -d "/proc/$pid" ]; do sleep 0.1; done
