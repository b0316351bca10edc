//! What a job is made of in the sandbox: scripts for any POSIX `sh`, busybox's included.
//!
//! A job is a directory, `/workspace/.noxrunner/jobs/ID`:
//!
//! | file | holds |
//! | --- | --- |
//! | `command` | the program and its arguments, each followed by a NUL |
//! | `started` | when, in seconds since 1970 |
//! | `stdout`, `stderr` | all that it wrote |
//! | `keeper` | the process that waits for it, and when that began by the kernel's count |
//! | `pid` | its own process, which leads a group and a session; `-` until that runs |
//! | `exit` | its exit code; there once it has ended |
//!
//! `pid` and `exit` are written over bytes that are there already, so that a full disk loses neither.

/// Where the jobs of a sandbox are, below `/workspace`.
pub(super) const JOBS: &str = ".noxrunner/jobs";

/// What the scripts need besides `sh`.
pub(super) const TOOLS: &str = "setsid, dd, base64, mkdir, mv, rm, sleep and date";

/// How much of an output is asked for at a time is counted in these, in bytes: `dd` finds the place
/// of a whole block without reading what is before it.
pub(super) const BLOCK: u64 = 4096;

/// The exit codes of the scripts.
pub(super) const NO_SUCH_JOB: i32 = 44;
pub(super) const NO_TOOL: i32 = 43;
pub(super) const CHILDREN_END: i32 = 45;

/// `$1`: the job's id. Makes its directory and prints where that really is; leaves a process behind,
/// to see whether the backend lets it live.
pub(super) const PREPARE: &str = r#"
for tool in setsid dd base64 mkdir mv rm sleep date; do
  command -v $tool >/dev/null || { echo $tool >&2; exit 43; }
done
mkdir -p .noxrunner/jobs && mkdir ".noxrunner/jobs/$1" && cd ".noxrunner/jobs/$1" || exit 1
setsid sleep 60 </dev/null >/dev/null 2>&1 &
echo $! >probe && pwd -P
"#;

/// Begins the scripts that ask how a job is. `alive` is true of a process, the keeper or the probe, that
/// runs: a dead one that nobody waits for keeps its number, and where it is known when it began, its
/// number could be another one's by now.
macro_rules! alive {
    ($script:literal) => {
        concat!(
            r#"
alive() {
  kill -0 "$1" 2>/dev/null || return 1
  [ -r /proc/self/stat ] || return 0
  began=$2
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  set -- ${stat##*) }
  case $1 in Z|X) return 1;; esac
  [ -z "$began" ] || [ "${20}" = "$began" ]
}
state() {
  if [ ! -f exit ]; then
    read -r keeper began <keeper
    if alive "$keeper" "$began"; then echo running; return; fi
  fi
  if [ -f exit ]; then read -r code <exit; echo "exited $code"; else echo lost; fi
}
"#,
            $script
        )
    };
}

/// In the command's own directory, with its environment. `$1`: the job's directory, `$2`: the name of
/// its source file there, `$3`: in how many of the arguments that follow `{file}` stands for it.
pub(super) const START: &str = concat!(
    alive!(
        r#"
read -r probe <"$1/probe" && alive "$probe" "" && kill "$probe" || exit 45
dir=$1 file=$1/$2 count=$3
shift 3
"#
    ),
    crate::staging::fill!(),
    r#"
rm -f "$dir/probe"
input=/dev/null
[ ! -f "$dir/stdin" ] || input=$dir/stdin
date +%s >"$dir/started" &&
printf '%s\0' "$@" >"$dir/command" &&
printf '%-16s\n' - >"$dir/pid" &&
printf '%-16s\n' - >"$dir/exit.new" &&
: >"$dir/stdout" && : >"$dir/stderr" || exit 1
setsid sh -c '
dir=$1
exec 3<"$2"
rm -f "$dir/stdin"
shift 2
setsid "$@" <&3 3<&- >"$dir/stdout" 2>"$dir/stderr" &
printf "%-16s\n" $! 1<>"$dir/pid"
exec 3<&-
wait $!
printf "%-16s\n" $? 1<>"$dir/exit.new"
mv "$dir/exit.new" "$dir/exit"
' sh "$dir" "$input" "$@" </dev/null >/dev/null 2>&1 &
keeper=$! began=
if { read -r stat <"/proc/$keeper/stat"; } 2>/dev/null; then
  set -- ${stat##*) }
  began=${20}
fi
echo "$keeper $began" >"$dir/keeper.new" && mv "$dir/keeper.new" "$dir/keeper"
"#
);

/// `$1`: the job's id; for each stream how many blocks to skip and how many to take. Prints the state
/// as it was before the streams were read, each stream in base64 with a line `-` after it, and a
/// line `.`, without which the answer was cut.
pub(super) const POLL: &str = alive!(
    r#"
cd ".noxrunner/jobs/$1" 2>/dev/null && [ -f keeper ] || exit 44
state
[ "$3" = 0 ] || dd if=stdout bs=4096 skip="$2" count="$3" 2>/dev/null | base64
echo -
[ "$5" = 0 ] || dd if=stderr bs=4096 skip="$4" count="$5" 2>/dev/null | base64
echo -
echo .
"#
);

/// `$1`: the job's id. Ends all of its process group. Its process is waited for by the keeper, so that
/// nothing else has its number.
pub(super) const KILL: &str = r#"
cd ".noxrunner/jobs/$1" 2>/dev/null && [ -f keeper ] || exit 44
tries=0
while [ ! -f exit ]; do
  read -r pid <pid
  [ "$pid" != - ] && break
  tries=$((tries + 1))
  [ $tries -lt 4 ] || { echo "its process has not begun yet" >&2; exit 1; }
  sleep 1
done
[ ! -f exit ] || exit 0
kill -s KILL -- "-$pid" 2>/dev/null || kill -s KILL "$pid" 2>/dev/null || :
"#;

/// Each job in a line, `ID STARTED STATE`, then its command in base64 and a line `-`; at last a line `.`.
pub(super) const LIST: &str = alive!(
    r#"
cd .noxrunner/jobs 2>/dev/null || { echo .; exit 0; }
for job in *; do
  cd "$job" 2>/dev/null || continue
  if [ -f keeper ]; then
    started=
    [ ! -f started ] || read -r started <started
    echo "$job ${started:-0} $(state)"
    dd if=command bs=512 count=1 2>/dev/null | base64
    echo -
  fi
  cd ..
done
echo .
"#
);
