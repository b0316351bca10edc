#!/usr/bin/env bash
# side-by-side.sh: starts Docker, Podman and Kubernetes, prints the numbers of tests/bench/side_by_side.rs, and stops them
# again. Needs root, and bubblewrap, kubectl, the command docker and GNU time for their numbers.
. "$(dirname "$(readlink -f "$0")")/env.sh"

cd "$scripts/../.."
NOXRUNNER_TEST_AGENT=$(build_agent)
export NOXRUNNER_TEST_AGENT
trap '"$scripts/docker-down.sh" || true; "$scripts/podman-down.sh" || true; "$scripts/k8s-down.sh"' EXIT
variables=$("$scripts/docker-up.sh" && "$scripts/podman-up.sh" && AGENT=$NOXRUNNER_TEST_AGENT "$scripts/k8s-up.sh")
eval "$variables"
# The unpacked program needs the unpacked libraries, which would slow down the others.
mkdir -p "$engines/client"
cat >"$engines/client/podman" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec $root/usr/bin/podman --remote "\$@"
WRAPPER
chmod +x "$engines/client/podman"
export PATH=$engines/client:$PATH
"$scripts/k8s-run.sh" env PATH="$PATH" cargo bench --quiet --locked --all-features --bench side_by_side
