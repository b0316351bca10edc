//! Commands.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::probe::{Miss, Probe, Ran, Verdict, want};

pub(super) fn answer(probe: &Probe) -> Verdict {
    let answer = probe.exec(probe.shared()?, &json!({"cmd": ["echo", "hi"]}))?;
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let right = value["exitCode"] == 0
        && value["stdout"] == "hi\n"
        && value["stderr"].is_string()
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
    let shown = "printf '[%s]' \"$@\"";
    let ran = probe.command(&[
        "sh", "-c", shown, "sh", "a  b", "it's", "", "*", ";ls", "a\nb", "ü",
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
    let ran = probe.command(&["sh", "-c", "echo ${#1}", "sh", &large])?;
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
    let made = probe.set_up(probe.shared()?, "mkdir -p nx-sub");
    made.map(drop)
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

/// As much as is sent of some 2.6 million bytes.
fn long(probe: &Probe) -> Result<Ran, Miss> {
    let doubled =
        "s=xxxxxxxxxx; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do s=$s$s; done";
    probe.sh(&format!("{doubled}; printf %s \"$s\""))
}

pub(super) fn long_output(probe: &Probe) -> Verdict {
    let ran = long(probe)?;
    // Which part, and what stands in for the rest, is up to the backend.
    let kept = ran.stdout.bytes().filter(|b| *b == b'x').count();
    want(kept >= 1000, format!("{kept} of 2621440 bytes"))
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
    let body = json!({"cmd": ["true"], "timeoutSeconds": -1});
    let answer = probe.exec(probe.shared()?, &body)?;
    want(answer.status == 400, answer.seen())
}

pub(super) fn unknown(probe: &Probe) -> Verdict {
    let answer = probe.exec(&probe.nobody(), &json!({"cmd": ["true"]}))?;
    want(answer.status == 404, answer.seen())
}

fn limited(probe: &Probe, line: &str) -> Result<Ran, Miss> {
    let body = json!({"cmd": ["sh", "-c", line], "timeoutSeconds": 1});
    probe.run(probe.shared()?, &body)
}

pub(super) fn timeout(probe: &Probe) -> Verdict {
    let name = "nx-timeout";
    let body = json!({"cmd": ["sh", "-c", ticking(name)], "timeoutSeconds": 1});
    let started = Instant::now();
    // However that is answered: the text does not say. In the time that clients give.
    let answer = probe.exec(probe.shared()?, &body)?;
    let took = started.elapsed().as_secs_f64();
    let alive = is_ticking(probe, name)?;
    probe.sh(&format!("rm -f {name}"))?;
    want(
        !alive,
        format!(
            "{} after {took:.1} s; it still runs: {alive}",
            answer.seen()
        ),
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

/// Counts in a file for as long as another one is there, with nothing but the shell and `sleep`.
fn ticking(name: &str) -> String {
    format!(
        ": >{name}; n=0; while [ -e {name} ]; do n=$((n + 1)); echo $n >{name}.ticks; sleep 0.1; done"
    )
}

/// Whether it still counts, a moment later.
fn is_ticking(probe: &Probe, name: &str) -> Result<bool, Miss> {
    let count = || {
        probe.sleep(Duration::from_millis(500));
        probe.set_up(
            probe.shared()?,
            &format!("read -r n <{name}.ticks; echo \"$n\""),
        )
    };
    Ok(count()?.stdout != count()?.stdout)
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
    let start = format!("({}) </dev/null >/dev/null 2>&1 & sleep 1", ticking(name));
    probe.set_up(probe.shared()?, &start)?;
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

pub(super) fn jobs(probe: &Probe) -> Verdict {
    let sandbox = probe.shared_sandbox()?;
    let job = sandbox.spawn(["sh", "-c", "echo out; exit 3"])?;
    let mut out = Vec::new();
    let status = job.wait_timeout(Duration::from_secs(10))?;
    job.copy_so_far(&mut out, &mut std::io::sink())?;
    let code = status.map(|status| status.exit_code());
    let seen = format!("{code:?}, {:?}", String::from_utf8_lossy(&out));
    want(code == Some(3) && out == b"out\n", seen)
}
