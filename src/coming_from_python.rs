//! The names of the Python package `noxrunner` 2.0.0, and what they are here.
//!
//! | Python | here |
//! | --- | --- |
//! | `NoxRunnerClient(base_url)` | [`Client::new`](crate::Client::new)`(base_url)?` |
//! | `NoxRunnerClient(base_url, timeout=5)` | [`Client::builder`](crate::Client::builder)`(base_url).timeout(secs(5)).build()?` |
//! | `NoxRunnerClient(local_test=True)` | [`Client::local`](crate::Client::local)`()?`, which isolates |
//! | `client.health_check()` | [`client.is_healthy()?`](crate::Client::is_healthy), [`client.health()?`](crate::Client::health) |
//! | `client.create_sandbox(id, ttl_seconds=900, image=…, cpu_limit=…, memory_limit=…, ephemeral_storage_limit=…)` | [`client.create`](crate::Client::create)`(id, `[`SandboxSpec`](crate::SandboxSpec)`::new().ttl(…).image(…).cpu(…).memory(…).storage(…))?` |
//! | `client.touch(id)` | [`sandbox.touch()?`](crate::Sandbox::touch) |
//! | `client.exec(id, cmd, workdir=…, env=…, timeout_seconds=…)` | [`sandbox.exec`](crate::Sandbox::exec)`(`[`Command`](crate::Command)`::from(cmd).workdir(…).envs(…).timeout(…))?` |
//! | `client.exec_shell(id, line)` | `sandbox.exec(`[`Command::shell`](crate::Command::shell)`(line))?` |
//! | `client.exec_shell(id, line, shell="bash")` | `sandbox.exec(`[`Command::bash`](crate::Command::bash)`(line))?` |
//! | `result["exitCode"]`, `["stdout"]`, `["stderr"]`, `["durationMs"]` | [`out.exit_code()`](crate::Output::exit_code), [`stdout()`](crate::Output::stdout), [`stderr()`](crate::Output::stderr), [`duration()`](crate::Output::duration) |
//! | `client.upload_files(id, {path: text}, dest=…)` | [`sandbox.upload`](crate::Sandbox::upload)`([(path, text)], dest)?` |
//! | `client.download_files(id, src)` | [`sandbox.download_archive(src)?`](crate::Sandbox::download_archive), a reader |
//! | `client.download_workspace(id, dir, src)` | [`sandbox.download_dir(src, dir)?`](crate::Sandbox::download_dir) |
//! | `client.delete_sandbox(id)` | [`sandbox.delete()?`](crate::Sandbox::delete) |
//! | `client.wait_for_pod_ready(id, timeout=30)` | [`sandbox.wait_until_ready(secs(30))?`](crate::Sandbox::wait_until_ready) |
//! | `NoxRunnerError`, `NoxRunnerHTTPError(status_code, message, response_body)` | [`Error`](crate::Error): [`kind()`](crate::Error::kind), [`status()`](crate::Error::status), [`response_body()`](crate::Error::response_body) |
//! | `class Mine(SandboxBackend)` | `impl `[`Backend`](crate::Backend)` for Mine` |
//!
//! The session id is given once, to the handle: `let sandbox = client.sandbox(id)?` sends nothing.
//!
//! Different on purpose:
//!
//! - A command may run as long as its own timeout says. The Python client gives up after its own
//!   30 s, whatever the command was given.
//! - Session ids are percent-encoded: `a/b` and `a b` are ids like any other.
//! - Nothing is printed, and no command is refused by a list of bad words.
//! - A failed health check says why.
//!
//! # Example
//!
//! ```
//! # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
//! use noxrunner::{Command, SandboxSpec};
//!
//! // client.create_sandbox("s1")
//! let sandbox = client.create("s1", SandboxSpec::new())?;
//! // client.exec_shell("s1", "echo $X", env={"X": "1"})["stdout"]
//! assert_eq!(sandbox.exec(Command::shell("echo $X").env("X", "1"))?.stdout(), "1\n");
//! # Ok::<_, noxrunner::Error>(())
//! ```
