#!/usr/bin/env bash
# build_cost.sh: measures what depending on this crate costs, beside clients of Docker: crates, and seconds of a cold debug
# build. Prints one line per number: group, name and value, separated by tabs.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")/../..
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# measure NAME DEPENDENCY
measure() {
  local name=$1 dependency=$2 start end
  cd "$dir"
  rm -rf "$dir/dependent" "$dir/target"
  cargo init --quiet --vcs none --name dependent "$dir/dependent"
  echo "$dependency" >>"$dir/dependent/Cargo.toml"
  cd "$dir/dependent"
  cargo fetch --quiet
  start=$(date +%s.%N)
  CARGO_TARGET_DIR=$dir/target cargo build --quiet --offline
  end=$(date +%s.%N)
  printf 'crates in the dependency tree\t%s\t%s\n' "$name" \
    "$(cargo tree --offline --edges normal --prefix none | sed 's/ (\*)$//' | grep -v '^dependent ' | sort -u | wc -l)"
  printf 'cold debug build of a dependent, s\t%s\t%s\n' "$name" "$(echo "$end - $start" | bc)"
}

measure 'noxrunner, without TLS' "noxrunner = { path = \"$here\", default-features = false, features = [\"local\"] }"
measure 'noxrunner' "noxrunner = { path = \"$here\" }"
measure 'noxrunner, docker' "noxrunner = { path = \"$here\", features = [\"docker\"] }"
measure 'noxrunner, docker and kubernetes' "noxrunner = { path = \"$here\", features = [\"docker\", \"kubernetes\"] }"
measure 'bollard 0.21' 'bollard = "0.21"'
measure 'testcontainers 0.28' 'testcontainers = "0.28"'
measure 'kube 5, client' 'kube = { version = "5", features = ["client", "ws"] }
k8s-openapi = { version = "0.29", features = ["latest"] }'
