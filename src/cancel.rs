//! Ends an exec from another thread.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ends the calls it was given to, from any thread.
///
/// Cheap to clone; all clones are one. Once cancelled it stays so: a call that starts with it
/// fails at once. See [`Command::cancel_on`](crate::Command::cancel_on).
///
/// ```
/// use noxrunner::Cancel;
///
/// let cancel = Cancel::new();
/// let other = cancel.clone();
/// std::thread::spawn(move || other.cancel()).join().unwrap();
/// assert!(cancel.is_cancelled());
/// ```
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
    next: u64,
    hooks: Vec<(u64, Box<dyn FnOnce() + Send>)>,
}

/// Keeps a hook of [`Cancel::on_cancel`] registered; dropping it takes the hook away.
///
/// ```
/// use noxrunner::Cancel;
///
/// let cancel = Cancel::new();
/// let guard = cancel.on_cancel(|| panic!("it is not called"));
/// drop(guard);
/// cancel.cancel();
/// ```
#[must_use = "the hook is taken away when this is dropped"]
#[derive(Debug)]
pub struct CancelGuard {
    cancel: Cancel,
    id: u64,
}

impl Cancel {
    /// Not cancelled yet.
    ///
    /// ```
    /// assert!(!noxrunner::Cancel::new().is_cancelled());
    /// ```
    #[must_use]
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Ends every call that was given this, now and later.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Cancel, Command};
    ///
    /// let cancel = Cancel::new();
    /// cancel.cancel();
    /// assert!(sandbox.exec(Command::new("true").cancel_on(&cancel)).is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
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

    /// Whether [`cancel`](Cancel::cancel) was called.
    ///
    /// ```
    /// let cancel = noxrunner::Cancel::new();
    /// cancel.cancel();
    /// assert!(cancel.is_cancelled());
    /// ```
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// For a [`Backend`](crate::Backend): runs `hook` when cancelled, at once if that was so
    /// already. The hook must be quick; it runs on the thread that cancels.
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
        let id = state.next;
        state.next += 1;
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

    /// Sleeps, unless cancelled. True if the whole time went by.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited = self
            .0
            .cancelled
            .wait_timeout_while(state, time, |s| !s.cancelled);
        !waited.unwrap_or_else(PoisonError::into_inner).0.cancelled
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of ours can panic while it holds the lock, hooks run outside of it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let _kept = cancel.on_cancel(hook(1));
        cancel.cancel();
        cancel.cancel();
        let _late = cancel.on_cancel(hook(10));
        assert_eq!(ran.load(Ordering::SeqCst), 11);
        assert!(!cancel.sleep(Duration::from_secs(60)));
    }
}
