//! The sandboxes that this process has made and that end with it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::reaper::on_end;
use super::sandbox::{Sandbox, gone};
use crate::error::Result;
use crate::session_id::SessionId;

/// Sandboxes by id. Those that end by themselves are taken out at once.
pub(super) struct Registry {
    shared: Arc<Shared>,
    /// The process that this belongs to, not a fork of it.
    process: u32,
}

#[derive(Default)]
struct Shared {
    /// None while one is being made.
    entries: Mutex<HashMap<String, Option<Arc<Sandbox>>>>,
    made: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Sandbox>>>> {
        // No code of ours can panic while it holds the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        entries: MutexGuard<'a, HashMap<String, Option<Arc<Sandbox>>>>,
    ) -> MutexGuard<'a, HashMap<String, Option<Arc<Sandbox>>>> {
        self.made
            .wait(entries)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it out, unless another one has its place.
    fn forget(&self, id: &str, sandbox: &Weak<Sandbox>) {
        let mut entries = self.lock();
        let is_it = |entry: &Option<Arc<Sandbox>>| {
            entry
                .as_ref()
                .is_some_and(|entry| std::ptr::eq(Arc::as_ptr(entry), sandbox.as_ptr()))
        };
        if entries.get(id).is_some_and(is_it) {
            let ended = entries.remove(id);
            drop(entries);
            drop(ended);
        }
    }
}

impl Registry {
    pub(super) fn new() -> Registry {
        Registry {
            shared: Arc::default(),
            process: std::process::id(),
        }
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<Arc<Sandbox>> {
        let mut entries = self.shared.lock();
        loop {
            match entries.get(id.as_str()) {
                None => return Err(gone()),
                Some(Some(sandbox)) if sandbox.is_running() => return Ok(Arc::clone(sandbox)),
                Some(Some(_)) => return Err(gone()),
                Some(None) => entries = self.shared.wait(entries),
            }
        }
    }

    /// The running one, or else the one that `make` makes; the latter is true then.
    pub(super) fn find_or_make(
        &self,
        id: &SessionId,
        make: impl FnOnce() -> Result<Sandbox>,
    ) -> Result<(Arc<Sandbox>, bool)> {
        let id = id.as_str();
        let mut entries = self.shared.lock();
        loop {
            match entries.get(id) {
                Some(None) => entries = self.shared.wait(entries),
                Some(Some(sandbox)) if sandbox.is_running() => {
                    return Ok((Arc::clone(sandbox), false));
                }
                _ => break,
            }
        }
        entries.insert(id.to_owned(), None);
        drop(entries);
        // Takes the mark away again, whatever happens.
        let place = Place {
            shared: &self.shared,
            id,
        };
        let sandbox = Arc::new(make()?);
        place.fill(Arc::clone(&sandbox));
        let shared = Arc::downgrade(&self.shared);
        let ended = Arc::downgrade(&sandbox);
        let id = id.to_owned();
        on_end(Arc::clone(&sandbox.held.pidfd), move || {
            if let Some(shared) = shared.upgrade() {
                shared.forget(&id, &ended);
            }
        });
        Ok((sandbox, true))
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let mut entries = self.shared.lock();
        while let Some(None) = entries.get(id.as_str()) {
            entries = self.shared.wait(entries);
        }
        let Some(Some(sandbox)) = entries.remove(id.as_str()) else {
            return Ok(false);
        };
        drop(entries);
        let existed = sandbox.is_running();
        sandbox.end();
        Ok(existed)
    }
}

/// An id that is taken while its sandbox is being made.
struct Place<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Place<'_> {
    fn fill(self, sandbox: Arc<Sandbox>) {
        self.shared.lock().insert(self.id.to_owned(), Some(sandbox));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut entries = self.shared.lock();
        if let Some(None) = entries.get(self.id) {
            entries.remove(self.id);
        }
        drop(entries);
        self.shared.made.notify_all();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A fork has copies of all this, and no say in it.
        if self.process == std::process::id() {
            let entries = std::mem::take(&mut *self.shared.lock());
            entries
                .into_values()
                .flatten()
                .for_each(|sandbox| sandbox.end());
        }
    }
}
