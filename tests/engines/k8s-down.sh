#!/usr/bin/env bash
# k8s-down.sh: stops the cluster, and removes it with its pods. What was built and downloaded stays.
. "$(dirname "$(readlink -f "$0")")/env.sh"
. "$scripts/k8s-env.sh"

for node in "$k8s"/node*/; do
  [ -d "$node" ] && "$scripts/k8s-node.sh" "$(basename "$node" | tr -d a-z)" stop
done
for name in scheduler controllers; do end_process "$k8s/$name.pid"; done
"$scripts/k8s-api-server.sh" stop || true
end_process "$k8s/etcd.pid"
remove_tree "$k8s"
ip netns del "$network" 2>/dev/null || true
