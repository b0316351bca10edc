//! Connections to the agents that were used lately.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::agent::Agent;
use crate::session_id::SessionId;

/// From this number of connections on, those that nobody uses are dropped.
const MANY: usize = 256;

/// How long a connection that nobody uses is kept.
const MAX_IDLE: Duration = Duration::from_secs(600);

/// The agents by session id. An entry may be out of date: its pod may have ended.
#[derive(Default)]
pub(super) struct Cache {
    entries: Mutex<HashMap<SessionId, Entry>>,
}

struct Entry {
    agent: Arc<Agent>,
    used_at: Instant,
}

impl Cache {
    pub(super) fn get(&self, id: &SessionId) -> Option<Arc<Agent>> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id)?;
        entry.used_at = Instant::now();
        Some(Arc::clone(&entry.agent))
    }

    pub(super) fn insert(&self, id: &SessionId, agent: Agent) -> Arc<Agent> {
        let agent = Arc::new(agent);
        let mut entries = self.lock();
        if entries.len() >= MANY {
            entries.retain(|_, entry| entry.used_at.elapsed() < MAX_IDLE);
        }
        let entry = Entry {
            agent: Arc::clone(&agent),
            used_at: Instant::now(),
        };
        entries.insert(id.clone(), entry);
        agent
    }

    pub(super) fn remove(&self, id: &SessionId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        // Each change is a single operation of the map.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
