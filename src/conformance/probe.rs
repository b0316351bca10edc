//! How the checks ask.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, is_no_answer};
use crate::archive::{Encoder, Entries, Extract, Kind, add_directory, add_file, add_link};
use crate::cancel::Cancel;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::{Endpoint, HttpBackend, RawResponse};
use crate::sandbox::Sandbox;

/// So many calls in a row without an answer are enough.
const SILENT: u32 = 3;

/// How long it is tried to delete a sandbox of a server that is silent, and the pause between tries.
const SHORT: Duration = Duration::from_secs(2);

/// How long a sandbox may take until commands run in it.
const READY_TIME: Duration = Duration::from_secs(60);

/// How long the sandboxes would outlive this process, if it were killed, in seconds. A run takes minutes
/// where sandboxes are slow to start.
const TTL: u64 = 600;

/// How long a command may run if it is no matter of time.
const TIMEOUT: u64 = 20;

/// What was seen: as the rule says, or not.
pub(super) type Verdict = std::result::Result<String, Miss>;

pub(super) enum Miss {
    Failed(String),
    Skipped(String),
}

impl From<Error> for Miss {
    fn from(error: Error) -> Miss {
        Miss::Failed(error.to_string())
    }
}

pub(super) fn want(holds: bool, seen: impl Into<String>) -> Verdict {
    match holds {
        true => Ok(seen.into()),
        false => Err(Miss::Failed(seen.into())),
    }
}

/// As many as are wanted have to hold.
pub(super) fn all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let seen: Vec<String> = verdicts
        .into_iter()
        .collect::<std::result::Result<_, Miss>>()?;
    Ok(seen.join("; "))
}

/// What an exec answered, where that is an answer.
pub(super) struct Ran {
    pub(super) exit_code: i64,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) timed_out: bool,
    pub(super) took: Duration,
}

impl Ran {
    /// In short.
    pub(super) fn seen(&self) -> String {
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

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) mode: u32,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    File(Vec<u8>),
    Directory,
    Link(String),
    Other,
}

pub(super) fn file(name: &str, content: impl Into<Vec<u8>>) -> Entry {
    Entry {
        name: name.to_owned(),
        mode: 0o644,
        what: What::File(content.into()),
    }
}

/// What all checks of a run share.
pub(super) struct Run<'a> {
    http: &'a Arc<HttpBackend>,
    cancel: &'a Cancel,
    prefix: String,
    /// The sandbox of the checks that need none of their own, and how long it took to be ready.
    shared: OnceLock<std::result::Result<(String, Duration), String>>,
    missing: OnceLock<Vec<Call>>,
    /// How many calls in a row had no answer.
    silent: AtomicU32,
    made: Mutex<Vec<String>>,
    left_behind: Mutex<Vec<String>>,
}

/// How one check asks. The sandboxes that it makes go with it.
pub(super) struct Probe<'a> {
    run: &'a Run<'a>,
    made: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Run<'a> {
    pub(super) fn new(http: &'a Arc<HttpBackend>, cancel: &'a Cancel) -> Run<'a> {
        Run {
            http,
            cancel,
            prefix: format!("conformance-{:08x}", crate::os::random::random_u64() as u32),
            shared: OnceLock::new(),
            missing: OnceLock::new(),
            silent: AtomicU32::new(0),
            made: Mutex::default(),
            left_behind: Mutex::default(),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// That something answers at all, and lets us in.
    pub(super) fn reach(&self) -> Result<()> {
        let probe = Probe::new(self);
        probe.ask("GET", Endpoint::Health, None)?;
        let nobody = probe.nobody();
        match probe.exec(&nobody, &json!({"cmd": ["true"]})) {
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                let text = format!("server answered {}: it wants another token", answer.status);
                Err(Error::new(ErrorKind::Unauthorized, text).with_status(answer.status))
            }
            Err(e) if is_no_answer(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Deletes what the checks share, and answers with what stays of all that was made.
    pub(super) fn clean_up(&self) -> Vec<String> {
        self.delete_all(&self.made);
        std::mem::take(&mut *lock(&self.left_behind))
    }

    /// What was cancelled is cleaned up as well.
    fn delete_all(&self, made: &Mutex<Vec<String>>) {
        let mut made = std::mem::take(&mut *lock(made));
        made.sort();
        made.dedup();
        made.retain(|id| !self.delete(id));
        lock(&self.left_behind).append(&mut made);
    }

    fn delete(&self, id: &str) -> bool {
        let cancel = Cancel::new();
        let time = (self.silent.load(Ordering::Relaxed) >= SILENT).then_some(SHORT);
        for _ in 0..3 {
            let answer = self
                .http
                .send_raw("DELETE", Endpoint::Sandbox(id), None, time, &cancel);
            match answer {
                Ok(answer) if matches!(answer.status, 200..=299 | 404) => return true,
                // Not yet.
                Ok(answer) if matches!(answer.status, 409 | 429 | 503) => cancel.sleep(SHORT),
                _ => return false,
            };
        }
        false
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.delete_all(&self.made);
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.run.delete_all(&self.made);
    }
}

impl<'a> Probe<'a> {
    pub(super) fn new(run: &'a Run<'a>) -> Probe<'a> {
        Probe {
            run,
            made: Mutex::default(),
        }
    }

    /// Sleeps, unless it is cancelled.
    pub(super) fn sleep(&self, time: Duration) {
        self.run.cancel.sleep(time);
    }

    pub(super) fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.run.prefix)
    }

    /// The id of a sandbox that nobody has made. Some backends make it when they are asked about it.
    pub(super) fn nobody(&self) -> String {
        let id = self.id(&format!("nobody-{}", self.number()));
        lock(&self.made).push(id.clone());
        id
    }

    /// A number that is nowhere else on the backend.
    pub(super) fn number(&self) -> u32 {
        100_000_000 + (crate::os::random::random_u64() % 800_000_000) as u32
    }

    fn raw(
        &self,
        method: &'static str,
        place: Endpoint<'_>,
        body: Option<(&'static str, &[u8])>,
        time: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<RawResponse> {
        let silent = &self.run.silent;
        if silent.load(Ordering::Relaxed) >= SILENT {
            let text = "not asked: the server left several calls in a row without an answer";
            return Err(Error::new(ErrorKind::Timeout, text));
        }
        let answer = self.run.http.send_raw(method, place, body, time, cancel);
        match &answer {
            Err(e) if is_no_answer(e) => silent.fetch_add(1, Ordering::Relaxed),
            _ => silent.swap(0, Ordering::Relaxed),
        };
        answer
    }

    pub(super) fn ask(
        &self,
        method: &'static str,
        place: Endpoint<'_>,
        body: Option<(&'static str, &[u8])>,
    ) -> Result<RawResponse> {
        self.raw(method, place, body, None, self.run.cancel)
    }

    pub(super) fn put(&self, id: &str, body: &[u8]) -> Result<RawResponse> {
        // Before it is sent: it may be made though no answer comes.
        lock(&self.made).push(id.to_owned());
        let body = Some(("application/json", body));
        // Not to be cancelled: what is made after its deletion would stay.
        self.raw("PUT", Endpoint::Sandbox(id), body, None, &Cancel::new())
    }

    pub(super) fn create(&self, id: &str, ttl: u64) -> std::result::Result<RawResponse, Miss> {
        let answer = self.put(id, json!({"ttlSeconds": ttl}).to_string().as_bytes())?;
        match answer.status {
            200 => Ok(answer),
            _ => Err(Miss::Failed(format!("PUT: {}", answer.seen()))),
        }
    }

    /// A sandbox of the check's own.
    pub(super) fn fresh(&self, name: &str) -> std::result::Result<String, Miss> {
        let id = self.id(name);
        self.create(&id, TTL)?;
        self.wait_until_ready(&id);
        Ok(id)
    }

    pub(super) fn wait_until_ready(&self, id: &str) {
        let end = Instant::now() + READY_TIME;
        while Instant::now() < end && !self.run.is_cancelled() {
            match self.exec(id, &json!({"cmd": ["true"]})) {
                // As a pod says that it is not there yet.
                Ok(answer) if matches!(answer.status, 404 | 409 | 503) => {}
                _ => return,
            }
            self.sleep(Duration::from_millis(500));
        }
    }

    fn shared_and_ready_in(&self) -> std::result::Result<&(String, Duration), Miss> {
        let made = self.run.shared.get_or_init(|| {
            let maker = Probe::new(self.run);
            let started = Instant::now();
            let made = maker.fresh("shared");
            // It stays when its maker goes.
            lock(&self.run.made).append(&mut lock(&maker.made));
            match made {
                Ok(id) => Ok((id, started.elapsed())),
                Err(Miss::Failed(why) | Miss::Skipped(why)) => Err(why),
            }
        });
        let failed = |why: &String| Miss::Failed(format!("there is no sandbox to ask: {why}"));
        made.as_ref().map_err(failed)
    }

    /// The sandbox of the checks that do nothing to it.
    pub(super) fn shared(&self) -> std::result::Result<&str, Miss> {
        self.shared_and_ready_in().map(|(id, _)| &**id)
    }

    /// A TTL in which a sandbox is ready, and which is soon over.
    pub(super) fn short_ttl(&self) -> std::result::Result<u64, Miss> {
        let (_, ready_in) = self.shared_and_ready_in()?;
        Ok(5 + 3 * ready_in.as_secs())
    }

    /// The same through the library.
    pub(super) fn shared_sandbox(&self) -> std::result::Result<Sandbox, Miss> {
        let client = Client::with_backend(Arc::clone(self.run.http));
        Ok(client.sandbox(self.shared()?)?)
    }

    /// That the backend has these calls.
    pub(super) fn need(&self, calls: &[Call]) -> std::result::Result<(), Miss> {
        if calls.is_empty() {
            return Ok(());
        }
        let shared = self.shared()?;
        let missing = self.run.missing.get_or_init(|| self.find_missing(shared));
        match calls.iter().find(|call| missing.contains(call)) {
            None => Ok(()),
            Some(call) => Err(Miss::Skipped(format!(
                "the backend has no {}, as a minimal one",
                format!("{call:?}").to_lowercase()
            ))),
        }
    }

    /// What is answered as a path that is not there.
    fn find_missing(&self, id: &str) -> Vec<Call> {
        let unknown = self.ask("GET", Endpoint::Unknown, None);
        let unknown = unknown.map_or(404, |answer| answer.status);
        let asked = [
            (Call::Touch, self.touch(id)),
            // First, so that there is something to download.
            (
                Call::Upload,
                self.upload(id, "/workspace", &[file("nx-probe", "x")]),
            ),
            (
                Call::Download,
                self.ask("GET", Endpoint::Download(id, "/workspace"), None),
            ),
        ];
        let is_missing = |status| matches!(status, 404 | 405 | 501) || status == unknown;
        let missing = asked.into_iter().filter_map(|(call, answer)| {
            let status = answer.ok()?.status;
            (status >= 400 && is_missing(status)).then_some(call)
        });
        missing.collect()
    }

    pub(super) fn touch(&self, id: &str) -> Result<RawResponse> {
        self.ask("POST", Endpoint::Call(id, "touch"), Some(("", b"")))
    }

    /// As it is; without a timeout of its own it has one of some seconds.
    pub(super) fn exec(&self, id: &str, body: &Value) -> Result<RawResponse> {
        let seconds = body["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT);
        let bytes = exec_body(body);
        let body = Some(("application/json", &*bytes));
        let time = Some(Duration::from_secs(seconds + 10));
        let place = Endpoint::Call(id, "exec");
        self.raw("POST", place, body, time, self.run.cancel)
    }

    pub(super) fn run(&self, id: &str, body: &Value) -> std::result::Result<Ran, Miss> {
        let started = Instant::now();
        let answer = self.exec(id, body)?;
        let took = started.elapsed();
        let failed = || Miss::Failed(format!("exec: {}", answer.seen()));
        if answer.status != 200 {
            return Err(failed());
        }
        let said: ExecAnswer = serde_json::from_slice(&answer.body).map_err(|_| failed())?;
        Ok(Ran {
            exit_code: said.exit_code,
            stdout: said.stdout,
            stderr: said.stderr,
            timed_out: said.timed_out,
            took,
        })
    }

    /// A command that makes ready what a check asks about. Where the image can't, nothing is said
    /// about the protocol.
    pub(super) fn set_up(&self, id: &str, line: &str) -> std::result::Result<Ran, Miss> {
        let ran = self.run(id, &json!({"cmd": ["sh", "-c", line]}))?;
        let refused = ["ermission denied", "Read-only file system", "not found"];
        let can_not = |text: &&str| ran.stderr.contains(*text);
        match ran.exit_code {
            0 => Ok(ran),
            126 | 127 => Err(Miss::Skipped(ran.seen())),
            _ if refused.iter().any(can_not) => Err(Miss::Skipped(ran.seen())),
            _ => Err(Miss::Failed(ran.seen())),
        }
    }

    /// A command in the shared sandbox.
    pub(super) fn command(&self, cmd: &[&str]) -> std::result::Result<Ran, Miss> {
        self.run(self.shared()?, &json!({"cmd": cmd}))
    }

    pub(super) fn sh(&self, line: &str) -> std::result::Result<Ran, Miss> {
        self.command(&["sh", "-c", line])
    }

    pub(super) fn upload(&self, id: &str, dest: &str, entries: &[Entry]) -> Result<RawResponse> {
        self.upload_bytes(id, dest, &pack(entries)?)
    }

    pub(super) fn upload_bytes(&self, id: &str, dest: &str, bytes: &[u8]) -> Result<RawResponse> {
        let body = Some(("application/x-tar", bytes));
        self.ask("POST", Endpoint::Upload(id, dest), body)
    }

    /// What comes back of what went there, of the shared sandbox.
    pub(super) fn round_trip(
        &self,
        dest: &str,
        entries: &[Entry],
    ) -> std::result::Result<Vec<Entry>, Miss> {
        let id = self.shared()?;
        let answer = self.upload(id, dest, entries)?;
        if !matches!(answer.status, 200..=299) {
            return Err(Miss::Failed(format!("upload: {}", answer.seen())));
        }
        self.download(dest)
    }

    pub(super) fn download(&self, src: &str) -> std::result::Result<Vec<Entry>, Miss> {
        let answer = self.ask("GET", Endpoint::Download(self.shared()?, src), None)?;
        match answer.status {
            200 => Ok(unpack(&answer.body)?),
            _ => Err(Miss::Failed(format!("download: {}", answer.seen()))),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecAnswer {
    exit_code: i64,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    #[serde(default)]
    timed_out: bool,
}

fn exec_body(body: &Value) -> Vec<u8> {
    let mut body = body.clone();
    if body["timeoutSeconds"].is_null() {
        body["timeoutSeconds"] = json!(TIMEOUT);
    }
    body.to_string().into_bytes()
}

impl RawResponse {
    /// In short.
    pub(super) fn seen(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let cut: String = text.chars().take(120).collect();
        match cut.is_empty() {
            true => format!("answered {}", self.status),
            false => format!("answered {} {:?}", self.status, one_line(&cut)),
        }
    }
}

fn pack(entries: &[Entry]) -> Result<Vec<u8>> {
    /// Any time in the past.
    const MTIME: u64 = 1_700_000_000;
    let failed = |e| Error::io("cannot make an archive", e);
    let mut encoder = Encoder::new(b"");
    for Entry { name, mode, what } in entries {
        let name = name.as_bytes();
        match what {
            What::File(content) => {
                let size = content.len() as u64;
                add_file(&mut encoder, name, *mode, MTIME, size, &mut &**content)
            }
            What::Directory => add_directory(&mut encoder, name, *mode, MTIME),
            What::Link(target) => add_link(&mut encoder, name, target.as_bytes(), MTIME),
            What::Other => Ok(()),
        }
        .map_err(failed)?;
    }
    let mut archive = Vec::new();
    encoder
        .finish()?
        .upload()?
        .read_to_end(&mut archive)
        .map_err(failed)?;
    Ok(archive)
}

/// Names without `./` and the slash of a directory; the directory itself is left out.
pub(super) fn unpack(archive: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    Entries::for_each(
        archive,
        Extract::new()
            .max_entries(10_000)
            .max_bytes(64 << 20)
            .limits(),
        |entry, content| {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let name = name.trim_start_matches("./").trim_end_matches('/');
            if matches!(name, "" | ".") {
                return Ok(());
            }
            let what = match &entry.kind {
                Kind::File => {
                    let mut bytes = Vec::new();
                    let read = content.read_to_end(&mut bytes);
                    read.map_err(|e| Error::io("cannot read the archive", e))?;
                    What::File(bytes)
                }
                Kind::Directory => What::Directory,
                Kind::Symlink(target) => What::Link(String::from_utf8_lossy(target).into_owned()),
                _ => What::Other,
            };
            entries.push(Entry {
                name: name.to_owned(),
                mode: entry.mode,
                what,
            });
            Ok(())
        },
    )?;
    Ok(entries)
}
