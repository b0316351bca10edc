//! Run commands and move files in sandboxes behind the NoxRunner v1 REST API: blocking, few
//! dependencies, no async runtime, and honest about what happened.
//!
//! ```
//! use noxrunner::{Client, Command, SandboxSpec};
//! use std::time::Duration;
//!
//! // Sandboxes on this machine. Or Client::new("https://sandboxes.example.com")?
//! let client = Client::local()?;
//! let sandbox = client.create("demo", SandboxSpec::new().ttl(Duration::from_secs(1800)))?;
//!
//! sandbox.write("in.txt", "3\n1\n2\n")?;
//! let sort = Command::shell("sort in.txt | tee out.txt").timeout(Duration::from_secs(60));
//! assert_eq!(sandbox.exec(sort)?.check()?.stdout(), "1\n2\n3\n");
//! assert_eq!(sandbox.read("out.txt")?, b"1\n2\n3\n");
//!
//! assert!(sandbox.delete()?);
//! # Ok::<_, noxrunner::Error>(())
//! ```
//!
//! # The nouns
//!
//! - [`Client`] makes sandboxes: [`create`](Client::create), [`lease`](Client::lease),
//!   [`sandbox`](Client::sandbox), [`health`](Client::health). Its settings are in [`ClientBuilder`].
//! - [`Sandbox`] is a handle to one: [`exec`](Sandbox::exec), [`run_code`](Sandbox::run_code),
//!   [`spawn`](Sandbox::spawn), [`write`](Sandbox::write), [`read`](Sandbox::read), [`list`](Sandbox::list),
//!   [`upload_dir`](Sandbox::upload_dir), [`download_dir`](Sandbox::download_dir),
//!   [`touch`](Sandbox::touch), [`delete`](Sandbox::delete).
//! - [`Lease`] is a sandbox of one's own: kept alive while it is held, and deleted then.
//! - [`Command`] and [`Output`]: what is run and what came of it. [`Language`] and [`Stdin`]: what it is
//!   given as files. [`shell_quote`]: what goes into a line for a shell.
//! - [`Job`]: a command that nobody has to wait for, with live output.
//! - [`Files`], [`Contents`] and [`Extract`]: what is uploaded, and how a download is unpacked.
//! - [`Backend`] is NoxRunner v1 as seven methods; [`HttpBackend`] and [`LocalBackend`] are two, and
//!   yours is as good.
//! - `server`, with the feature `serve`: a v1 server over any backend. `conformance`, with the feature of
//!   that name: whether a server keeps the protocol.
//! - [`Error`] and its [`ErrorKind`].
//!
//! The [guides](guide) teach: [getting started](guide::getting_started), [files](guide::files),
//! [long jobs](guide::jobs), [the local sandbox](guide::local), [running against a
//! cluster](guide::cluster), [writing a backend](guide::backends), [the protocol](guide::protocol),
//! [coming from Python](guide::coming_from_python), [troubleshooting](guide::troubleshooting).
//!
//! # Local or remote
//!
//! [`Client::new`] speaks to a server. [`Client::local`] runs commands on this machine, in namespaces of
//! their own, without rights, behind a system call filter and Landlock, with limits. That keeps mistakes,
//! curious programs and ordinary malice from this machine's files, processes, network and users. It
//! shares the kernel: a bug in that is a way out. What is world-readable in `/usr`, the kernel's version
//! and the load can be seen. It is not for hostile multi-tenant work: use a NoxRunner server or a virtual
//! machine there.
//!
//! # Errors
//!
//! A command that fails is an [`Output`] with its exit code; an [`Error`] means that the backend failed,
//! and its [`ErrorKind`] says what can be done: see [troubleshooting](guide::troubleshooting).
//!
//! [`Retry`] has the table of what is sent again. In short: everything but exec may be, since doing it
//! twice is as good as once; an exec only if it certainly was not received, or the backend refused it with
//! 503 or 429. Over a kept connection that the server closed, "certainly" means that the server's kernel
//! never confirmed a byte of the request; where the system can't say (it can on Linux), the answer is
//! [`ErrorKind::OutcomeUnknown`].
//!
//! # Time
//!
//! Every call but a transfer ends by a time known in advance, name lookup and all tries included.
//! [`exec`](Sandbox::exec): the command's timeout, rounded up to whole seconds, plus 10 s. Health,
//! create, touch and delete: [`ClientBuilder::timeout`], 30 s by default. An upload or a download
//! goes on as long as a byte moves within that time, unless [`ClientBuilder::transfer_timeout`]
//! bounds it; writing one file is an upload, reading one a download. What is made of several calls takes
//! as long as these may take together; what follows a [`Job`] takes as long as the job.
//!
//! # What it logs
//!
//! One debug line per request through the `log` crate: method, path, status, milliseconds, attempt;
//! never a token, a header's value or a body. (ureq, below it, logs the bytes that it sends and gets
//! at trace level; token and headers are put in below that.) It prints nothing, installs no signal
//! handlers, and reads of the environment only the usual proxy variables, where the user's state and
//! temporary directories are, and what a local command is given of it.
//!
//! # Features
//!
//! | feature | default | what it brings |
//! | --- | --- | --- |
//! | `local` | yes | [`LocalBackend`] |
//! | `tls` | yes | https with the public roots compiled in, or a private CA as PEM |
//! | `platform-roots` | no | https trusts what the operating system trusts |
//! | `serve` | no | `server::Server` |
//! | `conformance` | no | `conformance::Conformance` |
//! | `cli` | no | the command `noxrc` |
//!
//! # What it does not do
//!
//! Async; streamed output, terminals and ports, which v1 does not have; Windows. Rust 1.85 or later.
#![deny(missing_docs)]
#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test stops at the first surprise")
)]

#[cfg(not(unix))]
compile_error!(
    "noxrunner builds on Unix systems only: its archives are unpacked with Unix directory descriptors"
);

mod archive;
mod backend;
mod cancel;
mod client;
mod command;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod exact_reader;
mod exec;
mod files;
pub mod guide;
mod http;
mod jobs;
mod language;
mod lease;
#[cfg(feature = "local")]
mod local;
mod os;
mod output;
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

pub use archive::{Contents, Extract, Extraction, Refusal};
pub use backend::Backend;
pub use cancel::{Cancel, CancelGuard};
pub use client::{Client, ClientBuilder};
pub use command::{Command, DEFAULT_COMMAND_TIMEOUT, IntoCommand, MAX_ARGUMENT};
pub use error::{Error, ErrorKind, MAX_ERROR_BODY, Result};
pub use files::{Entry, EntryKind, Files, MAX_READ};
pub use http::{HttpBackend, HttpBackendBuilder, Retry};
pub use jobs::{Job, JobInfo, JobOutput, JobState, JobStatus};
pub use language::Language;
pub use lease::{DEFAULT_LEASE_TTL, Lease};
#[cfg(feature = "local")]
pub use local::{Enforced, Isolation, Limit, Limits, LocalBackend, LocalBackendBuilder};
pub use output::{Output, Success};
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
