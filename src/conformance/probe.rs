//! Sending requests for checks, and cleaning up after them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::entries::{ArchiveEntry, file, pack, unpack};
use super::level::OptionalCall;
use super::verdict::{NotPassed, is_no_response};
use crate::backend::wire::{ARCHIVE, ExecResponse, JSON};
use crate::cancel::Cancel;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::{Endpoint, HttpBackend, RawResponse};
use crate::os::random::random_u64;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::script::SHELL;

/// Number of consecutive calls without a response after which no more are made.
const MAX_UNANSWERED: u32 = 3;

/// Pause after a 429. A limit of the rate breaks no rule.
const RATE_LIMIT_PAUSE: Duration = Duration::from_millis(500);

/// Maximum number of 429 responses to a request.
const MAX_REFUSED: u32 = 120;

/// Timeout of deleting a sandbox of a server that does not respond, and the pause between attempts.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time until a sandbox is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// TTL of the sandboxes, in seconds. A run takes minutes if sandboxes are slow to start.
const TTL: u64 = 600;

/// Default timeout of a command, in seconds.
const TIMEOUT: u64 = 20;

type Checked<T> = std::result::Result<T, NotPassed>;

/// The result of an exec.
pub(super) struct ExecResult {
    pub(super) exit_code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) timed_out: bool,
    pub(super) took: Duration,
}

impl ExecResult {
    pub(super) fn summary(&self) -> String {
        let short = |text: &str| {
            let cut: String = text.chars().take(60).collect();
            format!("{cut:?}")
        };
        let mut seen = format!("exit code {}", self.exit_code);
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                seen.push_str(&format!(", {name} {}", short(text)));
            }
        }
        seen
    }
}

/// State that all checks of a run share.
pub(super) struct RunState<'a> {
    http: &'a Arc<HttpBackend>,
    cancel: &'a Cancel,
    prefix: String,
    /// The sandbox of the checks that can share one, and how long it took to become ready.
    shared: OnceLock<std::result::Result<(String, Duration), String>>,
    missing: OnceLock<Vec<OptionalCall>>,
    /// Number of consecutive calls without a response.
    unanswered: AtomicU32,
    /// Sandboxes to delete at the end of the run.
    created: Mutex<Vec<String>>,
    left_behind: Mutex<Vec<String>>,
}

/// Sends the requests of a check. Dropping it deletes the sandboxes that it created.
pub(super) struct Probe<'a> {
    run: &'a RunState<'a>,
    created: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> RunState<'a> {
    pub(super) fn new(http: &'a Arc<HttpBackend>, cancel: &'a Cancel) -> RunState<'a> {
        RunState {
            http,
            cancel,
            prefix: format!("conformance-{:08x}", random_u64() as u32),
            shared: OnceLock::new(),
            missing: OnceLock::new(),
            unanswered: AtomicU32::new(0),
            created: Mutex::default(),
            left_behind: Mutex::default(),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Fails if the server does not respond or refuses the token.
    pub(super) fn check_access(&self) -> Result<()> {
        let probe = Probe::new(self);
        probe.send("GET", Endpoint::Health, None)?;
        match probe.exec(&probe.unknown_id(), &json!({"cmd": ["true"]})) {
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                let text = format!("server answered {}: it refuses the token", answer.status);
                Err(Error::new(ErrorKind::Unauthorized, text).with_status(answer.status))
            }
            Err(e) if is_no_response(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Deletes the shared sandboxes, and returns the ids of all that could not be deleted.
    pub(super) fn clean_up(&self) -> Vec<String> {
        self.delete_all(&self.created);
        std::mem::take(&mut *lock(&self.left_behind))
    }

    /// Deletes sandboxes, also after an interruption.
    fn delete_all(&self, created: &Mutex<Vec<String>>) {
        let mut ids = std::mem::take(&mut *lock(created));
        ids.sort();
        ids.dedup();
        ids.retain(|id| !self.delete(id));
        lock(&self.left_behind).append(&mut ids);
    }

    fn delete(&self, id: &str) -> bool {
        let cancel = Cancel::new();
        let time =
            (self.unanswered.load(Ordering::Relaxed) >= MAX_UNANSWERED).then_some(DELETE_TIMEOUT);
        for _ in 0..3 {
            let answer = self
                .http
                .send_raw("DELETE", Endpoint::Sandbox(id), None, time, &cancel);
            match answer {
                Ok(answer) if matches!(answer.status, 200..=299 | 404) => return true,
                // Busy: try again.
                Ok(answer) if matches!(answer.status, 409 | 429 | 503) => {
                    cancel.sleep(DELETE_TIMEOUT)
                }
                _ => return false,
            };
        }
        false
    }
}

impl Drop for RunState<'_> {
    fn drop(&mut self) {
        self.delete_all(&self.created);
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.run.delete_all(&self.created);
    }
}

impl<'a> Probe<'a> {
    pub(super) fn new(run: &'a RunState<'a>) -> Probe<'a> {
        Probe {
            run,
            created: Mutex::default(),
        }
    }

    /// Sleeps until the time has passed or the run is interrupted.
    pub(super) fn sleep(&self, time: Duration) {
        self.run.cancel.sleep(time);
    }

    pub(super) fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.run.prefix)
    }

    /// Returns the id of a sandbox that does not exist. It is deleted at the end, because some backends
    /// create unknown sandboxes.
    pub(super) fn unknown_id(&self) -> String {
        let id = self.id(&format!("unknown-{}", self.number()));
        lock(&self.created).push(id.clone());
        id
    }

    /// Returns a number that occurs nowhere else on the backend.
    pub(super) fn number(&self) -> u32 {
        100_000_000 + (random_u64() % 800_000_000) as u32
    }

    fn send_with(
        &self,
        method: &'static str,
        endpoint: Endpoint<'_>,
        body: Option<(&'static str, &[u8])>,
        time: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<RawResponse> {
        let unanswered = &self.run.unanswered;
        if unanswered.load(Ordering::Relaxed) >= MAX_UNANSWERED {
            let text = "not sent: the server did not respond to several consecutive calls";
            return Err(Error::new(ErrorKind::Timeout, text));
        }
        let mut refused = 0;
        loop {
            let answer = self.run.http.send_raw(method, endpoint, body, time, cancel);
            match &answer {
                Err(e) if is_no_response(e) => unanswered.fetch_add(1, Ordering::Relaxed),
                _ => unanswered.swap(0, Ordering::Relaxed),
            };
            let is_limited = answer.as_ref().is_ok_and(|answer| answer.status == 429);
            if !is_limited || refused == MAX_REFUSED || !cancel.sleep(RATE_LIMIT_PAUSE) {
                return answer;
            }
            refused += 1;
        }
    }

    pub(super) fn send(
        &self,
        method: &'static str,
        endpoint: Endpoint<'_>,
        body: Option<(&'static str, &[u8])>,
    ) -> Result<RawResponse> {
        self.send_with(method, endpoint, body, None, self.run.cancel)
    }

    pub(super) fn send_create(&self, id: &str, body: &[u8]) -> Result<RawResponse> {
        // Before sending: a request without a response may have created the sandbox.
        lock(&self.created).push(id.to_owned());
        let body = Some((JSON, body));
        // Not cancellable: a sandbox that is created after its deletion would remain.
        self.send_with("PUT", Endpoint::Sandbox(id), body, None, &Cancel::new())
    }

    pub(super) fn create(&self, id: &str, ttl: u64) -> Checked<RawResponse> {
        let answer = self.send_create(id, json!({"ttlSeconds": ttl}).to_string().as_bytes())?;
        match answer.status {
            200 => Ok(answer),
            _ => Err(NotPassed::Failed(format!("PUT: {}", answer.summary()))),
        }
    }

    /// Creates a sandbox for this check.
    pub(super) fn create_sandbox(&self, name: &str) -> Checked<String> {
        let id = self.id(name);
        self.create(&id, TTL)?;
        self.wait_until_ready(&id);
        Ok(id)
    }

    pub(super) fn wait_until_ready(&self, id: &str) {
        let end = Instant::now() + READY_TIMEOUT;
        while Instant::now() < end && !self.run.is_cancelled() {
            match self.exec(id, &json!({"cmd": ["true"]})) {
                // The sandbox is starting.
                Ok(answer) if matches!(answer.status, 404 | 409 | 503) => {}
                _ => return,
            }
            self.sleep(Duration::from_millis(500));
        }
    }

    /// Returns the shared sandbox, and how long it took to become ready. Creates it the first time.
    fn shared_and_start_time(&self) -> Checked<&(String, Duration)> {
        let shared = self.run.shared.get_or_init(|| {
            let creator = Probe::new(self.run);
            let started = Instant::now();
            let created = creator.create_sandbox("shared");
            // Deleted with the run, not with its creator.
            lock(&self.run.created).append(&mut lock(&creator.created));
            match created {
                Ok(id) => Ok((id, started.elapsed())),
                Err(NotPassed::Failed(why) | NotPassed::Skipped(why)) => Err(why),
            }
        });
        let failed = |why: &String| NotPassed::Failed(format!("no sandbox to check: {why}"));
        shared.as_ref().map_err(failed)
    }

    /// Returns the sandbox of the checks that can share one.
    pub(super) fn shared(&self) -> Checked<&str> {
        self.shared_and_start_time().map(|(id, _)| &**id)
    }

    /// Returns a short TTL, in seconds, in which a sandbox becomes ready.
    pub(super) fn short_ttl(&self) -> Checked<u64> {
        let (_, start_time) = self.shared_and_start_time()?;
        Ok(5 + 3 * start_time.as_secs())
    }

    /// Returns the shared sandbox as a handle of the library.
    pub(super) fn shared_sandbox(&self) -> Checked<Sandbox> {
        let client = Client::with_backend(Arc::clone(self.run.http));
        Ok(client.sandbox(self.shared()?)?)
    }

    /// Skips the check if the backend does not implement these calls.
    pub(super) fn require(&self, calls: &[OptionalCall]) -> Checked<()> {
        if calls.is_empty() {
            return Ok(());
        }
        let shared = self.shared()?;
        let missing = self.run.missing.get_or_init(|| self.find_missing(shared));
        match calls.iter().find(|call| missing.contains(call)) {
            None => Ok(()),
            Some(call) => Err(NotPassed::Skipped(format!(
                "the backend is minimal and does not implement {call}"
            ))),
        }
    }

    /// Finds the calls to which the server responds as to an unknown path.
    fn find_missing(&self, id: &str) -> Vec<OptionalCall> {
        let unknown = self.send("GET", Endpoint::Unknown, None);
        let unknown = unknown.map_or(404, |answer| answer.status);
        let responses = [
            (OptionalCall::Touch, self.touch(id)),
            // Before the download, so that there is something to download.
            (
                OptionalCall::Upload,
                self.upload(id, "/workspace", &[file("nx-probe", "x")]),
            ),
            (
                OptionalCall::Download,
                self.send("GET", Endpoint::Download(id, "/workspace"), None),
            ),
        ];
        let is_missing = |status| matches!(status, 404 | 405 | 501) || status == unknown;
        let missing = responses.into_iter().filter_map(|(call, answer)| {
            let status = answer.ok()?.status;
            (status >= 400 && is_missing(status)).then_some(call)
        });
        missing.collect()
    }

    pub(super) fn touch(&self, id: &str) -> Result<RawResponse> {
        self.send("POST", Endpoint::Call(id, "touch"), Some(("", b"")))
    }

    /// Sends an exec. The timeout defaults to [`TIMEOUT`].
    pub(super) fn exec(&self, id: &str, body: &Value) -> Result<RawResponse> {
        self.exec_at(Endpoint::Call(id, "exec"), body)
    }

    /// Sends an exec that accepts live output.
    pub(super) fn exec_live(&self, id: &str, body: &Value) -> Result<RawResponse> {
        self.exec_at(Endpoint::LiveExec(id), body)
    }

    fn exec_at(&self, endpoint: Endpoint<'_>, body: &Value) -> Result<RawResponse> {
        let seconds = body["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT);
        let bytes = exec_body(body);
        let body = Some((JSON, &*bytes));
        let time = Some(Duration::from_secs(seconds + 10));
        self.send_with("POST", endpoint, body, time, self.run.cancel)
    }

    pub(super) fn run(&self, id: &str, body: &Value) -> Checked<ExecResult> {
        let started = Instant::now();
        let answer = self.exec(id, body)?;
        let took = started.elapsed();
        let failed = || NotPassed::Failed(format!("exec: {}", answer.summary()));
        if answer.status != 200 {
            return Err(failed());
        }
        let response: ExecResponse<'_> =
            serde_json::from_slice(&answer.body).map_err(|_| failed())?;
        let out = Output::from(response);
        Ok(ExecResult {
            exit_code: out.exit_code(),
            stdout: out.stdout().into_owned(),
            stderr: out.stderr().into_owned(),
            timed_out: out.timed_out(),
            took,
        })
    }

    /// Runs a command that prepares a check. If the image does not allow it, the check is skipped, because
    /// that says nothing about the protocol.
    pub(super) fn set_up(&self, id: &str, line: &str) -> Checked<ExecResult> {
        let ran = self.run(id, &json!({"cmd": [SHELL, "-c", line]}))?;
        let refused = ["ermission denied", "Read-only file system", "not found"];
        let is_refused = |text: &&str| ran.stderr.contains(*text);
        match ran.exit_code {
            0 => Ok(ran),
            126 | 127 => Err(NotPassed::Skipped(ran.summary())),
            _ if refused.iter().any(is_refused) => Err(NotPassed::Skipped(ran.summary())),
            _ => Err(NotPassed::Failed(ran.summary())),
        }
    }

    /// Runs a command in the shared sandbox.
    pub(super) fn command(&self, cmd: &[&str]) -> Checked<ExecResult> {
        self.run(self.shared()?, &json!({"cmd": cmd}))
    }

    pub(super) fn sh(&self, line: &str) -> Checked<ExecResult> {
        self.command(&[SHELL, "-c", line])
    }

    pub(super) fn upload(
        &self,
        id: &str,
        dest: &str,
        entries: &[ArchiveEntry],
    ) -> Result<RawResponse> {
        self.upload_bytes(id, dest, &pack(entries)?)
    }

    pub(super) fn upload_bytes(&self, id: &str, dest: &str, bytes: &[u8]) -> Result<RawResponse> {
        let body = Some((ARCHIVE, bytes));
        self.send("POST", Endpoint::Upload(id, dest), body)
    }

    /// Uploads entries to the shared sandbox, and downloads them again.
    pub(super) fn round_trip(
        &self,
        dest: &str,
        entries: &[ArchiveEntry],
    ) -> Checked<Vec<ArchiveEntry>> {
        let id = self.shared()?;
        let answer = self.upload(id, dest, entries)?;
        if !matches!(answer.status, 200..=299) {
            return Err(NotPassed::Failed(format!("upload: {}", answer.summary())));
        }
        self.download(dest)
    }

    pub(super) fn download(&self, src: &str) -> Checked<Vec<ArchiveEntry>> {
        let answer = self.send("GET", Endpoint::Download(self.shared()?, src), None)?;
        match answer.status {
            200 => Ok(unpack(&answer.body)?),
            _ => Err(NotPassed::Failed(format!("download: {}", answer.summary()))),
        }
    }
}

fn exec_body(body: &Value) -> Vec<u8> {
    let mut body = body.clone();
    if body["timeoutSeconds"].is_null() {
        body["timeoutSeconds"] = json!(TIMEOUT);
    }
    body.to_string().into_bytes()
}

impl RawResponse {
    pub(super) fn summary(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let cut: String = text.chars().take(120).collect();
        if cut.is_empty() {
            format!("answered {}", self.status)
        } else {
            format!("answered {} {:?}", self.status, one_line(&cut))
        }
    }
}
