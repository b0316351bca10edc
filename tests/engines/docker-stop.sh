#!/usr/bin/env bash
# docker-stop.sh [NAME]: stops an engine of docker-up.sh, but keeps its images. `docker-up.sh NAME` starts it again.
. "$(dirname "$(readlink -f "$0")")/env.sh"

end_process "$engines/engine-${1:-docker}/pid"
