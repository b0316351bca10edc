//! Cancelling calls from another thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
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
    /// The state was cancelled, or a hook has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cancelled: bool,
    next_id: u64,
    hooks: VecDeque<(u64, Box<dyn FnOnce() + Send>)>,
    /// The hooks that run now, and their threads.
    running: Vec<(u64, ThreadId)>,
}

/// Keeps a hook of [`Cancel::on_cancel`] registered until it is dropped. The drop waits for a hook that
/// runs on another thread, so that no hook runs after its guard.
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
        let mut state = self.lock();
        state.cancelled = true;
        self.0.changed.notify_all();
        while let Some((id, hook)) = state.hooks.pop_front() {
            state.running.push((id, thread::current().id()));
            drop(state);
            let running = RunningHook { cancel: self, id };
            hook();
            drop(running);
            state = self.lock();
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
            state.hooks.push_back((id, Box::new(hook)));
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
            .changed
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
        let mut state = self.cancel.lock();
        state.hooks.retain(|(id, _)| *id != self.id);
        let this = thread::current().id();
        let runs_elsewhere = |state: &mut State| {
            let mut running = state.running.iter();
            running.any(|(id, thread)| *id == self.id && *thread != this)
        };
        drop(self.cancel.0.changed.wait_while(state, runs_elsewhere));
    }
}

/// A hook that runs. It has ended on drop, also if it panicked.
struct RunningHook<'a> {
    cancel: &'a Cancel,
    id: u64,
}

impl Drop for RunningHook<'_> {
    fn drop(&mut self) {
        self.cancel.lock().running.retain(|(id, _)| *id != self.id);
        self.cancel.0.changed.notify_all();
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
    use std::sync::mpsc::channel;

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
    #[test]
    fn no_hook_runs_after_its_guard() {
        let (entered, is_entered) = channel();
        let (leave, may_leave) = channel::<()>();
        let cancel = Cancel::new();
        let first = cancel.on_cancel(move || {
            entered.send(()).unwrap();
            may_leave.recv().unwrap();
        });
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let second = cancel.on_cancel(move || count.store(1, Ordering::SeqCst));
        let canceller = cancel.clone();
        let cancelling = thread::spawn(move || canceller.cancel());
        is_entered.recv().unwrap();
        drop(second);
        // The drop of a guard waits for its hook.
        let dropping = thread::spawn(move || drop(first));
        assert!(!dropping.is_finished());
        leave.send(()).unwrap();
        dropping.join().unwrap();
        cancelling.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }
}
