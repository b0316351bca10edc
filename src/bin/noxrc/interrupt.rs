//! Handling of Ctrl-C, SIGTERM and SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use noxrunner::{Cancel, Error, ErrorKind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::Signals;

use crate::exit_code::INTERRUPTED;

/// Cancels the command on the first signal, so that this process can delete its sandbox. The second
/// signal ends the process. Dropping this restores nothing, but stops watching.
pub(crate) struct Interrupt {
    pub(crate) cancel: Cancel,
    /// The first signal, or 0.
    received: Arc<AtomicI32>,
    signals: signal_hook::iterator::Handle,
}

impl Interrupt {
    pub(crate) fn watch() -> Result<Interrupt> {
        let mut signals = termination_signals()?;
        let handle = signals.handle();
        let interrupt = Interrupt {
            cancel: Cancel::new(),
            received: Arc::new(AtomicI32::new(0)),
            signals: handle,
        };
        let (cancel, received) = (interrupt.cancel.clone(), Arc::clone(&interrupt.received));
        std::thread::spawn(move || handle_signals(&mut signals, &cancel, &received));
        Ok(interrupt)
    }

    pub(crate) fn received(&self) -> bool {
        self.received.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn by_ctrl_c(&self) -> bool {
        self.received.load(Ordering::SeqCst) == SIGINT
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
    }
}

/// The first signal cancels what is running, the second one ends the command at once.
fn handle_signals(signals: &mut Signals, cancel: &Cancel, received: &AtomicI32) {
    for signal in signals.forever() {
        if received.swap(signal, Ordering::SeqCst) != 0 {
            std::process::exit(i32::from(INTERRUPTED));
        }
        cancel.cancel();
    }
}

/// Starts watching the signals that end a command.
pub(crate) fn termination_signals() -> Result<Signals> {
    Signals::new(watched_signals()).map_err(cannot_watch)
}

/// Returns the signals that end a command. SIGHUP is not one of them if the parent process ignores it for
/// this one, as `nohup` does.
fn watched_signals() -> Vec<i32> {
    // The name of this program can contain any bytes.
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignores_hangup = ignored.unwrap_or(0) >> (SIGHUP - 1) & 1 == 1;
    let signals = [SIGINT, SIGTERM].into_iter();
    signals.chain((!ignores_hangup).then_some(SIGHUP)).collect()
}

fn cannot_watch(e: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot watch signals").with_source(e)
}

/// Lets signals end the process at once while it does nothing that must be cleaned up.
pub(crate) struct Idle(Arc<AtomicBool>);

/// The time in which signals do not end the process at once.
pub(crate) struct Busy<'a>(&'a AtomicBool);

impl Idle {
    /// `editor_has_ctrl_c` leaves SIGINT to the line editor.
    pub(crate) fn new(editor_has_ctrl_c: bool) -> Result<Idle> {
        let idle = Arc::new(AtomicBool::new(true));
        let signals = watched_signals().into_iter();
        for signal in signals.filter(|signal| !(editor_has_ctrl_c && *signal == SIGINT)) {
            register_conditional_default(signal, Arc::clone(&idle)).map_err(cannot_watch)?;
        }
        Ok(Idle(idle))
    }

    pub(crate) fn pause(&self) -> Busy<'_> {
        self.0.store(false, Ordering::SeqCst);
        Busy(&self.0)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
