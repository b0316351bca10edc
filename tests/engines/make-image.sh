#!/usr/bin/env bash
# make-image.sh FILE NAME USER LAYER.tar [COMMAND]: makes an image of one layer, without a registry or an engine.
# The command is a JSON array, and defaults to a shell.
. "$(dirname "$(readlink -f "$0")")/env.sh"

file=$(readlink -f "$1") name=$2 user=$3 layer=$(readlink -f "$4") command=${5:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$layer" "$work/layer.tar"
cd "$work"
cat >config.json <<JSON
{"architecture": "$(dpkg --print-architecture)", "os": "linux",
 "config": {"Cmd": ${command:-[\"/bin/sh\"]}, "Env": ["PATH=/bin:/usr/bin"], "User": "$user"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum layer.tar | cut -d ' ' -f 1)"]},
 "history": [{"created_by": "make-image.sh"}]}
JSON
config=$(sha256sum config.json | cut -d ' ' -f 1)
mv config.json "$config.json"
printf '[{"Config": "%s.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]' "$config" "$name" >manifest.json
tar -cf "$file" manifest.json "$config.json" layer.tar
