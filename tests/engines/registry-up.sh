#!/usr/bin/env bash
# registry-up.sh [ENGINE]: starts Debian's docker-registry at 127.0.0.1:5000 in the network namespace of an engine
# ("docker" by default), pushes the busybox image to it as 127.0.0.1:5000/busybox:1, and prints the variables for the
# tests. Pulls need the user "puller" with the password "let-me-in". Needs root. It ends with `registry-down.sh`.
. "$(dirname "$(readlink -f "$0")")/env.sh"

name=${1:-docker}
dir=$engines/registry-$name
"$scripts/fetch.sh" registry
mkdir -p "$dir"
# The registry accepts bcrypt only.
perl -e 'print "puller:", crypt("let-me-in", "\$2y\$05\$abcdefghijklmnopqrstuu"), "\n"' >"$dir/htpasswd"
cat >"$dir/config.yml" <<YML
version: 0.1
storage: {filesystem: {rootdirectory: $dir/data}}
http: {addr: 127.0.0.1:5000}
auth: {htpasswd: {realm: tests, path: $dir/htpasswd}}
YML
setsid nohup nsenter --net="/run/netns/nx-$name" docker-registry serve "$dir/config.yml" \
  </dev/null >"$dir/log" 2>&1 &
echo $! >"$dir/pid"
host=unix://$engines/engine-$name/docker.sock
export DOCKER_CONFIG=$dir
with_libraries docker --host "$host" tag localhost/noxrunner/busybox:1 127.0.0.1:5000/busybox:1
for _ in $(seq 100); do
  with_libraries docker --host "$host" login --username puller --password let-me-in 127.0.0.1:5000 \
    >/dev/null 2>&1 && break
  sleep 0.1
done
with_libraries docker --host "$host" push --quiet 127.0.0.1:5000/busybox:1 >&2
with_libraries docker --host "$host" rmi 127.0.0.1:5000/busybox:1 >&2
echo "export NOXRUNNER_TEST_REGISTRY=127.0.0.1:5000"
