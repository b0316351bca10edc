# Settings that the other scripts source.
#
# Everything is kept below $NOXRUNNER_ENGINES, which defaults to `noxrunner-engines` in the temporary directory:
# `debs` and `root` are downloaded and unpacked packages, `img` are images, and the rest belongs to running
# engines. Nothing is installed on the machine.
set -euo pipefail
# Other users run programs from here.
umask 022
engines=$(readlink -m "${NOXRUNNER_ENGINES:-${TMPDIR:-/tmp}/noxrunner-engines}")
# containerd accepts paths of sockets up to 104 characters, and Docker's are up to 65 characters longer than this one.
if [ ${#engines} -gt 36 ]; then
  echo "NOXRUNNER_ENGINES: paths of sockets below $engines would be too long; use a path of at most 36 characters" >&2
  exit 2
fi
scripts=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
root=$engines/root
libraries=$root/usr/lib/$(uname -m)-linux-gnu
export PATH=$root/usr/sbin:$root/usr/bin:$root/bin:$PATH

# Runs a program of the unpacked packages with their libraries.
with_libraries() {
  env LD_LIBRARY_PATH="$libraries" XTABLES_LIBDIR="$libraries/xtables" "$@"
}

# Waits up to 60 s until an engine answers at a socket. Shows its log if it does not.
wait_for_socket() {
  local socket=$1 log=$2
  for _ in $(seq 600); do
    curl --silent --max-time 2 --unix-socket "$socket" http://engine/_ping 2>/dev/null | grep -q OK && return
    sleep 0.1
  done
  echo "no answer at $socket:" >&2
  tail -20 "$log" >&2
  return 1
}

# Loads the images of images.sh into the engine at a socket. The conformance checker asks for Python's, whose name is the
# second argument.
load_images() {
  local socket=$1 python=$2 image
  for image in "$engines"/img/busybox*.tar; do
    curl --silent --fail --unix-socket "$socket" --header 'Content-Type: application/x-tar' \
      --data-binary "@$image" http://engine/v1.40/images/load >&2
  done
  curl --silent --fail --unix-socket "$socket" --request POST \
    "http://engine/v1.40/images/localhost%2Fnoxrunner%2Fbusybox:1/tag?repo=$python&tag=3.12"
}

# Ends the process whose id is in a file, and waits until it is gone.
end_process() {
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  rm -f "$1"
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do
    is_running "$pid" || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

# Kills the process whose id is in a file, and waits until it is gone.
kill_process() {
  local pid
  pid=$(cat "$1")
  rm -f "$1"
  kill -KILL "$pid"
  while is_running "$pid"; do sleep 0.1; done
}

# Returns success for a process that is not a zombie.
is_running() {
  local state
  state=$(ps -o state= "$1") && [ "$state" != Z ]
}

# Unmounts everything below a directory, and removes it.
remove_tree() {
  awk -v dir="$1/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do
    umount --lazy "$mount" 2>/dev/null || true
  done
  rm -rf "$1"
}

# Removes the cgroups of an engine in every hierarchy.
remove_cgroups() {
  find /sys/fs/cgroup -depth -type d -path "*/$1*" -exec rmdir {} + 2>/dev/null || true
}

# Prints the path of a static program, which runs in every container.
build_agent() {
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --locked --features cli --bin noxrc \
    --target x86_64-unknown-linux-gnu --message-format json |
    grep -o '"executable":"[^"]*/noxrc"' | cut -d'"' -f4
}
