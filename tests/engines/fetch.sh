#!/usr/bin/env bash
# fetch.sh [docker] [podman] [registry] [k8s] [k8s-source]: downloads Debian's packages of the engines with apt,
# unpacks them below $NOXRUNNER_ENGINES/root, and makes the images. Does nothing if all of it is there. No root
# rights are needed.
# The packages are those of the machine's own Debian release.
. "$(dirname "$(readlink -f "$0")")/env.sh"

packages=(busybox-static)
source=false
for what in "$@"; do
  case $what in
  docker) packages+=(docker.io containerd runc tini iptables libip6tc2 libnfnetlink0 libnetfilter-conntrack3 libnftnl11) ;;
  podman) packages+=(podman conmon runc golang-github-containers-common golang-github-containers-image libsubid4
    uidmap slirp4netns libslirp0 libgpgme11 catatonit netavark aardvark-dns fuse-overlayfs) ;;
  registry) packages+=(docker-registry) ;;
  k8s) packages+=(containerd runc containernetworking-plugins etcd-server kubernetes-client iptables libip6tc2
    libnfnetlink0 libnetfilter-conntrack3 libnftnl11) ;;
  k8s-source) source=true ;;
  *) echo "unknown engine: $what" >&2 && exit 2 ;;
  esac
done

mkdir -p "$engines"/{debs,img,unpacked} "$root"
cd "$engines/debs"
for package in "${packages[@]}"; do
  [ -e "$engines/unpacked/$package" ] && continue
  apt-get download -qq "$package" 2>/dev/null
  dpkg -x "$package"_*.deb "$root"
  touch "$engines/unpacked/$package"
done
# Debian selects a variant of iptables when the package is installed. The older one needs no kernel modules.
if [ -e "$root/usr/sbin/xtables-legacy-multi" ]; then
  for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf xtables-legacy-multi "$root/usr/sbin/$tool"
  done
fi
[ -e "$engines/img/pause.tar" ] || "$scripts/images.sh"

# kubectl of the package, which would otherwise hide a newer one of the machine.
if [ -e "$root/usr/bin/kubectl" ]; then
  mkdir -p "$engines/k8s-tools"
  mv "$root/usr/bin/kubectl" "$engines/k8s-tools/"
fi

# Downloads Go, and the source package of Kubernetes with all that it needs.
fetch_k8s_source() {
  local apt=$engines/apt-source package mirror
  for package in golang-1.19-go golang-1.19-src; do
    apt-get download -qq "$package" 2>/dev/null
    dpkg -x "$package"_*.deb "$engines/go"
  done
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,state} "$engines/gopath/src/k8s.io"
  : >"$apt/status"
  mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  echo "deb-src ${mirror:-http://deb.debian.org/debian} bookworm main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list"; Dir::Etc::SourceParts "/dev/null"; Dir::State "$apt/state";
Dir::State::Lists "$apt/lists"; Dir::State::Status "$apt/status"; Dir::Cache "$apt/cache";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get update -qq
  cd "$apt"
  apt-get source -qq kubernetes >/dev/null 2>&1
  mv kubernetes-*/ "$engines/gopath/src/k8s.io/kubernetes"
  rm -rf "$apt"
}
if $source && [ ! -d "$engines/gopath/src/k8s.io/kubernetes" ]; then fetch_k8s_source; fi
