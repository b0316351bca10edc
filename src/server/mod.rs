//! A v1 server over any [`Backend`](crate::Backend).
//!
//! - `builder`: settings, and binding to addresses.
//! - `running`: the server itself, from `run` to its stop.
//! - `listener`: TCP and Unix sockets.
//! - `connection`, `turn`: the deadlines of a connection.
//! - `auth`: who may send requests.
//! - `route`: which call a request is.
//! - `service`, `transfer`: the calls.
//! - `reply`, `body`: responses, and archives between the network and a blocking backend.

mod auth;
mod body;
mod builder;
mod connection;
mod listener;
mod reply;
mod route;
mod running;
mod service;
mod transfer;
mod turn;

pub use self::builder::ServerBuilder;
pub use self::running::{Server, Stopper};
