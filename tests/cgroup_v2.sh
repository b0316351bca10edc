#!/usr/bin/env bash
# Proves the limits by cgroup v2 in a virtual machine, for machines that have cgroup v1 or none. Needs root
# or a user with apt, and x86_64. Takes about five minutes, most of it for building `noxrc`.
#
# The guest has Debian's kernel and busybox. Its script is below; it prints a line `ok` or `FAILED` per claim.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

for package in qemu-system-x86 cpio busybox-static; do
  dpkg -s "$package" >/dev/null 2>&1 || apt-get install -y --no-install-recommends "$package" >/dev/null
done
image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
(cd "$dir" && apt-get download "$image" >/dev/null 2>&1 && dpkg-deb -x "$image"_*.deb kernel)

# Static, because the guest has no libraries.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --bin noxrc --features cli \
  --target x86_64-unknown-linux-gnu
root=$dir/root
mkdir -p "$root"/{bin,usr/bin,proc,sys,dev,tmp,etc,var/lib,home,new}
cp "$target/x86_64-unknown-linux-gnu/debug/noxrc" "$root/bin/noxrc"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list | grep -v "^busybox$"); do ln -sf /bin/busybox "$root/bin/$applet"; done
printf 'root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n' >"$root/etc/passwd"

# The kernel does not let a process leave the initial file system, so the guest moves to another one.
cat >"$root/init" <<'INIT'
#!/bin/sh
mount -t tmpfs tmpfs /new
cp -a /bin /usr /etc /var /home /guest /new/
mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run
exec switch_root /new /guest
INIT

cat >"$root/guest" <<'GUEST'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
chmod 1777 /tmp /dev/shm
export HOME=/tmp NOXRUNNER_BASE_URL=http://127.0.0.1:8080

check() {
  name=$1
  shift
  if "$@"; then echo "ok      $name"; else echo "FAILED  $name"; fi
}
serve() {
  "$@" 2>/tmp/serve.log &
  server=$!
  until noxrc health 2>/dev/null; do
    kill -0 $server || { cat /tmp/serve.log; return 1; }
    sleep 0.2
  done
}
# The limits of a sandbox whose cgroups are below $1.
limits() {
  noxrc create a --mem 64Mi --cpu 500m
  check "$2: memory.max" grep -qx 67108864 "$1"/noxrunner-sandbox-*/memory.max
  check "$2: cpu.max" grep -qx '50000 100000' "$1"/noxrunner-sandbox-*/cpu.max
  # Keeps what it reads.
  hog="head -c 200000000 /dev/zero | tail -c 150000000 | wc -c"
  noxrc --json exec --timeout-seconds 200 a sh -c "$hog" >/tmp/killed
  check "$2: a hog is killed and the limit reported" grep -q '"killedBy":"memory"' /tmp/killed
  peak=$(cat "$1"/noxrunner-sandbox-*/memory.peak 2>/dev/null || echo 0)
  check "$2: the peak of $peak bytes is within the limit" [ "$peak" -le 67108864 ]
  # Twelve processes of 60 MiB.
  many='for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (head -c 65000000 /dev/zero | tail -c 60000000 | wc -c) & done; wait'
  noxrc --json exec --timeout-seconds 200 a sh -c "$many" >/tmp/killed
  check "$2: many processes count together" grep -q '"killedBy":"memory"' /tmp/killed
  check "$2: the sandbox is usable" [ "$(noxrc exec a echo next)" = next ]
  noxrc delete a
  check "$2: the cgroup is removed" [ -z "$(ls -d "$1"/noxrunner-sandbox-* 2>/dev/null)" ]
}

serve noxrc serve --no-auth
limits /sys/fs/cgroup root
check "root: the server was not moved" grep -qx 0::/ /proc/$server/cgroup
kill $server
wait $server

echo "+memory +cpu +pids" >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/user
chown -R 1000:1000 /sys/fs/cgroup/user /home
serve sh -c 'echo $$ >/sys/fs/cgroup/user/cgroup.procs; export HOME=/home
  exec su -s /bin/sh user -c "exec noxrc serve --no-auth --delegated-cgroup"'
limits /sys/fs/cgroup/user user
check "user: the server moved, as asked" grep -qx 0::/user/noxrunner-host /proc/$server/cgroup
kill $server
echo END
poweroff -f
GUEST
chmod +x "$root/init" "$root/guest"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$dir/initrd"

timeout 900 qemu-system-x86_64 -m 2048 -smp 2 -nographic -no-reboot -kernel "$dir"/kernel/boot/vmlinuz-* \
  -initrd "$dir/initrd" -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" </dev/null >"$dir/log" 2>&1 || true
tr -d '\r' <"$dir/log" | grep -E '^(ok|FAILED) ' || true
if ! grep -q '^END' "$dir/log" || grep -q '^FAILED' "$dir/log"; then
  cat "$dir/log"
  exit 1
fi
