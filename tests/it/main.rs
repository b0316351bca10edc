//! The integration tests. Benchmarks and attacks have binaries of their own.
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

#[path = "../support/mod.rs"]
mod support;

/// The agent in containers.
#[cfg(all(feature = "cli", target_os = "linux"))]
mod agent;
/// Uploads and downloads.
mod archives;
/// Truncated, damaged and hostile archives, and their target directories.
mod archives_hostile;
/// The kinds of backend that jobs, leases and helpers are tested on.
mod backends;
/// The command `noxrc`: its output and exit codes.
#[cfg(feature = "cli")]
mod command;
/// The conformance checker.
#[cfg(feature = "conformance")]
mod conformance;
/// One suite for every backend: HTTP, local and custom.
mod contract;
/// Sandboxes in containers, on the engines that `NOXRUNNER_TEST_DOCKER` and `NOXRUNNER_TEST_PODMAN` name.
#[cfg(feature = "docker")]
mod docker;
/// The programs in `examples`.
#[cfg(feature = "server")]
mod examples;
/// Standard input, source code and directory listings, on every kind of backend.
mod helpers;
/// Network and server failures in every phase of a call.
mod http_network;
/// Requests and responses on the wire.
mod http_wire;
/// HTTPS with a private CA.
#[cfg(feature = "tls")]
mod https;
/// Jobs, on every kind of backend.
mod jobs;
/// Sandboxes in pods, on the cluster that `NOXRUNNER_TEST_KUBERNETES` names.
#[cfg(feature = "kubernetes")]
mod kubernetes;
/// Leases, on every kind of backend.
mod lease;
/// Local sandboxes without isolation: state directory and processes.
mod local;
/// The imports between modules have no cycles.
mod module_graph;
/// Servers of other people: what cannot work there.
mod other_servers;
/// Real programs in local sandboxes.
#[cfg(target_os = "linux")]
mod programs;
/// Local sandboxes that the kernel confines: lifetime, limits and cleanup.
#[cfg(target_os = "linux")]
mod sandbox;
/// This crate's server, over TCP and a Unix socket.
#[cfg(feature = "server")]
mod server;
