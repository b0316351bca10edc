#!/usr/bin/env bash
# k8s-api-server.sh start|stop: starts or stops the API server of the cluster, and waits until it has done so.
. "$(dirname "$(readlink -f "$0")")/env.sh"
. "$scripts/k8s-env.sh"

is_ready() {
  kubectl get --raw /readyz
}

case ${1:-} in
start)
  start api-server "$engines/k8s-bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --secure-port 443 \
    --bind-address 0.0.0.0 --advertise-address "$address" --service-cluster-ip-range 10.96.0.0/24 \
    --tls-cert-file "$pki/server.crt" --tls-private-key-file "$pki/server.key" --client-ca-file "$pki/ca.crt" \
    --token-auth-file "$pki/tokens.csv" --service-account-key-file "$pki/accounts.pub" \
    --service-account-signing-key-file "$pki/accounts.key" \
    --service-account-issuer https://kubernetes.default.svc --authorization-mode Node,RBAC \
    --enable-admission-plugins NodeRestriction --cert-dir "$k8s/api-server" --allow-privileged=true \
    --kubelet-preferred-address-types InternalIP --kubelet-client-certificate "$pki/server.crt" \
    --kubelet-client-key "$pki/server.key" --profiling=false
  wait_until "the API server" is_ready
  ;;
stop)
  # It lingers after SIGTERM.
  kill_process "$k8s/api-server.pid"
  ;;
*) echo "usage: k8s-api-server.sh start|stop" >&2 && exit 2 ;;
esac
