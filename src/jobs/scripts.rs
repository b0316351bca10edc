//! The scripts that implement jobs in a sandbox, for any POSIX `sh` including busybox's.
//!
//! A job is a directory, `/workspace/.noxrunner/jobs/ID`:
//!
//! | file | contents |
//! | --- | --- |
//! | `in/` | its source code and standard input, if any |
//! | `command` | the program and its arguments, each followed by a NUL |
//! | `started` | the start time in seconds since 1970 |
//! | `stdout`, `stderr` | its output |
//! | `waiter` | pid and start time of the process that waits for the job |
//! | `pid` | pid and start time of the job, which leads a process group and a session |
//! | `exit` | its exit code, once it has finished |
//!
//! `waiter`, `pid` and `exit` are created with `-` and spaces, which the shell overwrites in place, so
//! that neither a full disk nor a process limit can lose them. Start times are those of
//! `/proc/PID/stat`; they tell a process from a later one with the same pid.
//!
//! The variables of the scripts begin with `nx_`, because the scripts have the command's environment.

use crate::error::ErrorKind;
use crate::script::Script;

/// Directory of the jobs, relative to `/workspace`. Its parent is [`OWN_DIR`](crate::sandbox_path::OWN_DIR).
pub(super) const JOBS_DIR: &str = ".noxrunner/jobs";

/// Unit of requests for output, in bytes. `dd` seeks to a whole block without reading up to it.
pub(super) const BLOCK: u64 = 4096;

const fn job_script(source: &'static str) -> Script {
    Script {
        feature: "a job",
        source,
        failures: &[
            (44, ErrorKind::NotFound, "no such job"),
            (
                45,
                ErrorKind::Unsupported,
                "this backend kills processes that outlive an exec, so it cannot run jobs",
            ),
        ],
    }
}

/// Defines `start_time PID`, which sets `nx_start` to the start time of a process.
macro_rules! start_time {
    () => {
        r#"
start_time() {
  nx_start=
  { read -r nx_stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${nx_stat##*) }
  nx_start=${20}
}
"#
    };
}

/// Begins a script that checks the state of jobs. `is_alive PID START` succeeds if the process runs and is
/// not a zombie; without a start time any process with this pid counts. `has_exited` succeeds for a
/// finished job and sets `nx_code`. `state` prints the state of a job.
macro_rules! with_state {
    ($script:literal) => {
        concat!(
            start_time!(),
            r#"
is_alive() {
  # kill cannot check processes of other users, so it is the fallback.
  [ -r /proc/self/stat ] || { kill -0 "$1" 2>/dev/null; return; }
  nx_expected=$2
  { read -r nx_stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  set -- ${nx_stat##*) }
  case $1 in Z|X) return 1;; esac
  [ -z "$nx_expected" ] || [ "${20}" = "$nx_expected" ]
}
has_exited() {
  nx_code=
  read -r nx_code <exit
  case $nx_code in -*|'') return 1;; esac
}
state() {
  if ! has_exited; then
    nx_waiter= nx_waiter_start=
    read -r nx_waiter nx_waiter_start <waiter
    if is_alive "$nx_waiter" "$nx_waiter_start"; then echo running; return; fi
  fi
  if has_exited; then echo "exited $nx_code"; else echo lost; fi
}
"#,
            $script
        )
    };
}

/// Creates the directory of job `$1` and prints its real path. Leaves a process behind, to see whether
/// the backend lets it live.
pub(super) const PREPARE: Script = job_script(concat!(
    start_time!(),
    r#"
for nx_tool in setsid dd head base64 stat mkdir mv rm sleep date; do
  command -v $nx_tool >/dev/null || { echo $nx_tool >&2; exit 43; }
done
mkdir -p "./.noxrunner/jobs/$1" && cd "./.noxrunner/jobs/$1" || exit 1
setsid sleep 60 </dev/null >/dev/null 2>&1 &
start_time $!
echo "$! $nx_start" >probe && pwd -P
"#
));

/// Starts a job in the command's working directory and environment.
///
/// `$1` is the job's directory, `$2` and `$3` are those of
/// [`StagedFiles::wrap`](crate::exec::staged::StagedFiles::wrap), `$4` is the timeout in seconds or 0,
/// then follow the other arguments. The waiter starts the command and waits for it. If there is a timeout, a
/// timer kills the command's process group.
///
/// A shell starts background commands with SIGINT and SIGQUIT ignored, which they cannot change. So neither
/// the waiter nor the command is one: the second `setsid` leads a process group, and therefore forks and
/// lets the shell go on.
pub(super) const START: Script = job_script(concat!(
    with_state!(
        r#"
nx_dir=$1 nx_file=$1/in/$2 nx_input=$3 nx_timeout=$4
shift 4
read -r nx_probe nx_probe_start <"$nx_dir/probe" &&
is_alive "$nx_probe" "$nx_probe_start" && kill "$nx_probe" || exit 45
case $nx_input in
  stdin) nx_input=$nx_dir/in/stdin;;
  *) nx_input=/dev/null;;
esac
[ -r "$nx_input" ] || { echo "the uploaded stdin is missing" >&2; exit 1; }
{prepend}
rm -f "$nx_dir/probe"
date +%s >"$nx_dir/started" &&
(shift "$nx_skip"; printf '%s\0' "$@") >"$nx_dir/command" &&
printf '%-40s\n' - >"$nx_dir/waiter.new" &&
printf '%-40s\n' - >"$nx_dir/pid" &&
printf '%-16s\n' - >"$nx_dir/exit" &&
: >"$nx_dir/stdout" && : >"$nx_dir/stderr" || exit 1
nx_run='"#
    ),
    start_time!(),
    r#"
start_time $$
printf "%-40s\n" "$$ $nx_start" 1<>"$1/pid"
shift
command -v "$1" >/dev/null 2>&1 || { echo "$1: command not found" >&2; exit 127; }
exec "$@"'
nx_out=$(setsid sh -c 'exec setsid "$@"' sh sh -c '"#,
    start_time!(),
    r#"
nx_dir=$1 nx_timeout=$3 nx_run=$4
exec 3<"$2"
rm -f "$nx_dir/in/stdin"
start_time $$
printf "%-40s\n" "$$ $nx_start" 1<>"$nx_dir/waiter.new" &&
mv "$nx_dir/waiter.new" "$nx_dir/waiter" || exit 1
# Ends the wait of the script for this output.
exec >/dev/null
nx_timer=
if [ "$nx_timeout" != 0 ]; then
  setsid sh -c "sleep \"\$1\" || exit; printf %s -timeout 1<>\"\$2/exit\"
    while read -r nx_pid nx_start <\"\$2/pid\" && [ \"\$nx_pid\" = - ]; do sleep 1; done
    kill -s KILL -- \"-\$nx_pid\"" sh "$nx_timeout" "$nx_dir" 3<&- &
  nx_timer=$!
fi
shift 4
setsid sh -c "$nx_run" sh "$nx_dir" "$@" <&3 3<&- >>"$nx_dir/stdout" 2>>"$nx_dir/stderr"
nx_code=$?
exec 3<&-
if [ -n "$nx_timer" ]; then
  # The timer leads no group before its setsid.
  kill -s KILL -- "-$nx_timer" || kill -s KILL "$nx_timer"
  wait $nx_timer
  read -r nx_timed_out <"$nx_dir/exit"
  [ $nx_code != 137 ] || [ "$nx_timed_out" != -timeout ] || nx_code=124
fi 2>/dev/null
printf "%-16s\n" $nx_code 1<>"$nx_dir/exit"
' sh "$nx_dir" "$nx_input" "$nx_timeout" "$nx_run" "$@" </dev/null 2>/dev/null)
[ -f "$nx_dir/waiter" ]
"#
));

/// Polls job `$1`. For stdout and stderr follow the number of blocks to skip and the number to read.
///
/// Prints the state before the streams were read; for each requested stream its length and the blocks in
/// base64; a line `-` after each stream; and a line `.`. The length shows truncation anywhere.
pub(super) const POLL: Script = job_script(with_state!(
    r#"
cd "./.noxrunner/jobs/$1" 2>/dev/null && [ -f waiter ] || exit 44
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
));

/// Sends signal `$2` to the process group of job `$1`. If `$3` seconds pass before the job has finished,
/// kills it; `-` does not wait.
pub(super) const KILL: Script = job_script(with_state!(
    r#"
cd "./.noxrunner/jobs/$1" 2>/dev/null && [ -f exit ] || exit 44
nx_tries=0
until has_exited; do
  read -r nx_pid nx_pid_start <pid
  case $nx_pid in -*|'') ;; *) break;; esac
  # The waiter was killed before it started the job.
  if [ -f waiter ] && [ "$(state)" = lost ]; then exit 0; fi
  nx_tries=$((nx_tries + 1))
  [ $nx_tries -lt 4 ] || { echo "the job has not started yet" >&2; exit 1; }
  sleep 1
done
has_finished() { has_exited || ! is_alive "$nx_pid" "$nx_pid_start"; }
# Sends a signal to the group, or to the job that leads it.
send() {
  has_finished && exit 0
  kill -s "$1" -- "-$nx_pid" 2>/dev/null || kill -s "$1" "$nx_pid" 2>/dev/null && return
  has_finished && exit 0
  echo "cannot send $1 to process $nx_pid: it may belong to another user" >&2
  exit 1
}
send "$2"
[ "$3" != - ] || exit 0
nx_until=$(($(date +%s) + $3))
until has_finished; do
  [ "$(date +%s)" -lt $nx_until ] || { send KILL; exit 0; }
  sleep 0.1 2>/dev/null || sleep 1
done
exit 0
"#
));

/// Lists jobs after id `$1`, or all. Each job is a line `ID STARTED STATE`, its command in base64, and a
/// line `-`. The last line is `.`.
pub(super) const LIST: Script = job_script(with_state!(
    r#"
cd ./.noxrunner/jobs 2>/dev/null || { echo .; exit 0; }
nx_after=$1
for nx_job in *; do
  if [ -n "$nx_after" ]; then
    [ "$nx_job" != "$nx_after" ] || nx_after=
    continue
  fi
  cd "./$nx_job" 2>/dev/null || continue
  if [ -f waiter ]; then
    nx_started=
    [ ! -f started ] || read -r nx_started <started
    echo "$nx_job ${nx_started:-0} $(state)"
    dd if=command bs=512 count=1 2>/dev/null | base64
    echo -
  fi
  cd ..
done
[ -z "$nx_after" ] || { echo "job $nx_after was removed while the jobs were listed" >&2; exit 1; }
echo .
"#
));
