//! `run`: a sandbox for one command.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use noxrunner::{Cancel, Result, Sandbox};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::BACKEND_FAILED;
use crate::args::{Args, Run};
use crate::connect::{client, file_failed};
use crate::exec::{command, show};
use crate::files::{get, put};
use crate::say::Say;

/// As shells say that a signal ended it.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &Args, run: &Run, say: &Say) -> ExitCode {
    let interrupt = match Interrupt::watch() {
        Ok(interrupt) => interrupt,
        Err(e) => {
            say.error(&file_failed(
                "cannot watch signals for",
                Path::new("run"),
                e,
            ));
            return ExitCode::from(BACKEND_FAILED);
        }
    };
    let id = format!("run-{}-{:08x}", std::process::id(), started());
    let made = client(args).and_then(|client| {
        let sandbox = client.sandbox(&id)?;
        let made = client.create(&id, run.spec.to_spec());
        // It may have been made all the same.
        made.inspect_err(|_| drop(sandbox.delete()))?;
        Ok(sandbox)
    });
    let sandbox = match made {
        Ok(sandbox) => sandbox,
        Err(error) => {
            say.error(&error);
            return ExitCode::from(BACKEND_FAILED);
        }
    };
    let code = in_sandbox(&sandbox, run, &interrupt, say);
    if let Err(error) = sandbox.delete() {
        say.warning(&format!(
            "The sandbox could not be deleted, and stays until its time is over: {error}"
        ));
    }
    match interrupt.came() {
        true => ExitCode::from(INTERRUPTED),
        false => code,
    }
}

fn in_sandbox(sandbox: &Sandbox, run: &Run, interrupt: &Interrupt, say: &Say) -> ExitCode {
    let uploads = || -> Result<()> {
        for path in &run.upload {
            put(sandbox, path, "/workspace/")?;
        }
        Ok(())
    };
    let failed = |error| {
        say.error(&error);
        ExitCode::from(BACKEND_FAILED)
    };
    if let Err(error) = uploads() {
        return failed(error);
    }
    let command = command(&run.cmd, &run.how, say).cancel_on(&interrupt.cancel);
    let result = sandbox.exec(command);
    if interrupt.came() {
        say.failure("Interrupted by user");
        return ExitCode::from(INTERRUPTED);
    }
    let code = show(result, &run.how, say);
    for path in &run.download {
        match get(sandbox, path, Path::new(".")) {
            Ok(to) => say.success(&format!("Downloaded {path} to {}", to.display())),
            Err(error) => return failed(error),
        }
    }
    code
}

/// Tells two runs of one process number apart.
fn started() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.subsec_nanos())
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

    fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
    }
}
