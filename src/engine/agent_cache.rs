//! The connections to the agents of recently used sandboxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::session_id::SessionId;

/// Maximum number of connections that are kept. Each has a few descriptors.
const MAX: usize = 128;

/// Maximum time that an unused connection is kept. Its sandbox may have ended, so that nothing else removes it.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Connections by session id. An entry may be out of date: its sandbox may have ended.
pub(crate) struct AgentCache<T>(Mutex<Entries<T>>);

type Entries<T> = HashMap<SessionId, Entry<T>>;

struct Entry<T> {
    connection: Arc<T>,
    last_use: Instant,
}

impl<T> AgentCache<T> {
    pub(crate) fn new() -> AgentCache<T> {
        AgentCache(Mutex::new(HashMap::new()))
    }

    pub(crate) fn get(&self, id: &SessionId) -> Option<Arc<T>> {
        self.get_at(id, Instant::now())
    }

    fn get_at(&self, id: &SessionId, now: Instant) -> Option<Arc<T>> {
        let mut entries = self.current(now);
        let entry = entries.get_mut(id)?;
        entry.last_use = now;
        Some(Arc::clone(&entry.connection))
    }

    /// Adds a connection. The one that was not used for longest makes room.
    pub(crate) fn insert(&self, id: &SessionId, connection: T) -> Arc<T> {
        self.insert_at(id, connection, Instant::now())
    }

    fn insert_at(&self, id: &SessionId, connection: T, now: Instant) -> Arc<T> {
        let connection = Arc::new(connection);
        let mut entries = self.current(now);
        let entry = Entry {
            connection: Arc::clone(&connection),
            last_use: now,
        };
        entries.insert(id.clone(), entry);
        if entries.len() > MAX {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.last_use);
            let oldest = oldest.map(|(id, _)| id.clone());
            oldest.and_then(|id| entries.remove(&id));
        }
        connection
    }

    /// Removes a connection if it is the one that is meant, and not a later one with the same session id.
    pub(crate) fn remove_if(&self, id: &SessionId, is_meant: impl FnOnce(&T) -> bool) {
        let mut entries = self.lock();
        let found = entries.get(id);
        if found.is_some_and(|entry| is_meant(&entry.connection)) {
            entries.remove(id);
        }
    }

    /// Returns the entries without those that are too old.
    fn current(&self, now: Instant) -> MutexGuard<'_, Entries<T>> {
        let mut entries = self.lock();
        entries.retain(|_, entry| now.saturating_duration_since(entry.last_use) <= MAX_AGE);
        entries
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
        let (cache, start) = (AgentCache::new(), Instant::now());
        let at = |number: usize| start + Duration::from_millis(number as u64);
        for number in 0..MAX {
            cache.insert_at(&id(number), number, at(number));
        }
        assert_eq!(cache.get_at(&id(0), at(MAX)).as_deref(), Some(&0));
        cache.insert_at(&id(MAX), MAX, at(MAX));
        assert!(cache.get_at(&id(1), at(MAX)).is_none());
        let rest = [0, 2, MAX];
        assert!(
            rest.iter()
                .all(|n| cache.get_at(&id(*n), at(MAX)).is_some())
        );
    }

    #[test]
    fn any_use_drops_connections_that_are_too_old() {
        let (cache, start) = (AgentCache::new(), Instant::now());
        let [old, used] = [1, 2].map(|number| cache.insert_at(&id(number), number, start));
        assert!(cache.get_at(&id(2), start + MAX_AGE).is_some());
        assert_eq!((Arc::strong_count(&old), Arc::strong_count(&used)), (2, 2));
        assert!(cache.get_at(&id(3), start + MAX_AGE + MAX_AGE).is_none());
        assert_eq!((Arc::strong_count(&old), Arc::strong_count(&used)), (1, 2));
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
