# Settings of the Kubernetes cluster, which the scripts k8s-*.sh source after env.sh.
#
# Each node has a network namespace of its own, and so has the control plane. A bridge in the latter connects
# them. Nothing of the machine's own network is changed.
k8s=$engines/k8s
pki=$k8s/pki
network=nx-k8s
address=10.250.0.100
# The API server answers at the address of its service as well, so that pods need no kube-proxy.
service_address=10.96.0.1
# The machine's proxy does not reach this network.
export no_proxy=10.250.0.0/16,10.251.0.0/16,10.96.0.0/24 NO_PROXY=10.250.0.0/16,10.251.0.0/16,10.96.0.0/24

in_control_plane() {
  nsenter --net="/run/netns/$network" "$@"
}

kubectl() {
  in_control_plane "$engines/k8s-tools/kubectl" --kubeconfig "$pki/admin.conf" "$@"
}

# Replaces the shell with a program that has no terminal. Shells start background processes with SIGINT ignored,
# and containers would inherit that.
in_background() {
  exec setsid nice -n 5 env --default-signal=INT,QUIT,HUP "$@" </dev/null
}

# Starts a program of the control plane in the background. Its process id and log are in files of this name.
start() {
  local name=$1
  shift
  in_background nsenter --net="/run/netns/$network" "$@" >"$k8s/log/$name" 2>&1 &
  echo $! >"$k8s/$name.pid"
}

# Runs a command every 0.2 s until it succeeds, for at most 120 s.
wait_until() {
  local what=$1
  shift
  for _ in $(seq 600); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  echo "timed out: $what (see the logs in $k8s/log)" >&2
  return 1
}

# kubeconfig FILE TOKEN: writes a kubeconfig of a user with a token.
kubeconfig() {
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://$address:443", certificate-authority: $pki/ca.crt}}]
users: [{name: user, user: {token: $2}}]
contexts: [{name: test, context: {cluster: test, user: user}}]
current-context: test
YAML
}
