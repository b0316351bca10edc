//! `exec`, and what else runs a command.

use std::process::ExitCode;

use noxrunner::{Command, Error, Output, Result};
use serde_json::json;

use crate::BACKEND_FAILED;
use crate::args::{Args, Exec, How};
use crate::connect::client;
use crate::jobs;
use crate::say::Say;

pub(crate) fn exec(args: &Args, exec: &Exec, say: &Say) -> ExitCode {
    let sandbox = || client(args)?.sandbox(&exec.id);
    if exec.how.detach {
        let started = sandbox().and_then(|to| jobs::start(args, &to, &exec.cmd, &exec.how, say));
        return match started {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, say),
        };
    }
    let result = sandbox().and_then(|sandbox| sandbox.exec(command(&exec.cmd, &exec.how, say)));
    show(result, &exec.how, say)
}

pub(crate) fn failed(error: &Error, say: &Say) -> ExitCode {
    say.error(error);
    ExitCode::from(BACKEND_FAILED)
}

pub(crate) fn command(cmd: &[String], how: &How, say: &Say) -> Command {
    bare(cmd, how, say).timeout(how.timeout_seconds)
}

/// Without a time limit.
pub(crate) fn bare(cmd: &[String], how: &How, say: &Say) -> Command {
    let mut command: Command = cmd.iter().cloned().collect();
    for variable in &how.env {
        match variable.split_once('=') {
            Some((name, value)) => command = command.env(name, value),
            // No failure to the Python command either.
            None => say.warning(&format!("Invalid env format (missing =): {variable}")),
        }
    }
    command.workdir(&how.workdir)
}

/// What came of a command, and the code to exit with.
pub(crate) fn show(result: Result<Output>, how: &How, say: &Say) -> ExitCode {
    let out = match result {
        Ok(out) => out,
        Err(error) => return failed(&error, say),
    };
    if say.is_json() {
        say.value(&json!({
            "exitCode": out.exit_code(),
            "stdout": out.stdout(),
            "stderr": out.stderr(),
            "durationMs": u64::try_from(out.duration().as_millis()).unwrap_or(u64::MAX),
            "timedOut": out.timed_out(),
            "truncated": out.truncated(),
        }));
    } else {
        show_streams(&out, say);
    }
    match how.ignore_exit_code {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(exit_code(out.exit_code())),
    }
}

pub(crate) fn show_streams(out: &Output, say: &Say) {
    say.data(out.stdout_bytes());
    say.error_data(out.stderr_bytes());
    if out.truncated() {
        say.warning("The output was too long, and its end is missing: write it to a file, and download that");
    }
    if out.timed_out() {
        say.warning("The command ran out of time: give it more with --timeout-seconds");
    }
}

/// A code that this system can't have is a failure all the same.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}
