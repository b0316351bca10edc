//! Finds the sandboxes that end with this process by id.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::reaper::on_end;
use super::sandbox::ConfinedSandbox;
use crate::error::Result;
use crate::local::errors::no_such_sandbox;
use crate::session_id::SessionId;

/// Sandboxes by id. Sandboxes that end are removed at once.
pub(super) struct ProcessRegistry {
    shared: Arc<SharedSlots>,
    /// The id of the process that created the registry. A fork of it does not own the sandboxes.
    process: u32,
}

/// A sandbox, or `None` while it is being created.
type Slot = Option<Arc<ConfinedSandbox>>;

#[derive(Default)]
struct SharedSlots {
    slots: Mutex<HashMap<String, Slot>>,
    created: Condvar,
}

type SlotsGuard<'a> = MutexGuard<'a, HashMap<String, Slot>>;

impl SharedSlots {
    fn lock(&self) -> SlotsGuard<'_> {
        // No code of this module panics while it holds the lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the slots after the sandbox is no longer being created.
    fn lock_created(&self, id: &str) -> SlotsGuard<'_> {
        let is_being_created =
            |slots: &mut HashMap<String, Slot>| matches!(slots.get(id), Some(None));
        let created = self.created.wait_while(self.lock(), is_being_created);
        created.unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the sandbox, unless its id belongs to another one now.
    fn remove(&self, id: &str, sandbox: &Weak<ConfinedSandbox>) {
        let mut slots = self.lock();
        let found = slots.get(id).and_then(Option::as_ref).map(Arc::as_ptr);
        if found == Some(sandbox.as_ptr()) {
            let ended = slots.remove(id);
            drop(slots);
            drop(ended);
        }
    }
}

fn running(slots: &HashMap<String, Slot>, id: &str) -> Option<Arc<ConfinedSandbox>> {
    let sandbox = slots.get(id)?.as_ref();
    sandbox.filter(|sandbox| sandbox.is_running()).cloned()
}

impl ProcessRegistry {
    pub(super) fn new() -> ProcessRegistry {
        ProcessRegistry {
            shared: Arc::default(),
            process: std::process::id(),
        }
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<Arc<ConfinedSandbox>> {
        let slots = self.shared.lock_created(id.as_str());
        running(&slots, id.as_str()).ok_or_else(no_such_sandbox)
    }

    /// Returns the running sandbox and false, or creates one and returns it and true.
    pub(super) fn find_or_create(
        &self,
        id: &SessionId,
        create: impl FnOnce() -> Result<ConfinedSandbox>,
    ) -> Result<(Arc<ConfinedSandbox>, bool)> {
        let id = id.as_str();
        let mut slots = self.shared.lock_created(id);
        if let Some(sandbox) = running(&slots, id) {
            return Ok((sandbox, false));
        }
        slots.insert(id.to_owned(), None);
        drop(slots);
        let reservation = Reservation {
            shared: &self.shared,
            id,
        };
        let sandbox = Arc::new(create()?);
        reservation.fill(Arc::clone(&sandbox));
        let shared = Arc::downgrade(&self.shared);
        let ended = Arc::downgrade(&sandbox);
        let id = id.to_owned();
        on_end(Arc::clone(&sandbox.process.pidfd), move || {
            if let Some(shared) = shared.upgrade() {
                shared.remove(&id, &ended);
            }
        });
        Ok((sandbox, true))
    }

    pub(super) fn delete(&self, id: &SessionId) -> Result<bool> {
        let mut slots = self.shared.lock_created(id.as_str());
        let Some(Some(sandbox)) = slots.remove(id.as_str()) else {
            return Ok(false);
        };
        drop(slots);
        let existed = sandbox.is_running();
        sandbox.end();
        Ok(existed)
    }
}

/// The empty slot of a sandbox that is being created. It is freed on drop, whether the creation
/// succeeded, failed or panicked.
struct Reservation<'a> {
    shared: &'a SharedSlots,
    id: &'a str,
}

impl Reservation<'_> {
    fn fill(self, sandbox: Arc<ConfinedSandbox>) {
        self.shared.lock().insert(self.id.to_owned(), Some(sandbox));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut slots = self.shared.lock();
        if let Some(None) = slots.get(self.id) {
            slots.remove(self.id);
        }
        drop(slots);
        self.shared.created.notify_all();
    }
}

impl Drop for ProcessRegistry {
    fn drop(&mut self) {
        // A fork has a copy of the registry, but must not end the sandboxes.
        if self.process == std::process::id() {
            let slots = std::mem::take(&mut *self.shared.lock());
            slots
                .into_values()
                .flatten()
                .for_each(|sandbox| sandbox.end());
        }
    }
}
