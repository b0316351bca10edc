#!/usr/bin/env bash
# podman-rootless-down.sh [NAME]: stops an engine of podman-rootless-up.sh, and removes it with its containers and
# images.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-rootless}
dir=$engines/engine-$name
end_process "$dir/pid"
# The service runs in a child, because its user namespace is a new one.
pkill -f "^podman system service .*unix://$dir/podman.sock" || true
"$scripts/podman-rootless.sh" "$name" podman rm --force --all --time 0 >/dev/null 2>&1 || true
# Ends the process that keeps the user namespace.
"$scripts/podman-rootless.sh" "$name" podman system migrate >/dev/null 2>&1 || true
remove_tree "$dir"
