//! The connections to the agents of recently used sandboxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::session_id::SessionId;

/// Maximum number of connections that are kept. Each has a few descriptors.
const MAX: usize = 128;

/// Connections by session id. An entry may be out of date: its sandbox may have ended.
pub(crate) struct AgentCache<T>(Mutex<Entries<T>>);

struct Entries<T> {
    by_id: HashMap<SessionId, Entry<T>>,
    uses: u64,
}

struct Entry<T> {
    connection: Arc<T>,
    last_use: u64,
}

impl<T> AgentCache<T> {
    pub(crate) fn new() -> AgentCache<T> {
        AgentCache(Mutex::new(Entries {
            by_id: HashMap::new(),
            uses: 0,
        }))
    }

    pub(crate) fn get(&self, id: &SessionId) -> Option<Arc<T>> {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        let entry = entries.by_id.get_mut(id)?;
        entry.last_use = uses;
        Some(Arc::clone(&entry.connection))
    }

    /// Adds a connection. The one that was not used for longest makes room.
    pub(crate) fn insert(&self, id: &SessionId, connection: T) -> Arc<T> {
        let connection = Arc::new(connection);
        let mut entries = self.lock();
        entries.uses += 1;
        let entry = Entry {
            connection: Arc::clone(&connection),
            last_use: entries.uses,
        };
        entries.by_id.insert(id.clone(), entry);
        if entries.by_id.len() > MAX {
            let oldest = entries.by_id.iter().min_by_key(|(_, entry)| entry.last_use);
            let oldest = oldest.map(|(id, _)| id.clone());
            oldest.and_then(|id| entries.by_id.remove(&id));
        }
        connection
    }

    /// Removes a connection if it is the one that is meant, and not a later one with the same session id.
    pub(crate) fn remove_if(&self, id: &SessionId, is_meant: impl FnOnce(&T) -> bool) {
        let mut entries = self.lock();
        let found = entries.by_id.get(id);
        if found.is_some_and(|entry| is_meant(&entry.connection)) {
            entries.by_id.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> SessionId {
        SessionId::new(number.to_string()).unwrap()
    }

    #[test]
    fn least_recently_used_connection_makes_room() {
        let cache = AgentCache::new();
        for number in 0..MAX {
            cache.insert(&id(number), number);
        }
        assert_eq!(cache.get(&id(0)).as_deref(), Some(&0));
        cache.insert(&id(MAX), MAX);
        assert!(cache.get(&id(1)).is_none());
        assert!([0, 2, MAX].iter().all(|n| cache.get(&id(*n)).is_some()));
    }

    #[test]
    fn later_connection_is_kept() {
        let cache = AgentCache::new();
        cache.insert(&id(1), "old");
        cache.insert(&id(1), "new");
        cache.remove_if(&id(1), |connection| *connection == "old");
        assert_eq!(cache.get(&id(1)).as_deref(), Some(&"new"));
        cache.remove_if(&id(1), |connection| *connection == "new");
        assert!(cache.get(&id(1)).is_none());
    }
}
