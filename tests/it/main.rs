//! The integration tests, as one binary.

#[path = "../support/mod.rs"]
mod support;

/// Archives in and out: what is kept, and what a hostile one may not do.
mod archives;
/// Archives that are cut, damaged or hostile, and the directories they are unpacked into.
mod archives_hostile;
/// The command: what it prints where, and what it exits with.
#[cfg(feature = "cli")]
mod command;
/// The checker of servers, on servers that keep the protocol and on those that break one rule each.
#[cfg(feature = "conformance")]
mod conformance;
/// One suite over every backend: HTTP, local, a user's own.
mod contract;
/// The examples, as they are run by hand.
#[cfg(feature = "server")]
mod examples;
/// Standard input, source code and lists of directories, in each place.
mod helpers;
/// Networks and servers that fail in every phase.
mod http_network;
/// What goes over the wire: methods, paths, headers, bodies, statuses.
mod http_wire;
/// https with a private CA.
#[cfg(feature = "tls")]
mod https;
/// Jobs, in each place.
mod jobs;
/// Leases, in each place.
mod lease;
/// Plain processes on this machine: the store and the runner.
mod local;
/// The imports between modules have no cycles.
mod module_graph;
/// The kinds of backend that those tests run in.
mod places;
/// Sandboxes that the kernel confines: their life, their limits, and what is left of them.
#[cfg(target_os = "linux")]
mod sandbox;
/// Our own v1 server, over TCP and a Unix socket.
#[cfg(feature = "server")]
mod server;
