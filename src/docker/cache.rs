//! The connections to the agents of recently used sandboxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connection::Connection;
use crate::session_id::SessionId;

/// Maximum number of connections that are kept. Each has a few descriptors.
const MAX: usize = 128;

#[derive(Default)]
pub(super) struct Cache(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    by_id: HashMap<SessionId, Entry>,
    uses: u64,
}

struct Entry {
    connection: Arc<Connection>,
    last_use: u64,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &SessionId) -> Option<Arc<Connection>> {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        let entry = entries.by_id.get_mut(id)?;
        entry.last_use = uses;
        Some(Arc::clone(&entry.connection))
    }

    /// Adds a connection. The one that was not used for longest makes room.
    pub(super) fn insert(&self, id: &SessionId, connection: Arc<Connection>) {
        let mut entries = self.lock();
        entries.uses += 1;
        let last_use = entries.uses;
        let entry = Entry {
            connection,
            last_use,
        };
        entries.by_id.insert(id.clone(), entry);
        if entries.by_id.len() > MAX {
            let oldest = entries.by_id.iter().min_by_key(|(_, entry)| entry.last_use);
            let oldest = oldest.map(|(id, _)| id.clone());
            oldest.and_then(|id| entries.by_id.remove(&id));
        }
    }

    /// Removes the connection to a container, but not that to a later one with the same session id.
    pub(super) fn remove(&self, id: &SessionId, container: &str) {
        let mut entries = self.lock();
        let is_same = |entry: &Entry| entry.connection.container == container;
        if entries.by_id.get(id).is_some_and(is_same) {
            entries.by_id.remove(id);
        }
    }
}
