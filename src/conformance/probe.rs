//! How the checks ask.

use std::io::Read;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Call, is_no_answer};
use crate::archive::{Encoder, Entries, Extract, Kind, add_directory, add_file, add_link};
use crate::backend::http::{HttpBackend, Place, RawAnswer};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, one_line};

/// How long a call may take that runs no command for long.
const CALL_TIME: Duration = Duration::from_secs(30);

/// How long a sandbox may take until commands run in it.
const READY_TIME: Duration = Duration::from_secs(60);

/// How long the sandboxes would outlive this process, if it were killed.
const TTL: u64 = 120;

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

pub(super) struct Probe<'a> {
    http: &'a HttpBackend,
    cancel: &'a Cancel,
    prefix: String,
    /// Sandboxes to be deleted in the end.
    made: Mutex<Vec<String>>,
    shared: OnceLock<std::result::Result<String, String>>,
    missing: OnceLock<Vec<Call>>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(http: &'a HttpBackend, cancel: &'a Cancel) -> Probe<'a> {
        Probe {
            http,
            cancel,
            prefix: format!("conformance-{:08x}", crate::unique() as u32),
            made: Mutex::default(),
            shared: OnceLock::new(),
            missing: OnceLock::new(),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Sleeps, unless it is cancelled.
    pub(super) fn sleep(&self, time: Duration) {
        self.cancel.sleep(time);
    }

    /// That something answers at all, and lets us in.
    pub(super) fn reach(&self) -> Result<()> {
        let time = CALL_TIME;
        self.http
            .raw("GET", Place::Health, None, time, self.cancel)?;
        let nobody = self.id("nobody");
        let place = Place::Call(&nobody, "exec");
        let body = exec_body(&json!({"cmd": ["true"]}));
        let body = Some(("application/json", &*body));
        let answer = self.http.raw("POST", place, body, time, self.cancel);
        match answer {
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                let text = format!("server answered {}: it wants another token", answer.status);
                Err(Error::new(ErrorKind::Unauthorized, text).with_status(answer.status))
            }
            Ok(_) => Ok(()),
            Err(e) if is_no_answer(&e) => Err(e),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A number that is nowhere else on the backend.
    pub(super) fn number(&self) -> u32 {
        100_000_000 + (crate::unique() % 800_000_000) as u32
    }

    fn made(&self) -> MutexGuard<'_, Vec<String>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ask(
        &self,
        method: &'static str,
        place: Place<'_>,
        body: Option<(&'static str, &[u8])>,
    ) -> Result<RawAnswer> {
        self.http.raw(method, place, body, CALL_TIME, self.cancel)
    }

    pub(super) fn put(&self, id: &str, body: &[u8]) -> Result<RawAnswer> {
        // Before it is sent: it may be made though no answer comes.
        self.made().push(id.to_owned());
        let body = Some(("application/json", body));
        self.ask("PUT", Place::Sandbox(id), body)
    }

    pub(super) fn create(&self, id: &str, ttl: u64) -> std::result::Result<RawAnswer, Miss> {
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

    fn wait_until_ready(&self, id: &str) {
        let end = Instant::now() + READY_TIME;
        while Instant::now() < end && !self.is_cancelled() {
            match self.exec(id, &json!({"cmd": ["true"]})) {
                // As a pod says that it is not there yet.
                Ok(answer) if matches!(answer.status, 404 | 409 | 503) => {}
                _ => return,
            }
            self.sleep(Duration::from_millis(500));
        }
    }

    /// The sandbox of the checks that do nothing to it.
    pub(super) fn shared(&self) -> std::result::Result<&str, Miss> {
        let shared = self.shared.get_or_init(|| {
            self.fresh("shared").map_err(|miss| match miss {
                Miss::Failed(why) | Miss::Skipped(why) => why,
            })
        });
        match shared {
            Ok(id) => Ok(id),
            Err(why) => Err(Miss::Skipped(format!("there is no sandbox to ask: {why}"))),
        }
    }

    /// That the backend has these calls.
    pub(super) fn need(&self, calls: &[Call]) -> std::result::Result<(), Miss> {
        if calls.is_empty() {
            return Ok(());
        }
        let shared = self.shared()?;
        let missing = self.missing.get_or_init(|| self.find_missing(shared));
        match calls.iter().find(|call| missing.contains(call)) {
            None => Ok(()),
            Some(call) => Err(Miss::Skipped(format!(
                "the backend has no {}, as a minimal one",
                format!("{call:?}").to_lowercase()
            ))),
        }
    }

    fn find_missing(&self, id: &str) -> Vec<Call> {
        let asked = [
            (
                Call::Touch,
                self.ask("POST", Place::Call(id, "touch"), None),
            ),
            (Call::Upload, self.upload(id, "/workspace", &[])),
            (
                Call::Download,
                self.ask("GET", Place::Download(id, "/workspace"), None),
            ),
        ];
        let mut missing = Vec::new();
        for (call, answer) in asked {
            if answer.is_ok_and(|answer| matches!(answer.status, 404 | 405 | 501)) {
                missing.push(call);
            }
        }
        missing
    }

    /// As it is; without a timeout of its own it has one of some seconds.
    pub(super) fn exec(&self, id: &str, body: &Value) -> Result<RawAnswer> {
        let seconds = body["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT);
        let bytes = exec_body(body);
        let body = Some(("application/json", &*bytes));
        let time = Duration::from_secs(seconds + 10);
        self.http
            .raw("POST", Place::Call(id, "exec"), body, time, self.cancel)
    }

    pub(super) fn run(&self, id: &str, body: &Value) -> std::result::Result<Ran, Miss> {
        let started = Instant::now();
        let answer = self.exec(id, body)?;
        let took = started.elapsed();
        let failed = || Miss::Failed(format!("exec: {}", answer.seen()));
        if answer.status != 200 {
            return Err(failed());
        }
        let value: Value = serde_json::from_slice(&answer.body).map_err(|_| failed())?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Ok(Ran {
            exit_code: value["exitCode"].as_i64().ok_or_else(failed)?,
            stdout: text("stdout"),
            stderr: text("stderr"),
            timed_out: value["timedOut"] == true,
            took,
        })
    }

    /// A command in the shared sandbox.
    pub(super) fn command(&self, cmd: &[&str]) -> std::result::Result<Ran, Miss> {
        self.run(self.shared()?, &json!({"cmd": cmd}))
    }

    pub(super) fn sh(&self, line: &str) -> std::result::Result<Ran, Miss> {
        self.command(&["sh", "-c", line])
    }

    pub(super) fn upload(&self, id: &str, dest: &str, entries: &[Entry]) -> Result<RawAnswer> {
        self.upload_bytes(id, dest, &pack(entries)?)
    }

    pub(super) fn upload_bytes(&self, id: &str, dest: &str, bytes: &[u8]) -> Result<RawAnswer> {
        let body = Some(("application/x-tar", bytes));
        self.ask("POST", Place::Upload(id, dest), body)
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
        let answer = self.ask("GET", Place::Download(self.shared()?, src), None)?;
        match answer.status {
            200 => Ok(unpack(&answer.body)?),
            _ => Err(Miss::Failed(format!("download: {}", answer.seen()))),
        }
    }

    /// Deletes what was made, and answers with what stays.
    pub(super) fn clean_up(&self) -> Vec<String> {
        let mut made = std::mem::take(&mut *self.made());
        made.sort();
        made.dedup();
        // What was cancelled is cleaned up as well.
        let cancel = Cancel::new();
        made.retain(|id| {
            let answer = self
                .http
                .raw("DELETE", Place::Sandbox(id), None, CALL_TIME, &cancel);
            !answer.is_ok_and(|answer| matches!(answer.status, 200..=299 | 404))
        });
        made
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.clean_up();
    }
}

fn exec_body(body: &Value) -> Vec<u8> {
    let mut body = body.clone();
    if body["timeoutSeconds"].is_null() {
        body["timeoutSeconds"] = json!(TIMEOUT);
    }
    body.to_string().into_bytes()
}

impl RawAnswer {
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
    Entries::for_each(archive, Extract::new().limits(), |entry, content| {
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
    })?;
    Ok(entries)
}
