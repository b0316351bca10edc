//! Handling of Ctrl-C and SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use noxrunner::{Cancel, Error, ErrorKind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit_code::INTERRUPTED;

/// Cancels the command on the first SIGINT or SIGTERM, so that this process can delete its sandbox. The
/// second signal ends the process. Dropping this restores nothing, but stops watching.
pub(crate) struct Interrupt {
    pub(crate) cancel: Cancel,
    received: Arc<AtomicBool>,
    signals: signal_hook::iterator::Handle,
}

impl Interrupt {
    pub(crate) fn watch() -> Result<Interrupt> {
        let mut signals = termination_signals()?;
        let handle = signals.handle();
        let interrupt = Interrupt {
            cancel: Cancel::new(),
            received: Arc::new(AtomicBool::new(false)),
            signals: handle,
        };
        let (cancel, received) = (interrupt.cancel.clone(), Arc::clone(&interrupt.received));
        std::thread::spawn(move || handle_signals(&mut signals, &cancel, &received));
        Ok(interrupt)
    }

    pub(crate) fn received(&self) -> bool {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
    }
}

/// The first signal cancels what is running, the second one ends the command at once.
fn handle_signals(signals: &mut Signals, cancel: &Cancel, received: &AtomicBool) {
    for _ in signals.forever() {
        if received.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        cancel.cancel();
    }
}

/// Starts watching SIGINT and SIGTERM.
pub(crate) fn termination_signals() -> Result<Signals> {
    Signals::new([SIGINT, SIGTERM])
        .map_err(|e| Error::new(ErrorKind::Io, "cannot watch signals").with_source(e))
}
