#!/usr/bin/env bash
# run-tests.sh [containers] [rootless] [kubernetes]: starts Docker, Podman and a registry, or a rootless Podman, or a
# Kubernetes cluster with two nodes, or by default all in turn, runs the tests that need them, and stops them again.
# Needs root. Kubernetes is built the first time, which takes 5 to 15 minutes; set NOXRUNNER_ENGINES to a directory that
# is kept.
. "$(dirname "$(readlink -f "$0")")/env.sh"

if [ $# -eq 0 ]; then set -- containers rootless kubernetes; fi
export NOXRUNNER_ENGINES=$engines NOXRUNNER_REQUIRE_ENGINES=1 NOXRUNNER_LONG_TESTS=1
cd "$scripts/../.."

run_containers() {
  local variables
  trap '"$scripts/registry-down.sh" || true; "$scripts/docker-down.sh" || true; "$scripts/podman-down.sh"' EXIT
  variables=$("$scripts/docker-up.sh" && "$scripts/registry-up.sh" && "$scripts/podman-up.sh")
  eval "$variables"
  cargo test --all-features --locked --test it -- docker podman
  # The ports that Docker publishes are those of its network.
  NOXRUNNER_TEST_DOCKER_PORTS=1 nsenter --net=/run/netns/nx-docker \
    cargo test --all-features --locked --test it -- on_docker::containers_behind_ports
  NOXRUNNER_SOAK=60 cargo test --all-features --locked --test soak -- --nocapture docker podman
}

# The tests run as the user of the engine, who need not be able to read the checkout.
run_rootless() {
  local variables program
  trap '"$scripts/podman-rootless-down.sh"' EXIT
  variables=$("$scripts/podman-rootless-up.sh")
  eval "$variables"
  program=$(cargo test --all-features --locked --test it --no-run --message-format json |
    grep -o '"executable":"[^"]*/it-[^"]*"' | cut -d'"' -f4)
  cp "$program" "$engines/engine-rootless/it"
  cp "$NOXRUNNER_TEST_AGENT" "$engines/engine-rootless/noxrc"
  NOXRUNNER_TEST_AGENT=$engines/engine-rootless/noxrc "$scripts/podman-rootless.sh" rootless \
    "$engines/engine-rootless/it" on_podman with_podman
}

run_kubernetes() {
  local variables
  "$scripts/k8s-build.sh"
  trap '"$scripts/k8s-down.sh"' EXIT
  variables=$(AGENT=$NOXRUNNER_TEST_AGENT "$scripts/k8s-up.sh")
  eval "$variables"
  # Pods start slowly if many of them do so at once on two nodes of one machine.
  "$scripts/k8s-run.sh" cargo test --all-features --locked --test it -- --test-threads 3 kubernetes pods
  NOXRUNNER_SOAK=60 "$scripts/k8s-run.sh" cargo test --all-features --locked --test soak -- --nocapture kubernetes
}

NOXRUNNER_TEST_AGENT=$(build_agent)
export NOXRUNNER_TEST_AGENT
# The tests run an example, which `cargo test --test` does not build.
cargo build --quiet --locked --all-features --examples
for what in "$@"; do
  case $what in
  containers) (run_containers) ;;
  rootless) (run_rootless) ;;
  kubernetes) (run_kubernetes) ;;
  *) echo "usage: run-tests.sh [containers] [rootless] [kubernetes]" >&2 && exit 2 ;;
  esac
done
