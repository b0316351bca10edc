#!/usr/bin/env bash
# fetch.sh [docker] [podman] [registry]: downloads Debian's packages of the engines with apt, unpacks them below
# $NOXRUNNER_ENGINES/root, and makes the images. Does nothing if all of it is there. No root rights are needed.
# The packages are those of the machine's own Debian release.
. "$(dirname "$(readlink -f "$0")")/env.sh"

packages=(busybox-static)
for what in "$@"; do
  case $what in
  docker) packages+=(docker.io containerd runc tini iptables libip6tc2 libnfnetlink0 libnetfilter-conntrack3 libnftnl11) ;;
  podman) packages+=(podman conmon runc golang-github-containers-common golang-github-containers-image libsubid4
    uidmap slirp4netns libslirp0 libgpgme11 catatonit netavark aardvark-dns fuse-overlayfs) ;;
  registry) packages+=(docker-registry) ;;
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
[ -e "$engines/img/busybox-user.tar" ] || "$scripts/images.sh"
