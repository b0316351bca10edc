//! `run`: a sandbox for one command.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use noxrunner::{Cancel, Result, Sandbox};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::BACKEND_FAILED;
use crate::args::{Args, Run};
use crate::connect::{client, file_failed};
use crate::exec::{command, failed, show};
use crate::files::{get, put};
use crate::jobs::start;
use crate::say::Say;

/// How long the sandbox may take until commands run in it.
const READY_TIME: Duration = Duration::from_secs(120);

/// As shells say that a signal ended it.
pub(crate) const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &Args, run: &Run, say: &Say) -> ExitCode {
    let interrupt = match Interrupt::watch() {
        Ok(interrupt) => interrupt,
        Err(e) => {
            let error = file_failed("cannot watch signals for", Path::new("run"), e);
            return failed(&error, say);
        }
    };
    let lease = match client(args).and_then(|client| client.lease_with(run.spec.to_spec())) {
        Ok(lease) => lease,
        Err(error) => return failed(&error, say),
    };
    let code = match run.how.detach {
        false => in_sandbox(&lease, run, &interrupt, say),
        true => match detach(args, &lease, run, &interrupt, say) {
            Ok(true) => {
                drop(lease.keep());
                return ExitCode::SUCCESS;
            }
            Ok(false) => interrupted(say),
            Err(error) => failed(&error, say),
        },
    };
    if let Err(error) = lease.close() {
        say.warning(&format!(
            "The sandbox could not be deleted, and stays until its time is over: {error}"
        ));
    }
    match interrupt.came() {
        true => ExitCode::from(INTERRUPTED),
        false => code,
    }
}

fn interrupted(say: &Say) -> ExitCode {
    say.failure("Interrupted by user");
    ExitCode::from(INTERRUPTED)
}

/// Waits until the sandbox is there, and uploads. False if it was interrupted.
fn prepare(sandbox: &Sandbox, run: &Run, interrupt: &Interrupt) -> Result<bool> {
    sandbox.wait_until_ready(READY_TIME, Some(&interrupt.cancel))?;
    for path in &run.upload {
        if interrupt.came() {
            return Ok(false);
        }
        put(sandbox, path, "/workspace/")?;
    }
    Ok(!interrupt.came())
}

/// Starts the job, and answers with whether it runs.
fn detach(
    args: &Args,
    sandbox: &Sandbox,
    run: &Run,
    interrupt: &Interrupt,
    say: &Say,
) -> Result<bool> {
    if !prepare(sandbox, run, interrupt)? {
        return Ok(false);
    }
    start(args, sandbox, &run.cmd, &run.how, say)?;
    Ok(!interrupt.came())
}

fn in_sandbox(sandbox: &Sandbox, run: &Run, interrupt: &Interrupt, say: &Say) -> ExitCode {
    match prepare(sandbox, run, interrupt) {
        Ok(true) => {}
        Ok(false) => return interrupted(say),
        Err(error) => return failed(&error, say),
    }
    let command = command(&run.cmd, &run.how, say).cancel_on(&interrupt.cancel);
    let result = sandbox.exec(command);
    if interrupt.came() {
        return interrupted(say);
    }
    let failed = result.is_err();
    let code = show(result, &run.how, say);
    if failed {
        return code;
    }
    for path in &run.download {
        match get(sandbox, path, Path::new(".")) {
            Ok(to) => say.success(&format!("Downloaded {path} to {}", to.display())),
            Err(error) => {
                // The output was the one value.
                say.error_notice(&error);
                return ExitCode::from(BACKEND_FAILED);
            }
        }
    }
    code
}

/// Ctrl-C and SIGTERM end the command, not this process: it has a sandbox to delete. The second one
/// ends it.
pub(crate) struct Interrupt {
    pub(crate) cancel: Cancel,
    came: Arc<AtomicBool>,
    signals: signal_hook::iterator::Handle,
}

impl Interrupt {
    pub(crate) fn watch() -> std::io::Result<Interrupt> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let handle = signals.handle();
        let (cancel, came) = (Cancel::new(), Arc::new(AtomicBool::new(false)));
        let (cancels, comes) = (cancel.clone(), Arc::clone(&came));
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if comes.swap(true, Ordering::SeqCst) {
                    std::process::exit(i32::from(INTERRUPTED));
                }
                cancels.cancel();
            }
        });
        Ok(Interrupt {
            cancel,
            came,
            signals: handle,
        })
    }

    pub(crate) fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
    }
}
