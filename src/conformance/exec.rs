//! Commands.

use std::time::Duration;

use serde_json::{Value, json};

use super::probe::{Miss, Probe, Ran, Verdict, all, want};

pub(super) fn answer(probe: &Probe) -> Verdict {
    let answer = probe.exec(probe.shared()?, &json!({"cmd": ["echo", "hi"]}))?;
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let right = value["exitCode"] == 0
        && value["stdout"] == "hi\n"
        && value["stderr"] == ""
        && value["durationMs"].is_u64();
    want(answer.status == 200 && right, answer.seen())
}

pub(super) fn exit_code(probe: &Probe) -> Verdict {
    let ran = probe.sh("exit 7")?;
    want(ran.exit_code == 7, ran.seen())
}

pub(super) fn streams(probe: &Probe) -> Verdict {
    let ran = probe.sh("echo out; echo err >&2")?;
    want(ran.stdout == "out\n" && ran.stderr == "err\n", ran.seen())
}

pub(super) fn arguments(probe: &Probe) -> Verdict {
    let ran = probe.command(&[
        "printf", "[%s]", "a  b", "it's", "", "*", ";ls", "a\nb", "ü",
    ])?;
    want(ran.stdout == "[a  b][it's][][*][;ls][a\nb][ü]", ran.seen())
}

pub(super) fn no_expansion(probe: &Probe) -> Verdict {
    let cmd = ["echo", "$HOME ${NX_A} $NX_A `id` $(id)"];
    let ran = probe.run(
        probe.shared()?,
        &json!({"cmd": cmd, "env": {"NX_A": "set"}}),
    )?;
    want(ran.stdout.trim_end() == cmd[1], ran.seen())
}

pub(super) fn large_argument(probe: &Probe) -> Verdict {
    let large = "x".repeat(100_000);
    let ran = probe.command(&["sh", "-c", "printf %s \"$1\" | wc -c", "sh", &large])?;
    want(ran.stdout.trim() == "100000", ran.seen())
}

pub(super) fn environment(probe: &Probe) -> Verdict {
    let cmd = ["sh", "-c", "printf '%s|%s' \"$NX_A\" \"$NX_B\""];
    let env = json!({"NX_A": "a b", "NX_B": "=ü\n"});
    let ran = probe.run(probe.shared()?, &json!({"cmd": cmd, "env": env}))?;
    want(ran.stdout == "a b|=ü\n", ran.seen())
}

/// Where a command finds itself.
fn place(probe: &Probe, workdir: Option<&str>) -> Result<String, Miss> {
    let mut body = json!({"cmd": ["pwd"]});
    if let Some(workdir) = workdir {
        body["workdir"] = json!(workdir);
    }
    let ran = probe.run(probe.shared()?, &body)?;
    want(ran.exit_code == 0, ran.seen())?;
    Ok(ran.stdout.trim_end().to_owned())
}

pub(super) fn default_workdir(probe: &Probe) -> Verdict {
    let (default, named) = (place(probe, None)?, place(probe, Some("/workspace"))?);
    want(default == named, format!("{default} and {named}"))
}

fn subdirectory(probe: &Probe) -> Result<(), Miss> {
    let ran = probe.sh("mkdir -p nx-sub")?;
    want(ran.exit_code == 0, ran.seen()).map(drop)
}

pub(super) fn workdir(probe: &Probe) -> Verdict {
    subdirectory(probe)?;
    let at = place(probe, Some("/workspace/nx-sub"))?;
    want(at.ends_with("/nx-sub"), at)
}

pub(super) fn relative_workdir(probe: &Probe) -> Verdict {
    subdirectory(probe)?;
    let at = place(probe, Some("nx-sub"))?;
    want(at.ends_with("/nx-sub"), at)
}

pub(super) fn stdin(probe: &Probe) -> Verdict {
    let body = json!({"cmd": ["cat"], "timeoutSeconds": 3});
    let ran = probe.run(probe.shared()?, &body)?;
    want(ran.exit_code == 0 && ran.stdout.is_empty(), ran.seen())
}

pub(super) fn not_utf8(probe: &Probe) -> Verdict {
    let ran = probe.sh(r"printf 'a\377\300b'")?;
    let right = ran.stdout.starts_with('a') && ran.stdout.ends_with('b');
    want(right, ran.seen())
}

/// As much as is sent of three million bytes.
fn long(probe: &Probe) -> Result<Ran, Miss> {
    probe.sh("head -c 3000000 /dev/zero | tr '\\0' x")
}

pub(super) fn long_output(probe: &Probe) -> Verdict {
    let ran = long(probe)?;
    // What stands in for the rest is up to the backend.
    let kept = ran.stdout.bytes().take_while(|b| *b == b'x').count();
    want(kept >= 1000, format!("{kept} of 3000000 bytes"))
}

pub(super) fn output_cap(probe: &Probe) -> Verdict {
    let length = long(probe)?.stdout.len();
    want(length <= 1_100_000, format!("{length} bytes of one stream"))
}

pub(super) fn not_found(probe: &Probe) -> Verdict {
    let ran = probe.command(&["no-such-program-of-nx"])?;
    want(ran.exit_code == 127, ran.seen())
}

pub(super) fn signal(probe: &Probe) -> Verdict {
    let ran = probe.sh("kill -9 $$")?;
    let no_timeout = ran.exit_code != 124 && !ran.timed_out;
    want(ran.exit_code != 0 && no_timeout, ran.seen())
}

pub(super) fn signal_code(probe: &Probe) -> Verdict {
    let ran = probe.sh("kill -9 $$")?;
    want(ran.exit_code == 137, ran.seen())
}

pub(super) fn empty_command(probe: &Probe) -> Verdict {
    let answer = probe.exec(probe.shared()?, &json!({"cmd": []}))?;
    want(answer.status == 400, answer.seen())
}

pub(super) fn bad_timeout(probe: &Probe) -> Verdict {
    all([0, -1].map(|seconds| {
        let body = json!({"cmd": ["true"], "timeoutSeconds": seconds});
        let answer = probe.exec(probe.shared()?, &body)?;
        want(
            answer.status == 400,
            format!("{seconds}: {}", answer.seen()),
        )
    }))
}

pub(super) fn unknown(probe: &Probe) -> Verdict {
    let answer = probe.exec(&probe.id("nobody"), &json!({"cmd": ["true"]}))?;
    want(answer.status == 404, answer.seen())
}

fn limited(probe: &Probe, line: &str) -> Result<Ran, Miss> {
    let body = json!({"cmd": ["sh", "-c", line], "timeoutSeconds": 1});
    probe.run(probe.shared()?, &body)
}

pub(super) fn timeout(probe: &Probe) -> Verdict {
    let ran = limited(probe, "sleep 60; echo end")?;
    let ended = ran.exit_code != 0 && ran.stdout.is_empty();
    // An answer within the grace that clients give.
    want(
        ended,
        format!("{} after {:.1} s", ran.seen(), ran.took.as_secs_f64()),
    )
}

pub(super) fn timeout_code(probe: &Probe) -> Verdict {
    let ran = limited(probe, "sleep 60")?;
    want(ran.exit_code == 124, ran.seen())
}

pub(super) fn timeout_output(probe: &Probe) -> Verdict {
    let ran = limited(probe, "echo out; echo err >&2; sleep 60")?;
    want(ran.stdout == "out\n" && ran.stderr == "err\n", ran.seen())
}

/// Writes ticks to a file for as long as another one is there.
fn ticking(name: &str) -> String {
    format!(": >{name}; while [ -e {name} ]; do echo x >>{name}.ticks; sleep 0.1; done")
}

/// Whether they still come.
fn is_ticking(probe: &Probe, name: &str) -> Result<bool, Miss> {
    let count = |probe: &Probe| -> Result<String, Miss> {
        let ran = probe.sh(&format!("wc -c <{name}.ticks"))?;
        want(ran.exit_code == 0, ran.seen())?;
        Ok(ran.stdout)
    };
    let before = count(probe)?;
    probe.sleep(Duration::from_millis(700));
    Ok(count(probe)? != before)
}

pub(super) fn timeout_children(probe: &Probe) -> Verdict {
    let name = "nx-timeout-children";
    limited(probe, &format!("({}) & wait", ticking(name)))?;
    let alive = is_ticking(probe, name)?;
    probe.sh(&format!("rm -f {name}"))?;
    want(
        !alive,
        format!("a child of the command still runs: {alive}"),
    )
}

pub(super) fn background_child(probe: &Probe) -> Verdict {
    let name = "nx-background-child";
    let start = format!("({}) </dev/null >/dev/null 2>&1 & sleep 0.5", ticking(name));
    let ran = probe.sh(&start)?;
    want(ran.exit_code == 0, ran.seen())?;
    let alive = is_ticking(probe, name)?;
    probe.sh(&format!("rm -f {name}"))?;
    want(alive, format!("a background child still runs: {alive}"))
}

pub(super) fn background_holds(probe: &Probe) -> Verdict {
    // The child has both streams.
    let body = json!({"cmd": ["sh", "-c", "sleep 8 & echo started"], "timeoutSeconds": 15});
    let ran = probe.run(probe.shared()?, &body)?;
    want(
        ran.stdout == "started\n" && ran.took < Duration::from_secs(6),
        format!("{} after {:.1} s", ran.seen(), ran.took.as_secs_f64()),
    )
}

/// Runs these at a time.
fn together(probe: &Probe, lines: &[String]) -> Result<Vec<Ran>, Miss> {
    let id = probe.shared()?;
    std::thread::scope(|scope| {
        let running: Vec<_> = lines
            .iter()
            .map(|line| {
                let body = json!({"cmd": ["sh", "-c", line], "timeoutSeconds": 15});
                scope.spawn(move || probe.run(id, &body))
            })
            .collect();
        let ran = running.into_iter().map(|thread| {
            let died = |_| Miss::Skipped("a thread of the checker died".to_owned());
            thread.join().map_err(died)?
        });
        ran.collect()
    })
}

pub(super) fn concurrent(probe: &Probe) -> Verdict {
    let lines: Vec<_> = (0..4).map(|n| format!("sleep 0.3; echo {n}")).collect();
    let ran = together(probe, &lines)?;
    let outputs: Vec<_> = ran.iter().map(|ran| ran.stdout.trim()).collect();
    want(outputs == ["0", "1", "2", "3"], format!("{outputs:?}"))
}

pub(super) fn parallel(probe: &Probe) -> Verdict {
    // Each waits for the other.
    let wait =
        "n=0; until [ -e nx-THEIRS ]; do n=$((n + 1)); [ $n -lt 40 ] || exit 9; sleep 0.1; done";
    let line =
        |ours: &str, theirs: &str| format!(": >nx-{ours}; {}", wait.replace("THEIRS", theirs));
    let ran = together(probe, &[line("p1", "p2"), line("p2", "p1")])?;
    let met = ran.iter().all(|ran| ran.exit_code == 0);
    want(
        met,
        format!("two commands that wait for each other met: {met}"),
    )
}
