//! `run`: a sandbox for a single command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use noxrunner::{Command, Error, ErrorKind, Lease, Result, Sandbox};

use crate::args::{Args, RunArgs};
use crate::client::client;
use crate::command::{self, backend_failed, print_result, with_stdin, with_timeout};
use crate::console::Console;
use crate::exit_code::{BACKEND_FAILED, INTERRUPTED};
use crate::files::{check_different_names, copy_from_sandbox, copy_to_sandbox, name_of, pack};
use crate::interrupt::Interrupt;
use crate::jobs;

/// Maximum time until the sandbox is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn run(args: &Args, run: &RunArgs, console: &Console) -> ExitCode {
    let command = with_timeout(&run.cmd, &run.options, console);
    let command = match with_stdin(args, command, &run.options) {
        Ok(command) => command,
        Err(error) => return backend_failed(&error, console),
    };
    let leased = Interrupt::watch().and_then(|interrupt| {
        check_different_names(&run.upload, name_of)?;
        check_different_names(&run.download, |path| {
            Ok(path.file_name().map_or_else(PathBuf::new, PathBuf::from))
        })?;
        let lease = client(args)?.lease_with(run.spec.to_spec())?;
        Ok((interrupt, lease))
    });
    let (interrupt, lease) = match leased {
        Ok(leased) => leased,
        Err(error) => return backend_failed(&error, console),
    };
    let code = if run.options.detach {
        match detach(args, &lease, run, &interrupt, console) {
            Ok(()) if !interrupt.received() => {
                drop(lease.keep());
                return ExitCode::SUCCESS;
            }
            Ok(()) => interrupted(console),
            Err(error) => failed(&error, &interrupt, console),
        }
    } else {
        run_in(&lease, command, run, &interrupt, console)
    };
    close(lease, console);
    if interrupt.received() {
        ExitCode::from(INTERRUPTED)
    } else {
        code
    }
}

fn close(lease: Lease, console: &Console) {
    if let Err(error) = lease.close() {
        console.warning(&format!(
            "Cannot delete the sandbox, which lives until its TTL expires: {error:#}"
        ));
    }
}

fn interrupted(console: &Console) -> ExitCode {
    console.failure("Interrupted by user");
    ExitCode::from(INTERRUPTED)
}

fn failed(error: &Error, interrupt: &Interrupt, console: &Console) -> ExitCode {
    if interrupt.received() {
        interrupted(console)
    } else {
        backend_failed(error, console)
    }
}

/// Waits until the sandbox is ready, and uploads files.
fn prepare(sandbox: &Sandbox, run: &RunArgs, interrupt: &Interrupt) -> Result<()> {
    sandbox.wait_until_ready(READY_TIMEOUT, Some(&interrupt.cancel))?;
    for path in &run.upload {
        if interrupt.received() {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
        }
        copy_to_sandbox(sandbox, path, "/workspace/", &pack(&run.pack))?;
    }
    Ok(())
}

fn detach(
    args: &Args,
    sandbox: &Sandbox,
    run: &RunArgs,
    interrupt: &Interrupt,
    console: &Console,
) -> Result<()> {
    prepare(sandbox, run, interrupt)?;
    if interrupt.received() {
        return Ok(());
    }
    jobs::start(args, sandbox, &run.cmd, &run.options, console)
}

fn run_in(
    sandbox: &Sandbox,
    command: Command,
    run: &RunArgs,
    interrupt: &Interrupt,
    console: &Console,
) -> ExitCode {
    if let Err(error) = prepare(sandbox, run, interrupt) {
        return failed(&error, interrupt, console);
    }
    let command = command.cancel_on(&interrupt.cancel);
    let result = command::exec(sandbox, command, console);
    if interrupt.received() {
        return interrupted(console);
    }
    let backend_failed = result.is_err();
    let code = print_result(result, &run.options, console);
    if backend_failed {
        return code;
    }
    for path in &run.download {
        match copy_from_sandbox(sandbox, path, Path::new("."), console) {
            Ok(to) => console.success(&format!("Downloaded {path} to {}", to.display())),
            Err(error) => {
                // The value of --json was the command's output.
                console.error_notice(&error);
                return ExitCode::from(BACKEND_FAILED);
            }
        }
    }
    code
}
