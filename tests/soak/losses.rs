//! The sandboxes that were killed, and those that can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use crate::random::Random;

#[derive(Default)]
pub(crate) struct Losses(Mutex<State>);

#[derive(Default)]
struct State {
    /// The markers of the sandboxes that run, by key.
    running: BTreeMap<String, String>,
    killed: BTreeSet<String>,
    /// All sandboxes that existed at this time may be lost.
    all: Option<Instant>,
}

impl Losses {
    /// Lets a sandbox be killed. The marker is the argument of a process in it.
    pub(crate) fn expose(&self, key: &str, marker: &str) {
        let mut state = self.0.lock().unwrap();
        state.running.insert(key.to_owned(), marker.to_owned());
    }

    /// Forgets a sandbox that is no longer used.
    pub(crate) fn forget(&self, key: &str) {
        let mut state = self.0.lock().unwrap();
        state.running.remove(key);
        state.killed.remove(key);
    }

    /// Chooses a sandbox to kill, and returns its marker.
    pub(crate) fn choose(&self, random: &mut Random) -> Option<String> {
        let mut state = self.0.lock().unwrap();
        let keys: Vec<String> = state.running.keys().cloned().collect();
        let key = random.choose(&keys)?;
        let marker = state.running.remove(key);
        // Before it is killed, so that no call finds it gone without a reason.
        state.killed.insert(key.clone());
        marker
    }

    /// Records that all sandboxes are about to be lost.
    pub(crate) fn lose_all(&self) {
        self.0.lock().unwrap().all = Some(Instant::now());
    }

    pub(crate) fn may_have_lost(&self, key: &str, created: Instant) -> bool {
        let state = self.0.lock().unwrap();
        state.killed.contains(key) || state.all.is_some_and(|at| at >= created)
    }
}
