#!/usr/bin/env bash
# run-tests.sh [containers] [kubernetes]: starts Docker, Podman and a registry, or a Kubernetes cluster with two nodes,
# or by default both, runs the tests that need them, and stops them again. Needs root. Kubernetes is built the first
# time, which takes 5 to 15 minutes; set NOXRUNNER_ENGINES to a directory that is kept.
. "$(dirname "$(readlink -f "$0")")/env.sh"

if [ $# -eq 0 ]; then set -- containers kubernetes; fi
export NOXRUNNER_ENGINES=$engines NOXRUNNER_REQUIRE_ENGINES=1 NOXRUNNER_LONG_TESTS=1
cd "$scripts/../.."

# Prints the path of a static program, which runs in every container.
build_agent() {
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --locked --features cli --bin noxrc \
    --target x86_64-unknown-linux-gnu --message-format json |
    grep -o '"executable":"[^"]*/noxrc"' | cut -d'"' -f4
}

run_containers() {
  local variables
  trap '"$scripts/registry-down.sh" || true; "$scripts/docker-down.sh" || true; "$scripts/podman-down.sh"' EXIT
  variables=$("$scripts/docker-up.sh" && "$scripts/registry-up.sh" && "$scripts/podman-up.sh")
  eval "$variables"
  cargo test --all-features --locked --test it -- docker podman
  # The ports that Docker publishes are those of its network.
  NOXRUNNER_TEST_DOCKER_PORTS=1 nsenter --net=/run/netns/nx-docker \
    cargo test --all-features --locked --test it -- on_docker::containers_behind_ports
}

run_kubernetes() {
  local variables
  "$scripts/k8s-build.sh"
  trap '"$scripts/k8s-down.sh"' EXIT
  variables=$(AGENT=$NOXRUNNER_TEST_AGENT "$scripts/k8s-up.sh")
  eval "$variables"
  "$scripts/k8s-run.sh" cargo test --all-features --locked --test it -- kubernetes pods
}

NOXRUNNER_TEST_AGENT=$(build_agent)
export NOXRUNNER_TEST_AGENT
for what in "$@"; do
  case $what in
  containers) (run_containers) ;;
  kubernetes) (run_kubernetes) ;;
  *) echo "usage: run-tests.sh [containers] [kubernetes]" >&2 && exit 2 ;;
  esac
done
