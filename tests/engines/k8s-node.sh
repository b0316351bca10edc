#!/usr/bin/env bash
# k8s-node.sh N start|stop|cut|join: starts or stops node N (1 to 9) of the cluster, or cuts it from the network
# and joins it again.
. "$(dirname "$(readlink -f "$0")")/env.sh"
. "$scripts/k8s-env.sh"

n=$1
node=$k8s/node$n
namespace=nx-k8s-$n
# Short, because the path of a Unix socket is limited.
socket=$node/containerd.sock

make_network() {
  ip netns add "$namespace"
  ip link add "node$n" netns "$network" type veth peer name eth0 netns "$namespace"
  ip -n "$network" link set "node$n" master nodes up
  ip -n "$network" route add "10.251.$n.0/24" via "10.250.0.$n"
  ip -n "$namespace" link set lo up
  ip -n "$namespace" address add "10.250.0.$n/24" dev eth0
  ip -n "$namespace" link set eth0 up
  # There is no default route: the kubelet would take its address from it.
  ip -n "$namespace" route add 10.251.0.0/16 via "$address"
  ip -n "$namespace" route add 10.96.0.0/24 via "$address"
  nsenter --net="/run/netns/$namespace" sysctl -qw net.ipv4.ip_forward=1
}

write_configuration() {
  mkdir -p "$node"/{cni,kubelet,settings}
  kubeconfig "$node/kubeconfig" "node-token-$n"
  cat >"$node/cni/10-pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods", "isGateway": true,
 "ipMasq": false, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "$node/addresses",
 "ranges": [[{"subnet": "10.251.$n.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
  cat >"$node/containerd.toml" <<TOML
version = 2
root = "$node/containerd/root"
state = "$node/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$node/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/noxrunner/pause:1"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$root/usr/lib/cni"
    conf_dir = "$node/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$root/usr/sbin/runc"
      SystemdCgroup = false
TOML
  cat >"$node/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 10.250.0.$n
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /nx-k8s-$n
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
healthzPort: 10248
makeIPTablesUtilChains: true
maxPods: 60
nodeStatusUpdateFrequency: 5s
syncFrequency: 5s
YAML
}

# The kubelet changes settings of the kernel. It gets files instead, so that the machine's own stay as they are.
mount_settings() {
  local setting file
  for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$node/settings/$(tr / _ <<<"${setting%%=*}")
    echo "${setting##*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%%=*}"
  done
  for dir in /run/netns /var/log/pods /var/log/containers /var/lib/kubelet /var/lib/cni /opt/containerd; do
    mkdir -p "$dir"
    mount -t tmpfs tmpfs "$dir"
  done
}

# Runs a node, in namespaces of its own for mounts and the network.
run() {
  mount_settings
  in_background env LD_LIBRARY_PATH="$libraries" XTABLES_LIBDIR="$libraries/xtables" \
    containerd --config "$node/containerd.toml" >"$k8s/log/containerd$n" 2>&1 &
  echo $! >"$node/containerd.pid"
  wait_until "containerd" ctr --address "$socket" version
  for image in "$engines"/img/{pause,busybox,busybox-user,agent}.tar; do
    [ -e "$image" ] && ctr --address "$socket" --namespace k8s.io images import "$image"
  done
  # The conformance checker asks for this image.
  ctr --address "$socket" --namespace k8s.io images tag localhost/noxrunner/busybox-user:1 \
    docker.io/library/python:3.12
  exec env LD_LIBRARY_PATH="$libraries" XTABLES_LIBDIR="$libraries/xtables" "$engines/k8s-bin/kubelet" \
    --config "$node/kubelet.yaml" --kubeconfig "$node/kubeconfig" --hostname-override "node$n" \
    --node-ip "10.250.0.$n" --container-runtime remote --container-runtime-endpoint "unix://$socket" \
    --root-dir "$node/kubelet" --cert-dir "$node/kubelet/pki" --volume-plugin-dir "$node/plugins" --v 2
}

make_cgroups() {
  local controller
  for controller in /sys/fs/cgroup/*/; do
    mkdir -p "$controller/nx-k8s-$n" 2>/dev/null || true
  done
  # A new cgroup of version 1 has no processors.
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "/sys/fs/cgroup/cpuset/$file" ] || cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/nx-k8s-$n/$file"
  done
}

is_ready() {
  kubectl get node "node$n" | grep -q ' Ready'
}

end_containers() {
  local task
  tasks() { ctr --address "$socket" --namespace k8s.io tasks "$@" 2>/dev/null; }
  for task in $(tasks list --quiet); do tasks kill --signal 9 "$task" || true; done
  sleep 0.5
  for task in $(tasks list --quiet); do tasks delete --force "$task" >/dev/null || true; done
}

case ${2:-} in
start)
  make_network
  write_configuration
  make_cgroups
  in_background nsenter --net="/run/netns/$namespace" unshare --mount \
    "$scripts/k8s-node.sh" "$n" run >"$k8s/log/kubelet$n" 2>&1 &
  echo $! >"$node/kubelet.pid"
  wait_until "node $n" is_ready
  ;;
run) run ;;
cut) ip -n "$network" link set "node$n" down ;;
join) ip -n "$network" link set "node$n" up ;;
stop)
  end_process "$node/kubelet.pid"
  [ -S "$socket" ] && end_containers
  end_process "$node/containerd.pid"
  for process in /proc/[0-9]*; do
    if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q "containerd-shim-runc-v2 .*-address $socket"; then
      kill -KILL "${process#/proc/}" 2>/dev/null || true
    fi
  done
  remove_tree "$node"
  ip netns del "$namespace" 2>/dev/null || true
  remove_cgroups "nx-k8s-$n"
  ;;
*) echo "usage: k8s-node.sh N start|stop|cut|join" >&2 && exit 2 ;;
esac
