#!/usr/bin/env bash
# k8s-run.sh COMMAND…: runs a command in the network of the cluster, which reaches the API server and all pods.
. "$(dirname "$(readlink -f "$0")")/env.sh"
. "$scripts/k8s-env.sh"

export KUBECONFIG=$pki/admin.conf PATH=$engines/k8s-tools:$PATH
exec nsenter --net="/run/netns/$network" "$@"
