//! Caps on connections: per peer, and on those that have not authenticated.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// No cap is below this number of connections.
const MIN_CAP: usize = 8;

/// Limits the connections of a server.
pub(super) struct Admission {
    max: usize,
    max_per_peer: usize,
    max_guests: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All connections, by their number.
    peers: HashMap<u64, Option<IpAddr>>,
    per_peer: HashMap<IpAddr, usize>,
    /// Connections that have not sent a valid request, from the oldest to the newest.
    guests: BTreeMap<u64, oneshot::Sender<()>>,
    next: u64,
}

impl State {
    /// Removes a connection, if it is still there.
    fn remove(&mut self, id: u64) {
        self.guests.remove(&id);
        let Some(Some(peer)) = self.peers.remove(&id) else {
            return;
        };
        if let Some(count) = self.per_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&peer);
            }
        }
    }

    /// Closes the oldest guest's connection. Its place is free at once.
    fn evict(&mut self) {
        if let Some((id, oldest)) = self.guests.pop_first() {
            let _ = oldest.send(());
            self.remove(id);
        }
    }
}

impl Admission {
    /// One peer may have three quarters of the connections, and half of them may be guests.
    pub(super) fn new(max: usize) -> Admission {
        Admission {
            max,
            max_per_peer: (max / 4 * 3).max(MIN_CAP),
            max_guests: (max / 2).max(MIN_CAP),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection, or returns `None`. If there are too many guests, the oldest one has to leave.
    pub(super) fn admit(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<(Visitor, Eviction)> {
        let peer = peer.map(network);
        let mut state = self.state();
        if state.guests.len() >= self.max_guests {
            state.evict();
        }
        let of_peer = peer.and_then(|peer| state.per_peer.get(&peer).copied());
        if state.peers.len() >= self.max || of_peer.unwrap_or(0) >= self.max_per_peer {
            return None;
        }
        if let Some(peer) = peer {
            *state.per_peer.entry(peer).or_default() += 1;
        }
        let id = state.next;
        state.next += 1;
        let (evict, evicted) = oneshot::channel();
        state.peers.insert(id, peer);
        state.guests.insert(id, evict);
        let visitor = Visitor {
            admission: Arc::clone(self),
            id,
            is_guest: AtomicBool::new(true),
        };
        Some((visitor, evicted))
    }
}

/// Completes with `Ok` when the connection has to be closed.
pub(super) type Eviction = oneshot::Receiver<()>;

/// A connection that was admitted. It leaves when this is dropped.
pub(super) struct Visitor {
    admission: Arc<Admission>,
    id: u64,
    is_guest: AtomicBool,
}

impl Visitor {
    pub(super) fn is_guest(&self) -> bool {
        self.is_guest.load(Ordering::Relaxed)
    }

    /// Records a valid request.
    pub(super) fn authenticated(&self) {
        if self.is_guest.swap(false, Ordering::Relaxed) {
            self.admission.state().guests.remove(&self.id);
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.admission.state().remove(self.id);
    }
}

/// Returns the address of the peer's network: a host usually has all addresses of an IPv6 /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(addr) => {
            let [a, b, c, d, ..] = addr.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_guest_leaves_first() {
        let admission = Arc::new(Admission::new(20));
        let mut guests: Vec<_> = (0..10).map(|_| admission.admit(None).unwrap()).collect();
        guests[0].0.authenticated();
        assert!(!guests[0].0.is_guest());
        guests.push(admission.admit(None).unwrap());
        assert!(
            guests
                .iter_mut()
                .all(|(_, evicted)| evicted.try_recv().is_err())
        );
        guests.push(admission.admit(None).unwrap());
        let evicted = guests
            .iter_mut()
            .map(|(_, evicted)| evicted.try_recv().is_ok());
        assert_eq!(evicted.collect::<Vec<_>>()[..3], [false, true, false]);
        drop(guests);
        assert!(admission.state().guests.is_empty());
    }

    #[test]
    fn peers_are_limited_by_network() {
        let admission = Arc::new(Admission::new(20));
        let addr = |last: u16| Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last).into());
        let admit = |n| {
            let (visitor, _) = admission.admit(addr(n)).unwrap();
            visitor.authenticated();
            visitor
        };
        let all: Vec<_> = (0..15).map(admit).collect();
        assert!(admission.admit(addr(99)).is_none());
        let other = IpAddr::from([192, 0, 2, 1]);
        assert!(admission.admit(Some(other)).is_some());
        drop(all);
        assert!(admission.admit(addr(99)).is_some());
        assert!(admission.state().per_peer.is_empty());
    }
}
