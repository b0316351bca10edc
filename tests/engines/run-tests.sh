#!/usr/bin/env bash
# run-tests.sh [docker] [podman] [kubernetes]: starts engines (by default all), runs the tests that need them, and
# stops them again. Needs root. Kubernetes is built the first time, which takes 5 to 15 minutes; set
# NOXRUNNER_ENGINES to a directory that is kept.
. "$(dirname "$(readlink -f "$0")")/env.sh"

if [ $# -eq 0 ]; then set -- docker podman kubernetes; fi
export NOXRUNNER_ENGINES=$engines NOXRUNNER_REQUIRE_ENGINES=1 NOXRUNNER_LONG_TESTS=1
checkout=$scripts/../..

# The agent must be static to run in every container. The path of the program is all that is printed.
build_agent() {
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --locked --features cli --bin noxrc \
    --target x86_64-unknown-linux-gnu --manifest-path "$checkout/Cargo.toml" --message-format json |
    grep -o '"executable":"[^"]*/noxrc"' | cut -d'"' -f4
}

stop_engines() {
  for engine in "$@"; do
    case $engine in
    docker)
      "$scripts/registry-down.sh" || true
      "$scripts/docker-down.sh" || true
      ;;
    podman) "$scripts/podman-down.sh" || true ;;
    kubernetes) "$scripts/k8s-down.sh" || true ;;
    esac
  done
}

NOXRUNNER_TEST_AGENT=$(build_agent)
export NOXRUNNER_TEST_AGENT
trap 'stop_engines "$@"' EXIT
filters=()
for engine in "$@"; do
  case $engine in
  docker)
    variables=$("$scripts/docker-up.sh" && "$scripts/registry-up.sh")
    filters+=(docker)
    ;;
  podman)
    variables=$("$scripts/podman-up.sh")
    filters+=(podman)
    ;;
  kubernetes)
    "$scripts/k8s-build.sh"
    variables=$(AGENT=$NOXRUNNER_TEST_AGENT "$scripts/k8s-up.sh")
    filters+=(kubernetes pods)
    ;;
  *) echo "unknown engine: $engine" >&2 && exit 2 ;;
  esac
  eval "$variables"
done
cd "$checkout"
cargo test --all-features --locked --test it -- "${filters[@]}"
