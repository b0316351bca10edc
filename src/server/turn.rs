//! The turn on a connection: the client's or the server's.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// The side that has to act next.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    /// The client has sent nothing of its next request since this time.
    Idle(Instant),
    /// The client has been sending the head of a request since this time.
    Head(Instant),
    /// The server. Bodies have their own deadlines.
    Call,
    /// The server, which sends live output. The client reads it as slowly as it likes.
    Live,
    /// The response with live output is complete, and the client reads the rest of it.
    LiveEnd,
}

/// The turn of a connection, shared by the connection and its response.
#[derive(Clone)]
pub(super) struct SharedTurn(Arc<Mutex<Turn>>);

impl SharedTurn {
    pub(super) fn idle() -> SharedTurn {
        SharedTurn(Arc::new(Mutex::new(Turn::Idle(Instant::now()))))
    }

    pub(super) fn set(&self, turn: Turn) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    pub(super) fn get(&self) -> Turn {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the server's turn, which ends when the guard is dropped.
    pub(super) fn start_call(&self) -> CallGuard {
        self.set(Turn::Call);
        CallGuard(self.clone())
    }
}

/// Held while a response is in progress.
pub(super) struct CallGuard(SharedTurn);

impl CallGuard {
    /// Allows the client to read the response as slowly as it likes.
    pub(super) fn may_take_long(&self) {
        self.0.set(Turn::Live);
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.set(match self.0.get() {
            Turn::Live => Turn::LiveEnd,
            _ => Turn::Idle(Instant::now()),
        });
    }
}
