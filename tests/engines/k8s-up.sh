#!/usr/bin/env bash
# k8s-up.sh [NODES]: starts a Kubernetes cluster with so many nodes, by default two, in network namespaces of its
# own, and prints the variables for the tests. Needs root, and builds Kubernetes if that was not done yet. AGENT is
# the path of a static noxrc, for the agent image. `k8s-down.sh` stops the cluster. Run the tests in its network:
#
#     eval "$(AGENT=… tests/engines/k8s-up.sh)" && tests/engines/k8s-run.sh cargo test --features kubernetes kubernetes
. "$(dirname "$(readlink -f "$0")")/env.sh"
. "$scripts/k8s-env.sh"

[ -e "$k8s" ] && echo "the cluster is up already, or k8s-down.sh was not run: $k8s" >&2 && exit 1
"$scripts/fetch.sh" k8s
"$scripts/k8s-build.sh"
mkdir -p "$pki" "$k8s/log"

make_network() {
  ip netns add "$network"
  ip -n "$network" link set lo up
  ip -n "$network" link add nodes type bridge
  ip -n "$network" address add "$address/24" dev nodes
  ip -n "$network" address add "$service_address/32" dev nodes
  ip -n "$network" link set nodes up
  in_control_plane sysctl -qw net.ipv4.ip_forward=1
}

# Makes a CA, the certificate of the API server, the key of service accounts, and users with tokens.
make_pki() {
  cd "$pki"
  openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=test-ca 2>/dev/null
  openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=kube-apiserver 2>/dev/null
  echo "subjectAltName=IP:127.0.0.1,IP:$address,IP:$service_address,DNS:kubernetes.default.svc" >names
  openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile names \
    -out server.crt 2>/dev/null
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  echo 'admin-token,admin,admin,"system:masters"' >tokens.csv
  echo 'limited-token,limited,limited' >>tokens.csv
  for node in $(seq 9); do
    echo "node-token-$node,system:node:node$node,node$node,\"system:nodes\"" >>tokens.csv
  done
  chmod 600 tokens.csv ./*.key
  kubeconfig admin.conf admin-token
  kubeconfig limited.conf limited-token
}

start_control_plane() {
  local bin=$engines/k8s-bin
  start etcd etcd --data-dir "$k8s/etcd" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
  "$scripts/k8s-api-server.sh" start
  start controllers "$bin/kube-controller-manager" --kubeconfig "$pki/admin.conf" --leader-elect=false \
    --service-account-private-key-file "$pki/accounts.key" --root-ca-file "$pki/ca.crt" \
    --use-service-account-credentials --flex-volume-plugin-dir "$k8s/plugins" --bind-address 127.0.0.1 --port 0 \
    --node-monitor-grace-period 20s
  start scheduler "$bin/kube-scheduler" --kubeconfig "$pki/admin.conf" --leader-elect=false \
    --bind-address 127.0.0.1 --port 0
}

make_network
(make_pki)
start_control_plane
if [ -n "${AGENT:-}" ]; then "$scripts/k8s-agent-image.sh" "$(readlink -f "$AGENT")"; fi
for node in $(seq "${1:-2}"); do
  "$scripts/k8s-node.sh" "$node" start
done
wait_until "the default service account" kubectl get serviceaccount default
cat <<VARIABLES
export NOXRUNNER_TEST_KUBERNETES=$pki/admin.conf
export NOXRUNNER_TEST_KUBERNETES_IMAGE=localhost/noxrunner/busybox-user:1
export NOXRUNNER_TEST_KUBERNETES_AGENT_IMAGE=localhost/noxrunner/agent:1
export NOXRUNNER_TEST_KUBERNETES_SCRIPTS=$scripts
export NOXRUNNER_ENGINES=$engines
export PATH=$engines/k8s-tools:\$PATH
VARIABLES
