#!/usr/bin/env bash
# k8s-agent-image.sh NOXRC: makes the agent image localhost/noxrunner/agent:1 of a static noxrc, and loads it into
# all nodes that run.
. "$(dirname "$(readlink -f "$0")")/env.sh"

layer=$(mktemp --suffix .tar)
trap 'rm -f "$layer"' EXIT
tar --owner=0 --group=0 --numeric-owner --mode=755 --transform 's,.*,noxrc,' -C / -cf "$layer" "${1#/}"
mkdir -p "$engines/img"
"$scripts/make-image.sh" "$engines/img/agent.tar" localhost/noxrunner/agent:1 1000 "$layer"
for socket in "$engines"/k8s/node*/containerd.sock; do
  [ -S "$socket" ] || continue
  ctr --address "$socket" --namespace k8s.io images import "$engines/img/agent.tar" >/dev/null
done
