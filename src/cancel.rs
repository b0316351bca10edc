//! Cancelling calls from another thread.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Cancels the calls that it was given to, from any thread.
///
/// Clones share one state. A `Cancel` cannot be reset: after [`cancel`](Cancel::cancel), every call
/// that starts with it fails at once. See [`Command::cancel_on`](crate::Command::cancel_on).
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    cancelled: Condvar,
}

#[derive(Default)]
struct State {
    cancelled: bool,
    next_id: u64,
    hooks: Vec<(u64, Box<dyn FnOnce() + Send>)>,
}

/// Keeps a hook of [`Cancel::on_cancel`] registered until it is dropped.
#[must_use = "dropping the guard removes the hook"]
#[derive(Debug)]
pub struct CancelGuard {
    cancel: Cancel,
    id: u64,
}

impl Cancel {
    /// Creates a `Cancel` that is not cancelled.
    #[must_use]
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Cancels all calls that were given this `Cancel` or a clone of it, now and in the future.
    pub fn cancel(&self) {
        let hooks = {
            let mut state = self.lock();
            state.cancelled = true;
            std::mem::take(&mut state.hooks)
        };
        self.0.cancelled.notify_all();
        for (_, hook) in hooks {
            hook();
        }
    }

    /// Returns whether [`cancel`](Cancel::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Registers a hook that runs on cancellation, or runs it at once if already cancelled. For a
    /// [`Backend`](crate::Backend) of your own. The hook runs on the thread that cancels, so it must
    /// be quick.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    ///
    /// let (sender, receiver) = channel();
    /// let cancel = noxrunner::Cancel::new();
    /// let _guard = cancel.on_cancel(move || sender.send("cancelled").unwrap());
    /// cancel.cancel();
    /// assert_eq!(receiver.recv(), Ok("cancelled"));
    /// ```
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) -> CancelGuard {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        if state.cancelled {
            drop(state);
            hook();
        } else {
            state.hooks.push((id, Box::new(hook)));
        }
        CancelGuard {
            cancel: self.clone(),
            id,
        }
    }

    /// Sleeps until the time has passed, which returns true, or until cancelled.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited = self
            .0
            .cancelled
            .wait_timeout_while(state, time, |s| !s.cancelled);
        !waited.unwrap_or_else(PoisonError::into_inner).0.cancelled
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Hooks run without the lock and nothing else can panic, so the state is valid.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sleeps, or fails with [`ErrorKind::Cancelled`] as soon as the call is cancelled.
pub(crate) fn sleep(time: Duration, cancel: Option<&Cancel>) -> Result<()> {
    match cancel {
        Some(cancel) if !cancel.sleep(time) => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
        Some(_) => Ok(()),
        None => {
            std::thread::sleep(time);
            Ok(())
        }
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.cancel.lock().hooks.retain(|(id, _)| *id != self.id);
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel")
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn hooks_run_once_and_not_after_their_guard() {
        let ran = Arc::new(AtomicUsize::new(0));
        let hook = |by: usize| {
            let ran = Arc::clone(&ran);
            move || {
                ran.fetch_add(by, Ordering::SeqCst);
            }
        };
        let cancel = Cancel::new();
        drop(cancel.on_cancel(hook(100)));
        let _guard = cancel.on_cancel(hook(1));
        cancel.cancel();
        cancel.cancel();
        let _late = cancel.on_cancel(hook(10));
        assert_eq!(ran.load(Ordering::SeqCst), 11);
        assert!(!cancel.sleep(Duration::from_secs(60)));
    }
}
