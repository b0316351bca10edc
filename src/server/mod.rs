//! A v1 server over any [`Backend`](crate::Backend).
//!
//! - `builder`: settings, and binding to addresses.
//! - `running`: the server itself, from `run` to its stop.
//! - `listener`: TCP and Unix sockets.
//! - `admission`: caps on connections.
//! - `connection`, `turn`, `pace`: the deadlines of a connection.
//! - `maxima`: the operator's maxima for sandboxes.
//! - `budget`: the memory that all requests share.
//! - `auth`: who may send requests.
//! - `route`: which call a request is.
//! - `service`, `exec`, `live`, `transfer`: the calls.
//! - `disconnect`: clients that disconnect during a command.
//! - `reply`, `body`, `event_body`: responses, and archives and events between the network and a blocking
//!   backend.

mod admission;
mod auth;
mod body;
mod budget;
mod builder;
mod connection;
mod disconnect;
mod event_body;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod listener;
mod live;
mod maxima;
mod pace;
mod reply;
mod route;
mod running;
mod service;
mod transfer;
mod turn;

pub use self::builder::ServerBuilder;
pub use self::running::{Server, Stopper};
