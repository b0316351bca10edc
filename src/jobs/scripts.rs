//! What a job is made of in the sandbox: scripts for any POSIX `sh`, busybox's included.
//!
//! A job is a directory, `/workspace/.noxrunner/jobs/ID`:
//!
//! | file | holds |
//! | --- | --- |
//! | `in/` | its source code and its standard input, if there are any |
//! | `command` | the program and its arguments, each followed by a NUL |
//! | `started` | when, in seconds since 1970 |
//! | `stdout`, `stderr` | all that it wrote |
//! | `keeper` | the process that waits for it, and when that began by the kernel's count |
//! | `pid` | its own process, which leads a group and a session, and when that began |
//! | `exit` | its exit code, once it has ended |
//!
//! `keeper`, `pid` and `exit` are written over bytes that are there already, `-` and spaces, by the
//! shell itself: neither a full disk nor a process limit loses them.
//!
//! The scripts' own variables begin with `nx_`: they are given the command's environment.

/// Where the jobs of a sandbox are, below `/workspace`.
pub(super) const JOBS: &str = ".noxrunner/jobs";

/// What the scripts need besides `sh`.
pub(super) const TOOLS: &str = "setsid, dd, head, base64, stat, mkdir, mv, rm, sleep and date";

/// How much of an output is asked for at a time is counted in these, in bytes: `dd` finds the place
/// of a whole block without reading what is before it.
pub(super) const BLOCK: u64 = 4096;

/// The exit codes of the scripts.
pub(super) const NO_SUCH_JOB: i32 = 44;
pub(super) const NO_TOOL: i32 = 43;
pub(super) const CHILDREN_END: i32 = 45;

/// `born` sets `nx_born` to when a process began.
macro_rules! born {
    () => {
        r#"
born() {
  nx_born=
  { read -r nx_stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${nx_stat##*) }
  nx_born=${20}
}
"#
    };
}

/// Begins a script that asks how something is. `alive` is true of a process that runs: a dead one that
/// nobody waits for keeps its number, and where it is known when it began, its number could be another
/// one's by now. `code` is true of a job that has ended, and sets `nx_code`.
macro_rules! asking {
    ($script:literal) => {
        concat!(
            born!(),
            r#"
alive() {
  # Of another user's process, kill knows nothing.
  [ -r /proc/self/stat ] || { kill -0 "$1" 2>/dev/null; return; }
  nx_began=$2
  { read -r nx_stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  set -- ${nx_stat##*) }
  case $1 in Z|X) return 1;; esac
  [ -z "$nx_began" ] || [ "${20}" = "$nx_began" ]
}
code() {
  nx_code=
  read -r nx_code <exit
  case $nx_code in -*|'') return 1;; esac
}
state() {
  if ! code; then
    nx_keeper= nx_keeper_born=
    read -r nx_keeper nx_keeper_born <keeper
    if alive "$nx_keeper" "$nx_keeper_born"; then echo running; return; fi
  fi
  if code; then echo "exited $nx_code"; else echo lost; fi
}
"#,
            $script
        )
    };
}

/// `$1`: the job's id. Makes its directory and prints where that really is; leaves a process behind,
/// to see whether the backend lets it live.
pub(super) const PREPARE: &str = concat!(
    born!(),
    r#"
for nx_tool in setsid dd head base64 stat mkdir mv rm sleep date; do
  command -v $nx_tool >/dev/null || { echo $nx_tool >&2; exit 43; }
done
mkdir -p "./.noxrunner/jobs/$1" && cd "./.noxrunner/jobs/$1" || exit 1
setsid sleep 60 </dev/null >/dev/null 2>&1 &
born $!
echo "$! $nx_born" >probe && pwd -P
"#
);

/// In the command's own directory, with its environment. `$1`: the job's directory, then what
/// [`fill!`](crate::staging::fill) takes.
pub(super) const START: &str = concat!(
    asking!(
        r#"
nx_dir=$1 nx_file=$1/in/$2 nx_input=$3 nx_skip=$4 nx_count=$5
shift 5
read -r nx_probe nx_probe_born <"$nx_dir/probe" &&
alive "$nx_probe" "$nx_probe_born" && kill "$nx_probe" || exit 45
case $nx_input in
  stdin) nx_input=$nx_dir/in/stdin;;
  *) nx_input=/dev/null;;
esac
[ -r "$nx_input" ] || { echo "its standard input is not there" >&2; exit 1; }
"#
    ),
    crate::staging::fill!(),
    r#"
rm -f "$nx_dir/probe"
date +%s >"$nx_dir/started" &&
(shift "$nx_skip"; printf '%s\0' "$@") >"$nx_dir/command" &&
printf '%-40s\n' - >"$nx_dir/keeper.new" &&
printf '%-40s\n' - >"$nx_dir/pid" &&
printf '%-16s\n' - >"$nx_dir/exit" &&
: >"$nx_dir/stdout" && : >"$nx_dir/stderr" || exit 1
setsid sh -c '"#,
    born!(),
    r#"
nx_dir=$1
exec 3<"$2"
rm -f "$nx_dir/in/stdin"
shift 2
setsid "$@" <&3 3<&- >>"$nx_dir/stdout" 2>>"$nx_dir/stderr" &
exec 3<&-
born $!
printf "%-40s\n" "$! $nx_born" 1<>"$nx_dir/pid"
wait $!
printf "%-16s\n" $? 1<>"$nx_dir/exit"
' sh "$nx_dir" "$nx_input" "$@" </dev/null >/dev/null 2>&1 &
nx_keeper=$!
born $nx_keeper
printf '%-40s\n' "$nx_keeper $nx_born" 1<>"$nx_dir/keeper.new" &&
mv "$nx_dir/keeper.new" "$nx_dir/keeper"
"#
);

/// `$1`: the job's id; for each stream how many blocks to skip and how many to take. Prints the state
/// as it was before the streams were read, for each stream that is asked for its size and as much of the
/// blocks as that says in base64, a line `-` after each, and a line `.`: what was cut, at the end or in the
/// middle, shows.
pub(super) const POLL: &str = asking!(
    r#"
cd "./.noxrunner/jobs/$1" 2>/dev/null && [ -f keeper ] || exit 44
state
shift
for nx_stream in stdout stderr; do
  if [ "$2" != 0 ]; then
    nx_size=$(stat -c %s $nx_stream) || exit 1
    echo "$nx_size"
    nx_most=$(($2 * 4096)) nx_take=$((nx_size - $1 * 4096))
    if [ $nx_take -ge $nx_most ]; then
      dd if=$nx_stream bs=4096 skip="$1" count="$2" 2>/dev/null | base64
    elif [ $nx_take -gt 0 ]; then
      dd if=$nx_stream bs=4096 skip="$1" count="$2" 2>/dev/null | head -c $nx_take | base64
    fi
  fi
  echo -
  shift 2
done
echo .
"#
);

/// `$1`: the job's id. Ends all of its process group.
pub(super) const KILL: &str = asking!(
    r#"
cd "./.noxrunner/jobs/$1" 2>/dev/null && [ -f exit ] || exit 44
nx_tries=0
until code; do
  read -r nx_pid nx_pid_born <pid
  case $nx_pid in -*|'') ;; *) break;; esac
  # Its keeper was killed before it could begin.
  if [ -f keeper ] && [ "$(state)" = lost ]; then exit 0; fi
  nx_tries=$((nx_tries + 1))
  [ $nx_tries -lt 4 ] || { echo "its process has not begun yet" >&2; exit 1; }
  sleep 1
done
if code || ! alive "$nx_pid" "$nx_pid_born"; then exit 0; fi
kill -s KILL -- "-$nx_pid" 2>/dev/null || kill -s KILL "$nx_pid" 2>/dev/null && exit 0
if code || ! alive "$nx_pid" "$nx_pid_born"; then exit 0; fi
echo "process $nx_pid can't be killed: it may belong to another user" >&2
exit 1
"#
);

/// `$1`: the id after which to go on, or nothing. Each job in a line, `ID STARTED STATE`, then its
/// command in base64 and a line `-`; at last a line `.`.
pub(super) const LIST: &str = asking!(
    r#"
cd ./.noxrunner/jobs 2>/dev/null || { echo .; exit 0; }
nx_after=$1
for nx_job in *; do
  if [ -n "$nx_after" ]; then
    [ "$nx_job" != "$nx_after" ] || nx_after=
    continue
  fi
  cd "./$nx_job" 2>/dev/null || continue
  if [ -f keeper ]; then
    nx_started=
    [ ! -f started ] || read -r nx_started <started
    echo "$nx_job ${nx_started:-0} $(state)"
    dd if=command bs=512 count=1 2>/dev/null | base64
    echo -
  fi
  cd ..
done
[ -z "$nx_after" ] || { echo "job $nx_after is gone in the middle of the list" >&2; exit 1; }
echo .
"#
);
