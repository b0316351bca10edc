//! Runs commands and transfers files in remote or local sandboxes through the NoxRunner v1 REST API.
//! Blocking calls, few dependencies, no async runtime. Every call has a deadline, and errors say whether
//! the command may have run.
//!
//! ```
//! use noxrunner::{Client, Command, SandboxSpec};
//! use std::time::Duration;
//!
//! // A sandbox on this machine. Or Client::new("https://sandboxes.example.com")?
//! let client = Client::local()?;
//! let sandbox = client.create("demo", SandboxSpec::new().ttl(Duration::from_secs(1800)))?;
//!
//! sandbox.write("in.txt", "3\n1\n2\n")?;
//! let sort = Command::shell("sort in.txt | tee out.txt").timeout(Duration::from_secs(60));
//! assert_eq!(sandbox.run(sort)?.stdout(), "1\n2\n3\n");
//! assert_eq!(sandbox.read("out.txt")?, b"1\n2\n3\n");
//!
//! assert!(sandbox.delete()?);
//! # Ok::<_, noxrunner::Error>(())
//! ```
//!
//! # Overview
//!
//! - [`Client`] creates sandboxes: [`create`](Client::create), [`lease`](Client::lease),
//!   [`sandbox`](Client::sandbox), [`health`](Client::health). [`ClientBuilder`] has its settings.
//! - [`Sandbox`] is a handle to a sandbox: [`run`](Sandbox::run), [`exec`](Sandbox::exec),
//!   [`exec_live`](Sandbox::exec_live), [`run_code`](Sandbox::run_code), [`spawn`](Sandbox::spawn),
//!   [`write`](Sandbox::write),
//!   [`read`](Sandbox::read), [`list`](Sandbox::list), [`upload_dir`](Sandbox::upload_dir),
//!   [`download_dir`](Sandbox::download_dir), [`touch`](Sandbox::touch), [`delete`](Sandbox::delete).
//! - [`Lease`] is a sandbox that is kept alive while you hold it, and deleted when it is dropped.
//! - [`Command`] and [`Output`]: what to run, and the result. [`Language`] and [`Stdin`]: source code and
//!   standard input. [`shell_quote`] quotes text for a shell line.
//! - [`Chunk`] is a piece of a command's output, which [`exec_live`](Sandbox::exec_live) passes on while the
//!   command runs. [`Job`] is a command that runs without a caller, with live output.
//! - [`Files`], [`Contents`] and [`Extract`]: what to upload, and how to unpack a download.
//! - [`Backend`] is NoxRunner v1 as a trait, with seven methods to implement. [`HttpBackend`] and
//!   [`LocalBackend`] implement it, and so do `DockerBackend` (feature `docker`) and `KubernetesBackend`
//!   (feature `kubernetes`). So can you.
//! - `server` (feature `server`): a v1 server over any backend. `agent` (feature `agent`): the server inside
//!   a container. `conformance` (feature `conformance`): checks a server against the protocol.
//! - [`Error`] and its [`ErrorKind`].
//!
//! The [guides](guide) teach: [getting started](guide::getting_started), [files](guide::files),
//! [jobs](guide::jobs), [recipes](guide::recipes), [local sandboxes](guide::local),
//! [servers](guide::cluster), [the command](guide::command), [writing a backend](guide::backends), [the
//! protocol](guide::protocol), [coming from Python](guide::coming_from_python) and
//! [troubleshooting](guide::troubleshooting). [Numbers](guide::numbers) compare the cost of calls.
//!
//! # Local or remote
//!
//! [`Client::new`] connects to a server. [`Client::local`] runs commands on this machine, in Linux
//! namespaces, without capabilities, behind a seccomp filter and Landlock rules, and with resource limits.
//! This protects the machine's files, processes, network and users against mistakes and casual attacks. It
//! is not a boundary for hostile multi-tenant code, because all sandboxes share the host's kernel: use a
//! NoxRunner server or a virtual machine for that.
//!
//! # Errors
//!
//! A command that fails is an [`Output`] with a non-zero exit code. [`Sandbox::run`] and [`Output::check`]
//! turn it into an error of kind [`Command`](ErrorKind::Command). Any other [`Error`] means that the
//! backend failed; [troubleshooting](guide::troubleshooting) lists what to do.
//!
//! [`Retry`] has the table of retries. In short: every call but exec may be repeated, because doing it
//! twice has the same effect as once. An exec is repeated only if it certainly was not received, or if the
//! server itself refused it: with 429, or with a 503 that has `Retry-After` or the error of NoxRunner v1.
//! On a pooled connection that the server has closed, "certainly" means that the server's kernel
//! acknowledged no byte of the request. If the system cannot tell, which Linux can, the error is
//! [`ErrorKind::OutcomeUnknown`]. On a Unix socket, "certainly" means that Linux resets a
//! connection which the server closed before it had read the request.
//!
//! # Deadlines
//!
//! Every call except a transfer ends by a time known in advance, including name resolution and all
//! attempts. A wait for a rate limit comes on top; see [`Retry::wait_for`]. [`exec`](Sandbox::exec): the
//! command's timeout, rounded up to whole seconds, plus 10 s; for [`exec_live`](Sandbox::exec_live) plus
//! the time spent in the sink. Health, create, touch and delete: [`timeout`](HttpBackendBuilder::timeout),
//! 30 s by default. An upload or a download may take as long as a byte moves within that time, unless
//! [`transfer_timeout`](HttpBackendBuilder::transfer_timeout) limits it. Writing a file is an upload,
//! reading one is a download. A call that consists of several takes as long as these may take together, and
//! following a [`Job`] takes as long as the job.
//!
//! # Logging
//!
//! The `log` crate gets one debug line per request of [`HttpBackend`] and per call of [`LocalBackend`], never
//! a token, the value of a header or a body. (ureq logs the bytes that it sends and receives at trace
//! level; the token and your headers are added below that.) The library prints nothing and installs no
//! signal handlers. It reads the usual proxy variables, the state, runtime and temporary directories, and what a
//! local command inherits from the environment. `DockerBackend` reads `DOCKER_HOST`, `DOCKER_CONTEXT` and
//! `DOCKER_CONFIG`.
//!
//! # Features
//!
//! | feature | default | purpose |
//! | --- | --- | --- |
//! | `local` | yes | [`LocalBackend`] |
//! | `tls` | yes | https, with the public roots compiled in or a private CA |
//! | `platform-roots` | no | https trusts the operating system's certificates |
//! | `server` | no | `server::Server` |
//! | `conformance` | no | `conformance::Conformance` |
//! | `docker` | no | `DockerBackend` |
//! | `kubernetes` | no | `KubernetesBackend` |
//! | `agent` | no | `agent::Agent` |
//! | `cli` | no | the command `noxrc` |
//!
//! # Not supported
//!
//! Async; terminals and port forwarding, which NoxRunner v1 does not have; Windows.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs)]
#![warn(
    clippy::excessive_nesting,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic fails the test"))]

#[cfg(not(unix))]
compile_error!(
    "noxrunner supports Unix systems only: it unpacks archives with Unix directory descriptors"
);

#[cfg(all(feature = "agent", target_os = "linux"))]
pub mod agent;
mod archive;
mod backend;
mod cancel;
mod capped_stream;
mod chunk;
mod client;
mod command;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "docker")]
mod docker;
#[cfg(any(feature = "docker", feature = "kubernetes"))]
mod engine;
mod error;
mod exact_reader;
mod exec;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod guide;
mod http;
mod jobs;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod language;
mod lease;
mod lenient_json;
#[cfg(feature = "local")]
mod local;
mod os;
mod output;
mod printable;
mod progress;
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
mod quantity;
mod sandbox;
mod sandbox_path;
mod script;
#[cfg(feature = "server")]
pub mod server;
mod session_id;
mod spec;
mod stdin;
mod upload;
mod validate;

pub use archive::{Contents, Extract, Extraction, Pack, Refusal, Symlinks};
pub use backend::Backend;
pub use cancel::{Cancel, CancelGuard};
pub use chunk::{Chunk, Stream};
pub use client::{Client, ClientBuilder};
pub use command::{Command, DEFAULT_COMMAND_TIMEOUT, IntoCommand, MAX_ARGUMENT};
#[cfg(feature = "docker")]
pub use docker::{DockerBackend, DockerBackendBuilder, Pull, PullProgress};
pub use error::{Error, ErrorKind, MAX_ERROR_BODY, Result};
pub use files::{Entry, EntryKind, Files, MAX_READ};
pub use http::{HttpBackend, HttpBackendBuilder, Retry};
pub use jobs::{Job, JobInfo, JobOutput, JobState, JobStatus};
#[cfg(feature = "kubernetes")]
pub use kubernetes::{KubernetesBackend, KubernetesBackendBuilder, PodAccess};
pub use language::Language;
pub use lease::{DEFAULT_LEASE_TTL, Lease};
#[cfg(feature = "local")]
pub use local::{Enforced, Isolation, Limit, Limits, LocalBackend, LocalBackendBuilder};
pub use output::{KilledBy, Output, Success, Usage};
pub use printable::printable;
pub use progress::UploadProgress;
pub use sandbox::Sandbox;
pub use sandbox_path::WORKSPACE;
pub use script::shell_quote;
pub use session_id::{MAX_SESSION_ID, SessionId};
pub use spec::{DEFAULT_TTL, SandboxInfo, SandboxSpec};
pub use stdin::Stdin;
pub use upload::Upload;

/// The README's examples are tests.
#[cfg(all(doctest, feature = "local"))]
#[doc = include_str!("../README.md")]
mod readme {}
