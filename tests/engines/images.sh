#!/usr/bin/env bash
# images.sh: makes images of Debian's static busybox, without a registry or an engine:
# $NOXRUNNER_ENGINES/img/busybox.tar (localhost/noxrunner/busybox:1, runs as root),
# $NOXRUNNER_ENGINES/img/busybox-user.tar (localhost/noxrunner/busybox-user:1, runs as user 1000), and
# $NOXRUNNER_ENGINES/img/pause.tar for the pods of Kubernetes.
. "$(dirname "$(readlink -f "$0")")/env.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/layer/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin} "$engines/img"
chmod 1777 "$work/layer/tmp"
cp "$root/bin/busybox" "$work/layer/bin/"
for applet in $("$root/bin/busybox" --list | grep -v '^busybox$'); do
  ln -s busybox "$work/layer/bin/$applet"
done
ln -s ../../bin/env "$work/layer/usr/bin/env"
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n' >"$work/layer/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' >"$work/layer/etc/group"
tar --owner=0 --group=0 --numeric-owner -C "$work/layer" -cf "$work/layer.tar" .

make_image() {
  "$scripts/make-image.sh" "$engines/img/$1.tar" "localhost/noxrunner/$1:1" "$2" "$work/layer.tar" "${3:-}"
}
make_image busybox ""
make_image busybox-user 1000
# The container that keeps the namespaces of a pod.
make_image pause "" '["/bin/sleep", "2147483647"]'
