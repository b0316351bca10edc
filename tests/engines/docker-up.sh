#!/usr/bin/env bash
# docker-up.sh [NAME]: starts Docker in a network namespace of its own, and prints the variables for the tests.
# NAME tells several engines apart and defaults to "docker". Needs root. `docker-down.sh NAME` stops it.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-docker}
dir=$engines/engine-$name
"$scripts/fetch.sh" docker
mkdir -p "$dir"
cd "$dir"
ip netns list | grep -qw "nx-$name" || ip netns add "nx-$name"
ip -n "nx-$name" link set lo up
# Unlike `ip netns exec`, nsenter keeps the mounted cgroups.
setsid nohup env LD_LIBRARY_PATH="$libraries" XTABLES_LIBDIR="$libraries/xtables" \
  nsenter --net="/run/netns/nx-$name" dockerd \
  --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" --host "unix://$dir/docker.sock" \
  --bip 10.199.0.1/24 --default-address-pool base=10.200.0.0/16,size=24 \
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/nx-$name" \
  --insecure-registry 127.0.0.1:5000 </dev/null >"$dir/log" 2>&1 &
wait_for_socket "$dir/docker.sock" "$dir/log"
load_images "$dir/docker.sock" python
echo "export NOXRUNNER_TEST_DOCKER=unix://$dir/docker.sock"
