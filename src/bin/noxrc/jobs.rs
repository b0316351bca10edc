//! `jobs`, `logs`, `wait`, `kill`, and what `exec` and `run` start detached.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use noxrunner::{Error, ErrorKind, Job, JobState, JobStatus, Result, Sandbox, shell_quote};
use serde_json::{Value, json};

use crate::args::{Args, How, JobArgs, Logs, Wait};
use crate::connect::client;
use crate::exec::{bare, exit_code, failed};
use crate::say::Say;

/// What `wait` exits with where the job has not ended in time, as `timeout` does.
const STILL_RUNNING: u8 = 124;

/// Starts a command as a job; both ids are data, for a script to read.
pub(crate) fn start(
    args: &Args,
    sandbox: &Sandbox,
    cmd: &[String],
    how: &How,
    say: &Say,
) -> Result<()> {
    let job = sandbox.spawn(bare(cmd, how, say))?;
    let (id, job) = (sandbox.id(), job.id());
    if say.is_json() {
        say.value(&json!({"id": id, "job": job}));
    } else {
        say.data(format!("{id} {job}\n").as_bytes());
        let place = match args.local {
            true => " --local".to_owned(),
            false => format!(" --base-url {}", shell_quote(&args.base_url)),
        };
        let id = shell_quote(id);
        say.info(&format!("Follow it with: noxrc{place} logs -f {id} {job}"));
    }
    Ok(())
}

pub(crate) fn list(args: &Args, id: &str, say: &Say) -> Result<()> {
    let jobs = client(args)?.sandbox(id)?.jobs()?;
    let mut values = Vec::new();
    for job in &jobs {
        let (state, code) = match job.state() {
            JobState::Exited(status) => ("exited", Some(status.exit_code())),
            JobState::Running => ("running", None),
            _ => ("lost", None),
        };
        let since = job.started().duration_since(UNIX_EPOCH);
        let started = since.map_or(0, |since| since.as_secs());
        values.push(json!({
            "job": job.id(), "state": state, "exitCode": code, "startedAt": started,
            "command": job.command(),
        }));
        if !say.is_json() {
            let state = code.map_or(state.to_owned(), |code| format!("{state} {code}"));
            let age = job.started().elapsed().unwrap_or_default().as_secs();
            let command: Vec<_> = job.command().iter().map(|arg| shell_quote(arg)).collect();
            let command = command.join(" ");
            // The sandbox's own words: no more than one line, and nothing to a terminal.
            let command = command.replace(char::is_control, "\u{fffd}");
            let line = format!("{}  {state:<11} {age:>6} s ago  {command}\n", job.id());
            say.data(line.as_bytes());
        }
    }
    say.value(&json!({"id": id, "jobs": values}));
    Ok(())
}

fn job(args: &Args, of: &JobArgs) -> Result<Job> {
    client(args)?.sandbox(&of.id)?.job(&of.job)
}

pub(crate) fn logs(args: &Args, logs: &Logs, say: &Say) -> Result<()> {
    let job = job(args, &logs.of)?;
    let copy = |stdout: &mut dyn Write, stderr: &mut dyn Write| match logs.follow {
        true => job.copy_to(stdout, stderr).map(Some),
        false => job.copy_so_far(stdout, stderr),
    };
    if say.is_json() {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = copy(&mut stdout, &mut stderr)?;
        let mut value = described(&job, status);
        value["stdout"] = json!(String::from_utf8_lossy(&stdout));
        value["stderr"] = json!(String::from_utf8_lossy(&stderr));
        say.value(&value);
        return Ok(());
    }
    match copy(&mut io::stdout().lock(), &mut io::stderr().lock()) {
        // Whoever has read enough: `noxrc logs -f ID JOB | head`.
        Err(e) if is_broken_pipe(&e) => Ok(()),
        result => result.map(drop),
    }
}

pub(crate) fn wait(args: &Args, wait: &Wait, say: &Say) -> ExitCode {
    let waited = || {
        let job = job(args, &wait.of)?;
        let status = match wait.timeout_seconds {
            Some(time) => job.wait_timeout(time)?,
            None => Some(job.wait()?),
        };
        Ok((described(&job, status), status))
    };
    match waited() {
        Ok((value, status)) => {
            say.value(&value);
            let Some(status) = status else {
                say.warning("The job still runs");
                return ExitCode::from(STILL_RUNNING);
            };
            ExitCode::from(exit_code(status.exit_code()))
        }
        Err(error) => failed(&error, say),
    }
}

pub(crate) fn kill(args: &Args, of: &JobArgs, say: &Say) -> Result<()> {
    let job = job(args, of)?;
    let running = job.try_wait()?.is_none();
    job.kill()?;
    match running {
        true => say.success("Job killed"),
        false => say.info("The job had ended already"),
    }
    say.value(&json!({"id": of.id, "job": of.job, "killed": running}));
    Ok(())
}

fn described(job: &Job, status: Option<JobStatus>) -> Value {
    let code = status.map(JobStatus::exit_code);
    json!({"id": job.sandbox().id(), "job": job.id(), "exitCode": code})
}

fn is_broken_pipe(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    error.kind() == ErrorKind::Io && cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
