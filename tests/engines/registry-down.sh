#!/usr/bin/env bash
# registry-down.sh [ENGINE]: stops a registry of registry-up.sh, and removes it.
. "$(dirname "$(readlink -f "$0")")/env.sh"

dir=$engines/registry-${1:-docker}
end_process "$dir/pid"
rm -rf "$dir"
