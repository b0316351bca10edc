#!/usr/bin/env bash
# images.sh: makes two images of Debian's static busybox, without a registry or an engine:
# $NOXRUNNER_ENGINES/img/busybox.tar (localhost/noxrunner/busybox:1, runs as root) and
# $NOXRUNNER_ENGINES/img/busybox-user.tar (localhost/noxrunner/busybox-user:1, runs as user 1000).
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
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)

# make_image FILE NAME USER
make_image() {
  local config
  cat >"$work/config.json" <<JSON
{"architecture": "$(dpkg --print-architecture)", "os": "linux",
 "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin"], "User": "$3"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}, "history": [{"created_by": "images.sh"}]}
JSON
  config=$(sha256sum "$work/config.json" | cut -d ' ' -f 1)
  cp "$work/config.json" "$work/$config.json"
  printf '[{"Config": "%s.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]' "$config" "$2" >"$work/manifest.json"
  tar -C "$work" -cf "$1" manifest.json "$config.json" layer.tar
}

make_image "$engines/img/busybox.tar" localhost/noxrunner/busybox:1 ""
make_image "$engines/img/busybox-user.tar" localhost/noxrunner/busybox-user:1 1000
