//! `jobs`, `logs`, `wait`, `kill`, and starting jobs for `exec` and `run`.

use std::io::{self, Write};
use std::process::ExitCode;

use noxrunner::{
    Error, ErrorKind, Job, JobInfo, JobStatus, Result, Sandbox, printable, shell_quote,
};
use serde_json::{Value, json};

use crate::args::{Args, ExecOptions, JobArgs, KillArgs, LogsArgs, WaitArgs};
use crate::client::client;
use crate::command::{backend_failed, without_timeout};
use crate::console::Console;
use crate::exit_code::{self, STILL_RUNNING};

/// Starts a command as a job, and prints both ids as data.
pub(crate) fn start(
    args: &Args,
    sandbox: &Sandbox,
    cmd: &[String],
    options: &ExecOptions,
    console: &Console,
) -> Result<()> {
    let job = sandbox.spawn(without_timeout(cmd, options, console))?;
    let (id, job) = (sandbox.id(), job.id());
    if console.is_json() {
        console.value(&json!({"id": id, "job": job}));
        return Ok(());
    }
    console.data(format!("{id} {job}\n").as_bytes());
    let backend = args.backend.chosen_by();
    let id = shell_quote(id);
    console.info(&format!(
        "Follow it with: noxrc {backend} logs -f {id} {job}"
    ));
    Ok(())
}

pub(crate) fn list(args: &Args, id: &str, console: &Console) -> Result<()> {
    let jobs = client(args)?.sandbox(id)?.jobs()?;
    if console.is_json() {
        console.value(&json!({"id": id, "jobs": jobs}));
    } else {
        let lines: String = jobs.iter().map(job_line).collect();
        console.data(lines.as_bytes());
    }
    Ok(())
}

fn job_line(job: &JobInfo) -> String {
    let age = job.started().elapsed().unwrap_or_default().as_secs();
    let command: Vec<_> = job.command().iter().map(|arg| shell_quote(arg)).collect();
    // The sandbox must not print more than a line, or control the terminal.
    let command = command.join(" ");
    let command = printable(&command);
    format!(
        "{}  {:<11} {age:>6} s ago  {command}\n",
        job.id(),
        job.state()
    )
}

fn find(args: &Args, job: &JobArgs) -> Result<Job> {
    client(args)?.sandbox(&job.id)?.job(&job.job)
}

pub(crate) fn logs(args: &Args, logs: &LogsArgs, console: &Console) -> Result<()> {
    let job = find(args, &logs.job)?;
    let copy = |stdout: &mut dyn Write, stderr: &mut dyn Write| {
        if logs.follow {
            job.copy_to(stdout, stderr).map(Some)
        } else {
            job.copy_so_far(stdout, stderr)
        }
    };
    if console.is_json() {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = copy(&mut stdout, &mut stderr)?;
        let mut value = status_value(&job, status);
        value["stdout"] = json!(String::from_utf8_lossy(&stdout));
        value["stderr"] = json!(String::from_utf8_lossy(&stderr));
        console.value(&value);
        return Ok(());
    }
    match copy(&mut io::stdout().lock(), &mut io::stderr().lock()) {
        // The reader has seen enough, as in `noxrc logs -f ID JOB | head`.
        Err(e) if is_broken_pipe(&e) => Ok(()),
        result => result.map(drop),
    }
}

pub(crate) fn wait(args: &Args, wait: &WaitArgs, console: &Console) -> ExitCode {
    let waited = find(args, &wait.job).and_then(|job| {
        let status = match wait.timeout_seconds {
            Some(timeout) => job.wait_timeout(timeout)?,
            None => Some(job.wait()?),
        };
        Ok((status_value(&job, status), status))
    });
    match waited {
        Ok((value, Some(status))) => {
            console.value(&value);
            exit_code::of_command(status.exit_code())
        }
        Ok((value, None)) => {
            console.value(&value);
            console.warning("The job is still running");
            ExitCode::from(STILL_RUNNING)
        }
        Err(error) => backend_failed(&error, console),
    }
}

pub(crate) fn kill(args: &Args, kill: &KillArgs, console: &Console) -> Result<()> {
    let job = find(args, &kill.job)?;
    let running = job.try_wait()?.is_none();
    match &kill.signal {
        Some(signal) => job.signal(signal.strip_prefix("SIG").unwrap_or(signal))?,
        None => job.kill()?,
    }
    match &kill.signal {
        _ if !running => console.info("The job had already finished"),
        Some(signal) => console.success(&format!("Sent {signal}")),
        None => console.success("Job killed"),
    }
    console.value(&json!({"id": kill.job.id, "job": kill.job.job, "killed": running}));
    Ok(())
}

fn status_value(job: &Job, status: Option<JobStatus>) -> Value {
    json!({"id": job.sandbox().id(), "job": job.id(), "exitCode": status})
}

fn is_broken_pipe(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    error.kind() == ErrorKind::Io && cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
