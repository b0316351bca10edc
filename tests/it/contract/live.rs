//! Live output: what every backend must do, and what those must do that pass output on while the command
//! runs.

use std::io;
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, Command, Isolation, Output, Sandbox, Stream};

use super::{Check, create};
use crate::support::local_backend;
use crate::support::processes::{sleeps, unique_sleep, wait_for, with_longer_times};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("live output is complete, with the exit code", complete),
    ("long live output is complete or marked", long_output),
    (
        "live exec of an unknown sandbox is not found",
        unknown_sandbox,
    ),
    (
        "live exec of a missing program exits with 127",
        missing_program,
    ),
    ("a long timeout does not change the caps", long_timeout),
    ("a timeout keeps the live output", time_limit),
    (
        "a background child does not delay a live exec",
        background_child,
    ),
    ("live exec runs commands with stdin", with_stdin),
    ("an error of the sink is returned", sink_error),
];

/// For backends that pass output on while the command runs.
pub(super) const STREAMING: &[(&str, Check)] = &[
    ("time in the sink does not count", time_in_sink),
    ("output arrives while the command runs", while_running),
    ("every byte arrives once", binary),
    ("a sink that waits stops the command's writes", backpressure),
    (
        "an error of the sink ends the command",
        sink_error_ends_command,
    ),
    ("a live exec can be cancelled", cancel),
];

/// Runs a command. Returns its output and what the sink got of each stream.
fn collect(
    sandbox: &Sandbox,
    command: Command,
) -> noxrunner::Result<(noxrunner::Output, Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let out = sandbox.exec_live(command, |chunk| {
        assert!(!chunk.bytes().is_empty());
        match chunk.stream() {
            Stream::Stdout => stdout.extend_from_slice(chunk.bytes()),
            Stream::Stderr => stderr.extend_from_slice(chunk.bytes()),
        }
        Ok(())
    })?;
    Ok((out, stdout, stderr))
}

fn complete(client: &Client) {
    let sandbox = create(client, "live");
    let command = Command::shell("echo out; echo ä >&2; exit 42");
    let (out, stdout, stderr) = collect(&sandbox, command).unwrap();
    assert_eq!((&*stdout, &*stderr), (&b"out\n"[..], "ä\n".as_bytes()));
    assert_eq!(
        (out.exit_code(), &*out.stdout(), &*out.stderr()),
        (42, "out\n", "ä\n")
    );
    assert!(!out.truncated() && !out.lost_output() && !out.timed_out());
    let error = out.check().unwrap_err().to_string();
    assert!(error.ends_with("exited with 42:\nä"), "{error}");
    let (out, stdout, stderr) = collect(&sandbox, Command::new("true")).unwrap();
    assert!(out.success() && stdout.is_empty() && stderr.is_empty());
}

fn long_output(client: &Client) {
    let sandbox = create(client, "live-long");
    let command = Command::shell("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2");
    let (out, stdout, stderr) = collect(&sandbox, command).unwrap();
    if out.lost_output() {
        assert_eq!(stdout.len(), 1024 * 1024);
    } else {
        assert_eq!(stdout.len(), 3_000_000);
    }
    assert!(stdout.iter().all(|byte| *byte == b'x'));
    assert_eq!(stderr, b"end\n");
    assert!(out.truncated());
    assert_eq!((out.stdout().len(), &*out.stderr()), (64 * 1024, "end\n"));
}

fn unknown_sandbox(client: &Client) {
    let sandbox = client.sandbox("live-unknown").unwrap();
    let error = collect(&sandbox, Command::new("true")).unwrap_err();
    assert!(error.is_not_found() && error.is_sandbox_gone(), "{error:#}");
}

fn missing_program(client: &Client) {
    let sandbox = create(client, "live-127");
    let (out, _, stderr) = collect(&sandbox, Command::new("nosuchcommand_nx")).unwrap();
    assert_eq!(out.exit_code(), 127);
    assert!(String::from_utf8_lossy(&stderr).contains("nosuchcommand_nx"));
    assert_eq!(out.stderr_bytes(), stderr);
}

fn long_timeout(client: &Client) {
    let sandbox = create(client, "long-timeout");
    let command = Command::shell("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2; exit 5");
    let out = sandbox
        .exec(command.timeout(Duration::from_secs(100)))
        .unwrap();
    assert_eq!((out.exit_code(), &*out.stderr()), (5, "end\n"));
    assert_eq!(out.stdout_bytes().len(), 1024 * 1024);
    assert!(out.truncated() && out.lost_output() && !out.timed_out());
}

fn time_limit(client: &Client) {
    let sandbox = create(client, "live-limit");
    let stubborn = "echo before; trap '' TERM INT HUP; sleep 77 & while :; do sleep 0.1; done";
    let (out, stdout, _) = with_longer_times(Duration::from_secs(1), |timeout| {
        let collected = collect(&sandbox, Command::shell(stubborn).timeout(timeout));
        Some(collected.unwrap()).filter(|(_, stdout, _)| !stdout.is_empty())
    });
    assert_eq!((out.exit_code(), &*stdout), (124, &b"before\n"[..]));
    assert!(out.timed_out());
}

fn background_child(client: &Client) {
    let sandbox = create(client, "live-background");
    let started = Instant::now();
    let (out, stdout, _) = collect(&sandbox, Command::shell("sleep 60 & echo started")).unwrap();
    assert_eq!((out.exit_code(), &*stdout), (0, &b"started\n"[..]));
    assert!(started.elapsed() < Duration::from_secs(50));
    assert!(sandbox.delete().unwrap());
}

fn with_stdin(client: &Client) {
    let sandbox = create(client, "live-stdin");
    let command = Command::new("sort").stdin("b\na\n");
    let (out, stdout, _) = collect(&sandbox, command).unwrap();
    assert_eq!((out.exit_code(), &*stdout), (0, &b"a\nb\n"[..]));
}

fn sink_error(client: &Client) {
    let sandbox = create(client, "live-error");
    let mut calls = 0;
    let result = sandbox.exec_live(Command::shell("echo out; echo err >&2"), |_| {
        calls += 1;
        Err(io::Error::other("disk full"))
    });
    let error = result.unwrap_err();
    assert_eq!((error.kind(), calls), (noxrunner::ErrorKind::Io, 1));
    assert!(
        format!("{error:#}").ends_with("the output sink failed: disk full"),
        "{error:#}"
    );
    // An error of this crate is returned as it is.
    let result = sandbox.exec_live(["echo", "out"], |_| {
        Err(io::Error::other(noxrunner::Error::new(
            noxrunner::ErrorKind::Archive,
            "own",
        )))
    });
    assert_eq!(result.unwrap_err().kind(), noxrunner::ErrorKind::Archive);
}

/// Waits for a file. It is removed, so that it works once.
const WAIT_FOR_GO: &str = "until rm go 2>/dev/null; do sleep 0.02; done";

fn while_running(client: &Client) {
    let sandbox = create(client, "live-running");
    let line = format!("printf €; {WAIT_FOR_GO}; echo two >&2; {WAIT_FOR_GO}; printf 3");
    let mut seen = Vec::new();
    let command = Command::shell(line).timeout(Duration::from_secs(120));
    let out = sandbox.exec_live(command, |chunk| {
        seen.push((chunk.stream(), chunk.text().into_owned()));
        // The command continues only after this.
        sandbox.write("go", "").map_err(io::Error::other)
    });
    assert!(out.unwrap().success());
    let expected = [
        (Stream::Stdout, "€"),
        (Stream::Stderr, "two\n"),
        (Stream::Stdout, "3"),
    ];
    assert!(
        seen.iter().map(|(s, t)| (*s, &**t)).eq(expected),
        "{seen:?}"
    );
}

fn binary(client: &Client) {
    let sandbox = create(client, "live-binary");
    // A stream in which every piece differs, so that a lost or doubled one shows.
    let expected: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    sandbox.write("f", &expected).unwrap();
    let command = Command::shell("cat f f; printf '\\377\\000\\303'; cat f >&2");
    let (out, stdout, stderr) = collect(&sandbox, command).unwrap();
    assert!(out.success() && !out.lost_output());
    assert!(stdout == [&expected, &expected, &b"\xff\0\xc3"[..]].concat());
    assert!(stderr == expected);
}

/// More than all buffers between the command and the sink.
const MUCH: usize = 32 << 20;

fn backpressure(client: &Client) {
    let sandbox = create(client, "live-slow");
    let line = format!("head -c {MUCH} /dev/zero; : >done");
    let (mut got, mut finished_early) = (0, None);
    let command = Command::shell(line).timeout(Duration::from_secs(300));
    let out = sandbox.exec_live(command, |chunk| {
        got += chunk.bytes().len();
        if finished_early.is_none() {
            std::thread::sleep(Duration::from_millis(300));
            finished_early = Some(sandbox.exists("done").map_err(io::Error::other)?);
        }
        Ok(())
    });
    assert!(out.unwrap().success());
    assert_eq!((got, finished_early), (MUCH, Some(false)));
}

fn time_in_sink(client: &Client) {
    let sandbox = create(client, "live-time");
    // A busy machine may need longer for the output than the shorter timeout allows.
    let mut timeouts = [8, 40].map(Duration::from_secs).into_iter();
    let out = timeouts.find_map(|timeout| match wait_in_sink(&sandbox, timeout) {
        Ok(out) => (out.exit_code() != 124).then_some(out),
        Err(e) => {
            assert!(e.is_timeout(), "{e:#}");
            None
        }
    });
    let out = out.expect("time in the sink does not count");
    assert_eq!((out.exit_code(), &*out.stderr()), (0, "end\n"));
}

/// Runs a command with much output and a sink that waits for longer than its timeout.
fn wait_in_sink(sandbox: &Sandbox, timeout: Duration) -> noxrunner::Result<Output> {
    // More than the buffers while the sink waits.
    const SIZE: usize = 8 << 20;
    let line = format!("head -c {SIZE} /dev/zero; echo end >&2");
    let mut waited = false;
    sandbox.exec_live(Command::shell(line).timeout(timeout), |_| {
        if !std::mem::replace(&mut waited, true) {
            std::thread::sleep(timeout + Duration::from_secs(1));
        }
        Ok(())
    })
}

fn sink_error_ends_command(client: &Client) {
    let sandbox = create(client, "live-ends");
    let seconds = unique_sleep(100_013);
    let line = format!("sleep {seconds} & echo started; wait");
    let command = Command::shell(line).timeout(Duration::from_secs(300));
    let result = sandbox.exec_live(command, |_| {
        wait_for("the command has started", || sleeps(&seconds));
        Err(io::Error::other("enough"))
    });
    assert!(format!("{:#}", result.unwrap_err()).ends_with("enough"));
    wait_for("the command has ended", || !sleeps(&seconds));
}

fn cancel(client: &Client) {
    let sandbox = create(client, "live-cancel");
    let cancel = Cancel::new();
    let command = Command::shell("echo started; sleep 1000")
        .timeout(Duration::from_secs(2000))
        .cancel_on(&cancel);
    let result = sandbox.exec_live(command, |_| {
        cancel.cancel();
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(error.is_cancelled(), "{error:#}");
    if let Some(out) = error.output() {
        assert_eq!(out.stdout(), "started\n");
    }
}

/// The wait for the end of a killed command does not include the time in the sink.
#[test]
fn slow_sink_after_a_cancellation_does_not_end_the_sandbox() {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let sandbox = create(&Client::with_backend(backend), "slow-sink");
    sandbox.write("f", "kept").unwrap();
    let cancel = Cancel::new();
    let mut pauses = 0;
    let result = sandbox.exec_live(Command::new("yes").cancel_on(&cancel), |_| {
        if !cancel.is_cancelled() {
            cancel.cancel();
            // Meanwhile the command fills the pipe, so that there is more output to pass on.
            std::thread::sleep(Duration::from_millis(300));
        } else if pauses < 2 {
            pauses += 1;
            // Longer than the wait.
            std::thread::sleep(Duration::from_millis(5500));
        }
        Ok(())
    });
    assert!(result.unwrap_err().is_cancelled());
    assert_eq!(sandbox.read("f").unwrap(), b"kept");
}
