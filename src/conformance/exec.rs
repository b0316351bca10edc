//! Checks of exec.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::probe::{ExecResult, Probe};
use super::verdict::{NotPassed, Verdict, expect};
use crate::backend::events::{Event, EventReader};
use crate::backend::wire::EVENT_STREAM;
use crate::chunk::Stream;
use crate::script::SHELL;

pub(super) fn answer(probe: &Probe) -> Verdict {
    let answer = probe.exec(probe.shared()?, &json!({"cmd": ["echo", "hi"]}))?;
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let is_valid = value["exitCode"] == 0
        && value["stdout"] == "hi\n"
        && value["stderr"].is_string()
        && value["durationMs"].is_u64();
    expect(answer.status == 200 && is_valid, answer.summary())
}

pub(super) fn exit_code(probe: &Probe) -> Verdict {
    let ran = probe.sh("exit 7")?;
    expect(ran.exit_code == 7, ran.summary())
}

pub(super) fn streams(probe: &Probe) -> Verdict {
    let ran = probe.sh("echo out; echo err >&2")?;
    expect(
        ran.stdout == "out\n" && ran.stderr == "err\n",
        ran.summary(),
    )
}

pub(super) fn arguments(probe: &Probe) -> Verdict {
    let shown = "printf '[%s]' \"$@\"";
    let ran = probe.command(&[
        "sh", "-c", shown, "sh", "a  b", "it's", "", "*", ";ls", "a\nb", "ü",
    ])?;
    expect(
        ran.stdout == "[a  b][it's][][*][;ls][a\nb][ü]",
        ran.summary(),
    )
}

pub(super) fn no_expansion(probe: &Probe) -> Verdict {
    let cmd = ["echo", "$HOME ${NX_A} $NX_A `id` $(id)"];
    let ran = probe.run(
        probe.shared()?,
        &json!({"cmd": cmd, "env": {"NX_A": "set"}}),
    )?;
    expect(ran.stdout.trim_end() == cmd[1], ran.summary())
}

pub(super) fn large_argument(probe: &Probe) -> Verdict {
    let large = "x".repeat(100_000);
    let ran = probe.command(&[SHELL, "-c", "echo ${#1}", "sh", &large])?;
    expect(ran.stdout.trim() == "100000", ran.summary())
}

pub(super) fn environment(probe: &Probe) -> Verdict {
    let cmd = [SHELL, "-c", "printf '%s|%s' \"$NX_A\" \"$NX_B\""];
    let env = json!({"NX_A": "a b", "NX_B": "=ü\n"});
    let ran = probe.run(probe.shared()?, &json!({"cmd": cmd, "env": env}))?;
    expect(ran.stdout == "a b|=ü\n", ran.summary())
}

/// Returns the working directory of a command.
fn current_dir(probe: &Probe, workdir: Option<&str>) -> Result<String, NotPassed> {
    let mut body = json!({"cmd": ["pwd"]});
    if let Some(workdir) = workdir {
        body["workdir"] = json!(workdir);
    }
    let ran = probe.run(probe.shared()?, &body)?;
    expect(ran.exit_code == 0, ran.summary())?;
    Ok(ran.stdout.trim_end().to_owned())
}

pub(super) fn default_workdir(probe: &Probe) -> Verdict {
    let (default, named) = (
        current_dir(probe, None)?,
        current_dir(probe, Some("/workspace"))?,
    );
    expect(default == named, format!("{default} and {named}"))
}

fn subdirectory(probe: &Probe) -> Result<(), NotPassed> {
    let made = probe.set_up(probe.shared()?, "mkdir -p nx-sub");
    made.map(drop)
}

pub(super) fn workdir(probe: &Probe) -> Verdict {
    subdirectory(probe)?;
    let at = current_dir(probe, Some("/workspace/nx-sub"))?;
    expect(at.ends_with("/nx-sub"), at)
}

pub(super) fn relative_workdir(probe: &Probe) -> Verdict {
    subdirectory(probe)?;
    let at = current_dir(probe, Some("nx-sub"))?;
    expect(at.ends_with("/nx-sub"), at)
}

pub(super) fn stdin(probe: &Probe) -> Verdict {
    let body = json!({"cmd": ["cat"], "timeoutSeconds": 5});
    let ran = probe.run(probe.shared()?, &body)?;
    expect(ran.exit_code == 0 && ran.stdout.is_empty(), ran.summary())
}

pub(super) fn not_utf8(probe: &Probe) -> Verdict {
    let ran = probe.sh(r"printf 'a\377\300b'")?;
    let right = ran.stdout.starts_with('a') && ran.stdout.ends_with('b');
    expect(right, ran.summary())
}

/// Writes about 2.6 million bytes.
fn write_long_output(probe: &Probe) -> Result<ExecResult, NotPassed> {
    let doubled =
        "s=xxxxxxxxxx; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do s=$s$s; done";
    probe.sh(&format!("{doubled}; printf %s \"$s\""))
}

pub(super) fn long_output(probe: &Probe) -> Verdict {
    let ran = write_long_output(probe)?;
    // The backend chooses which part it keeps, and what it puts in place of the rest.
    let kept = ran.stdout.bytes().filter(|b| *b == b'x').count();
    expect(kept >= 1000, format!("{kept} of 2621440 bytes"))
}

pub(super) fn output_cap(probe: &Probe) -> Verdict {
    let length = write_long_output(probe)?.stdout.len();
    expect(length <= 1_100_000, format!("{length} bytes of one stream"))
}

pub(super) fn not_found(probe: &Probe) -> Verdict {
    let ran = probe.command(&["no-such-program-of-nx"])?;
    expect(ran.exit_code == 127, ran.summary())
}

pub(super) fn signal(probe: &Probe) -> Verdict {
    let ran = probe.sh("kill -9 $$")?;
    let no_timeout = ran.exit_code != 124 && !ran.timed_out;
    expect(ran.exit_code != 0 && no_timeout, ran.summary())
}

pub(super) fn signal_code(probe: &Probe) -> Verdict {
    let ran = probe.sh("kill -9 $$")?;
    expect(ran.exit_code == 137, ran.summary())
}

pub(super) fn empty_command(probe: &Probe) -> Verdict {
    let answer = probe.exec(probe.shared()?, &json!({"cmd": []}))?;
    expect(answer.status == 400, answer.summary())
}

pub(super) fn bad_timeout(probe: &Probe) -> Verdict {
    let body = json!({"cmd": ["true"], "timeoutSeconds": -1});
    let answer = probe.exec(probe.shared()?, &body)?;
    expect(answer.status == 400, answer.summary())
}

pub(super) fn unknown(probe: &Probe) -> Verdict {
    let answer = probe.exec(&probe.unknown_id(), &json!({"cmd": ["true"]}))?;
    expect(answer.status == 404, answer.summary())
}

fn limited(probe: &Probe, line: &str, seconds: u64) -> Result<ExecResult, NotPassed> {
    let body = json!({"cmd": [SHELL, "-c", line], "timeoutSeconds": seconds});
    probe.run(probe.shared()?, &body)
}

pub(super) fn timeout(probe: &Probe) -> Verdict {
    let name = "nx-timeout";
    let body = json!({"cmd": [SHELL, "-c", ticking(name)], "timeoutSeconds": 1});
    let started = Instant::now();
    // The protocol does not say how the response reports the timeout.
    let answer = probe.exec(probe.shared()?, &body)?;
    let took = started.elapsed().as_secs_f64();
    let alive = is_ticking(probe, name, 1)?;
    expect(
        !alive,
        format!(
            "{} after {took:.1} s; the command is still running: {alive}",
            answer.summary()
        ),
    )
}

pub(super) fn timeout_code(probe: &Probe) -> Verdict {
    let ran = limited(probe, "sleep 60", 1)?;
    expect(ran.exit_code == 124, ran.summary())
}

pub(super) fn timeout_output(probe: &Probe) -> Verdict {
    let line = "echo out; echo err >&2; sleep 60";
    let is_complete = |ran: &ExecResult| ran.stdout == "out\n" && ran.stderr == "err\n";
    let mut ran = limited(probe, line, 1)?;
    if !is_complete(&ran) {
        // A slow server may not start the command in a second.
        ran = limited(probe, line, 5)?;
    }
    expect(is_complete(&ran), ran.summary())
}

/// Returns a script that counts in a file until another file is removed. It needs only `sh` and `sleep`.
fn ticking(name: &str) -> String {
    format!(
        ": >{name}; n=0; while [ -e {name} ]; do n=$((n + 1)); echo $n >{name}.ticks; sleep 0.1; done"
    )
}

/// Returns true if the script is still counting, and ends it. A slow machine needs more looks to see it.
fn is_ticking(probe: &Probe, name: &str, looks: usize) -> Result<bool, NotPassed> {
    let count = || {
        probe.sleep(Duration::from_millis(500));
        probe.set_up(
            probe.shared()?,
            &format!("read -r n <{name}.ticks; echo \"$n\""),
        )
    };
    let first = count()?.stdout;
    let mut ticks = false;
    for _ in 0..looks {
        ticks = count()?.stdout != first;
        if ticks {
            break;
        }
    }
    probe.sh(&format!("rm -f {name}"))?;
    Ok(ticks)
}

pub(super) fn timeout_children(probe: &Probe) -> Verdict {
    let name = "nx-timeout-children";
    limited(probe, &format!("({}) & wait", ticking(name)), 1)?;
    let alive = is_ticking(probe, name, 1)?;
    expect(
        !alive,
        format!("a child of the command is still running: {alive}"),
    )
}

pub(super) fn background_child(probe: &Probe) -> Verdict {
    let name = "nx-background-child";
    let start = format!("({}) </dev/null >/dev/null 2>&1 & sleep 1", ticking(name));
    probe.set_up(probe.shared()?, &start)?;
    let alive = is_ticking(probe, name, 20)?;
    expect(
        alive,
        format!("a background child is still running: {alive}"),
    )
}

pub(super) fn background_holds(probe: &Probe) -> Verdict {
    // The child holds both streams open.
    let body = json!({"cmd": [SHELL, "-c", "sleep 15 & echo started"], "timeoutSeconds": 30});
    let ran = probe.run(probe.shared()?, &body)?;
    expect(
        ran.stdout == "started\n" && ran.took < Duration::from_secs(10),
        format!("{} after {:.1} s", ran.summary(), ran.took.as_secs_f64()),
    )
}

/// Runs commands at the same time.
fn run_concurrently(probe: &Probe, lines: &[String]) -> Result<Vec<ExecResult>, NotPassed> {
    let id = probe.shared()?;
    std::thread::scope(|scope| {
        let running: Vec<_> = lines
            .iter()
            .map(|line| {
                let body = json!({"cmd": [SHELL, "-c", line], "timeoutSeconds": 30});
                scope.spawn(move || probe.run(id, &body))
            })
            .collect();
        let ran = running.into_iter().map(|thread| {
            let died = |_| NotPassed::Skipped("a thread of the checker panicked".to_owned());
            thread.join().map_err(died)?
        });
        ran.collect()
    })
}

pub(super) fn concurrent(probe: &Probe) -> Verdict {
    let lines: Vec<_> = (0..4).map(|n| format!("sleep 0.3; echo {n}")).collect();
    let ran = run_concurrently(probe, &lines)?;
    let outputs: Vec<_> = ran.iter().map(|ran| ran.stdout.trim()).collect();
    expect(outputs == ["0", "1", "2", "3"], format!("{outputs:?}"))
}

pub(super) fn parallel(probe: &Probe) -> Verdict {
    // Each command waits for the other one.
    let wait =
        "n=0; until [ -e nx-THEIRS ]; do n=$((n + 1)); [ $n -lt 100 ] || exit 9; sleep 0.1; done";
    let line =
        |ours: &str, theirs: &str| format!(": >nx-{ours}; {}", wait.replace("THEIRS", theirs));
    let ran = run_concurrently(probe, &[line("p1", "p2"), line("p2", "p1")])?;
    let met = ran.iter().all(|ran| ran.exit_code == 0);
    expect(
        met,
        format!("two commands that wait for each other both finished: {met}"),
    )
}

pub(super) fn live(probe: &Probe) -> Verdict {
    let line = r"printf 'a\377'; echo err >&2; exit 3";
    let answer = probe.exec_live(probe.shared()?, &json!({"cmd": [SHELL, "-c", line]}))?;
    let content_type = answer.content_type.as_deref().unwrap_or_default();
    let seen = format!("{content_type:?}, {}", answer.summary());
    expect(answer.status == 200 && content_type == EVENT_STREAM, &*seen)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut events = EventReader::new(&*answer.body);
    let exit_code = loop {
        match events.next() {
            Ok(Event::Output(chunk)) if chunk.stream() == Stream::Stdout => {
                stdout.extend_from_slice(chunk.bytes());
            }
            Ok(Event::Output(chunk)) => stderr.extend_from_slice(chunk.bytes()),
            Ok(Event::Exit(out)) => break Some(out.exit_code()),
            _ => break None,
        }
    };
    let is_right = exit_code == Some(3) && stdout == b"a\xff" && stderr == b"err\n";
    expect(is_right, seen)
}

pub(super) fn jobs(probe: &Probe) -> Verdict {
    let sandbox = probe.shared_sandbox()?;
    let job = sandbox.spawn([SHELL, "-c", "echo out; exit 3"])?;
    let mut out = Vec::new();
    let status = job.wait_timeout(Duration::from_secs(10))?;
    job.copy_so_far(&mut out, std::io::sink())?;
    let code = status.map(|status| status.exit_code());
    let seen = format!("{code:?}, {:?}", String::from_utf8_lossy(&out));
    expect(code == Some(3) && out == b"out\n", seen)
}
