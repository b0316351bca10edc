//! v1 over HTTP: the seven calls, their deadlines and what they are worth repeating for.

mod base_url;
mod builder;
mod retry;
mod socket;
mod transport;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::base_url::BaseUrl;
pub use self::builder::ClientBuilder;
use self::retry::Repeat;
pub use self::retry::Retry;
use self::socket::{Bounds, Reach};
use self::transport::{Answer, AnswerBody, Body, Failure, Http, Request, What};
use super::{Backend, Upload};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, Result, one_line};
use crate::exec::{Command, Output};
use crate::sandboxes::{SandboxInfo, SandboxSpec, SessionId};
use crate::time::whole_seconds;

/// How long an exec's answer may take beyond the command's own timeout.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// The largest JSON answer that is read, in bytes. Two streams of 1 MiB, each byte written as
/// `\u0000`, are 12 MiB.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// NoxRunner v1 over HTTP or HTTPS.
///
/// Keeps up to 16 idle connections; all clones of a [`Client`](crate::Client) share them.
/// Redirects are not followed. Each request is one debug line in the `log` crate: method, path,
/// status, milliseconds and attempt.
pub struct HttpBackend {
    http: Http,
    base: BaseUrl,
    timeout: Duration,
    connect_timeout: Duration,
    transfer_timeout: Option<Duration>,
    retry: Retry,
}

impl HttpBackend {
    /// The backend at `base_url`, with the default settings. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// As [`Client::new`](crate::Client::new).
    ///
    /// # Example
    ///
    /// ```
    /// let backend = noxrunner::HttpBackend::new("http://[::1]:8080/prefix/")?;
    /// assert!(format!("{backend:?}").contains("http://[::1]:8080/prefix"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn new(base_url: impl AsRef<str>) -> Result<HttpBackend> {
        HttpBackend::builder(base_url).build_backend()
    }

    /// The settings of a backend at `base_url`.
    pub fn builder(base_url: impl AsRef<str>) -> ClientBuilder {
        ClientBuilder::new(base_url.as_ref())
    }

    /// The bounds of a call that is over at a known time.
    fn call(&self, total: Duration) -> Bounds {
        let deadline = Some(Instant::now() + total);
        Bounds {
            connect: self.connect_timeout,
            stall: total,
            deadline,
        }
    }

    /// The bounds of a call that goes on as long as bytes move.
    fn transfer(&self) -> Bounds {
        let deadline = self.transfer_timeout.map(|total| Instant::now() + total);
        Bounds {
            connect: self.connect_timeout,
            stall: self.timeout,
            deadline,
        }
    }
}

/// One call of the protocol, as its tries need it.
struct Call<'a> {
    name: Name,
    method: &'static str,
    url: String,
    content_type: Option<&'static str>,
    body: CallBody<'a>,
    bounds: Bounds,
    cancel: Option<&'a Cancel>,
    /// No try begins after this.
    last_start: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Read,
    Change,
    Exec,
}

enum CallBody<'a> {
    None,
    Bytes(Vec<u8>),
    Upload(Upload<'a>),
}

impl<'a> Call<'a> {
    fn new(name: Name, method: &'static str, url: String, bounds: Bounds) -> Call<'a> {
        let last_start = bounds.deadline;
        Call {
            name,
            method,
            url,
            content_type: None,
            body: CallBody::None,
            bounds,
            cancel: None,
            last_start,
        }
    }

    fn json(mut self, body: &impl Serialize) -> Result<Call<'a>> {
        let bytes = serde_json::to_vec(body)
            .map_err(|e| Error::invalid("cannot be written as JSON").with_source(e))?;
        self.content_type = Some("application/json");
        self.body = CallBody::Bytes(bytes);
        Ok(self)
    }

    fn repeat(&self) -> Repeat {
        match (&self.body, self.name) {
            (CallBody::Upload(upload), _) if !upload.is_replayable() => Repeat::OnlyUnsent,
            (_, Name::Exec) => Repeat::Exec,
            _ => Repeat::Idempotent,
        }
    }

    fn request(&mut self) -> Result<Request<'_>> {
        let body = match &mut self.body {
            CallBody::None => Body::None,
            CallBody::Bytes(bytes) => Body::Bytes(bytes),
            CallBody::Upload(upload) => {
                upload
                    .rewind()
                    .map_err(|e| Error::io("cannot read the archive again", e))?;
                let length = upload.content_length();
                Body::Reader {
                    reader: upload,
                    length,
                }
            }
        };
        Ok(Request {
            method: self.method,
            url: &self.url,
            content_type: self.content_type,
            body,
        })
    }
}

impl HttpBackend {
    /// Sends the request until there is an answer worth keeping: any status, but those that
    /// another try may mend.
    fn send(&self, call: &mut Call<'_>) -> Result<Answer> {
        let repeat = call.repeat();
        let first = Instant::now();
        let mut attempt = 1;
        loop {
            let started = Instant::now();
            let (bounds, cancel) = (call.bounds, call.cancel);
            let result = self.http.send(call.request()?, bounds, cancel);
            self.log(call, &result, started, attempt);
            let (pause, outcome) = match result {
                Ok(answer) => {
                    let pause = retry::after_status(
                        self.retry,
                        attempt,
                        repeat,
                        answer.status,
                        retry_after(&answer),
                    );
                    (pause, Ok(answer))
                }
                Err(failure) => {
                    let pause = retry::after_failure(self.retry, attempt, repeat, &failure);
                    (pause, Err(failure))
                }
            };
            let in_time = |pause: &Duration| {
                call.last_start
                    .is_none_or(|end| Instant::now() + *pause < end)
            };
            match pause.filter(in_time) {
                Some(pause) => {
                    // Read to its end, so that the connection can be used again.
                    if let Ok(answer) = outcome {
                        let _ = read_capped(answer.body, MAX_ERROR_BODY as u64);
                    }
                    self.wait(pause, call)?;
                    attempt += 1;
                }
                None => return outcome.map_err(|e| failed(e, call.name, first.elapsed())),
            }
        }
    }

    fn wait(&self, pause: Duration, call: &Call<'_>) -> Result<()> {
        match call.cancel {
            Some(cancel) if !cancel.sleep(pause) => Err(Error::new(
                ErrorKind::OutcomeUnknown,
                "cancelled while waiting for another try",
            )),
            Some(_) => Ok(()),
            None => {
                std::thread::sleep(pause);
                Ok(())
            }
        }
    }

    fn log(
        &self,
        call: &Call<'_>,
        result: &std::result::Result<Answer, Failure>,
        started: Instant,
        attempt: u32,
    ) {
        let path = call
            .url
            .strip_prefix(&self.base.to_string())
            .unwrap_or_default();
        let millis = started.elapsed().as_millis();
        match result {
            Ok(answer) => log::debug!(
                "{} {path} {} {millis} ms, attempt {attempt}",
                call.method,
                answer.status
            ),
            Err(failure) => log::debug!(
                "{} {path} {}: {millis} ms, attempt {attempt}",
                call.method,
                failure.message
            ),
        }
    }

    /// Sends the request and reads an answer that says no more than its status.
    fn send_plain(&self, mut call: Call<'_>) -> Result<()> {
        let answer = success(self.send(&mut call)?)?;
        // The body is empty or any text; reading it frees the connection.
        read_capped(answer.body, MAX_ERROR_BODY as u64).map_err(|e| cut_off(e, call.name))?;
        Ok(())
    }

    fn send_json<T: for<'de> Deserialize<'de>>(&self, mut call: Call<'_>) -> Result<T> {
        let answer = success(self.send(&mut call)?)?;
        let status = answer.status;
        let body = read_capped(answer.body, MAX_JSON + 1).map_err(|e| cut_off(e, call.name))?;
        if body.len() as u64 > MAX_JSON {
            let text = format!("the answer is larger than {MAX_JSON} bytes");
            return Err(Error::new(ErrorKind::Protocol, text).with_status(status));
        }
        serde_json::from_slice(&body).map_err(|e| {
            // The end of a body without a length is the end of the connection, however it came.
            let kind = match call.name {
                Name::Exec if e.is_eof() => ErrorKind::OutcomeUnknown,
                _ => ErrorKind::Protocol,
            };
            let text = format!("the answer is not the JSON of NoxRunner v1: {e}");
            Error::new(kind, text)
                .with_status(status)
                .with_body(&body)
                .with_source(e)
        })
    }
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    answer
        .header("retry-after")
        .and_then(retry::parse_retry_after)
}

fn read_capped(body: AnswerBody, cap: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.take(cap).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What it means to the caller that there is no answer.
fn failed(failure: Failure, name: Name, elapsed: Duration) -> Error {
    let Failure {
        reach,
        what,
        message,
        source,
    } = failure;
    let kind = match (reach, what, name) {
        (Reach::Nowhere | Reach::NotReceived, What::TimedOut, Name::Read | Name::Change) => {
            ErrorKind::Timeout
        }
        (Reach::Nowhere | Reach::NotReceived, What::Cancelled, _) => ErrorKind::OutcomeUnknown,
        (Reach::Nowhere | Reach::NotReceived, _, _) => ErrorKind::Connect,
        (Reach::Sent, _, Name::Exec) => ErrorKind::OutcomeUnknown,
        (Reach::Sent, What::TimedOut, _) => ErrorKind::Timeout,
        (Reach::Sent, What::NotHttp, _) => ErrorKind::Protocol,
        (Reach::Sent, _, Name::Change) => ErrorKind::OutcomeUnknown,
        (Reach::Sent, _, Name::Read) => ErrorKind::Connect,
    };
    let message = match what {
        What::TimedOut => format!("gave up after {:.1} s: {message}", elapsed.as_secs_f64()),
        _ => message,
    };
    let message = match kind {
        ErrorKind::OutcomeUnknown if name == Name::Exec => {
            format!("{message}; the command may have run")
        }
        _ => message,
    };
    let source = match source.map(|source| source.downcast::<io::Error>()) {
        // What was to be sent could not be read: that error says it all.
        Some(Ok(e)) => match Error::from_io(*e) {
            Ok(own) => return own,
            Err(e) => Some(e.into()),
        },
        Some(Err(other)) => Some(other),
        None => None,
    };
    let error = Error::new(kind, message);
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

/// The answer began and did not end.
fn cut_off(e: io::Error, name: Name) -> Error {
    let kind = match (name, e.kind()) {
        (Name::Exec, _) => ErrorKind::OutcomeUnknown,
        (_, io::ErrorKind::TimedOut) => ErrorKind::Timeout,
        (Name::Change, _) => ErrorKind::OutcomeUnknown,
        (Name::Read, _) => ErrorKind::Connect,
    };
    let text = format!("the answer was cut off: {}", crate::error::io_reason(&e));
    Error::new(kind, text).with_source(e)
}

fn success(answer: Answer) -> Result<Answer> {
    match answer.status {
        200..=299 => Ok(answer),
        _ => Err(refusal(answer)),
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

fn refusal(answer: Answer) -> Error {
    let status = answer.status;
    let kind = match status {
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        503 => ErrorKind::NotReady,
        _ => ErrorKind::Status,
    };
    let wait = retry_after(&answer);
    let location = answer.header("location").map(one_line);
    // As much as came of it; the status alone says what matters.
    let mut body = Vec::new();
    let _ = answer
        .body
        .take(MAX_ERROR_BODY as u64)
        .read_to_end(&mut body);
    let words = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(json) => json.error,
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    let mut text = format!("server answered {status}");
    match (status, location) {
        (300..=399, Some(to)) => {
            text.push_str(&format!(
                ", a redirect to {to}, which is not followed: use it as the base URL"
            ));
        }
        _ if words.trim().is_empty() => {}
        _ => text.push_str(&format!(": {}", one_line(&words))),
    }
    if status == 401 {
        text.push_str(" (a token is given with token())");
    }
    Error::new(kind, text)
        .with_status(status)
        .with_body(&body)
        .with_retry_after(wait)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreateBody<'a> {
    ttl_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral_storage_limit: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateAnswer {
    pod_name: String,
    expires_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecBody<'a> {
    cmd: &'a [String],
    workdir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: &'a BTreeMap<String, String>,
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecAnswer {
    exit_code: i32,
    // Some backends leave out what is empty.
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    #[serde(default)]
    duration_ms: u64,
    timed_out: Option<bool>,
    truncated: Option<bool>,
}

impl Backend for HttpBackend {
    fn health(&self) -> Result<()> {
        let mut call = Call::new(
            Name::Read,
            "GET",
            self.base.health(),
            self.call(self.timeout),
        );
        let answer = success(self.send(&mut call)?)?;
        let body =
            read_capped(answer.body, MAX_ERROR_BODY as u64).map_err(|e| cut_off(e, call.name))?;
        let text = String::from_utf8_lossy(&body);
        if text.contains("OK") {
            return Ok(());
        }
        let text = format!(
            "the answer says {:?}, not OK: is this a NoxRunner server?",
            one_line(&text)
        );
        Err(Error::new(ErrorKind::Protocol, text)
            .with_status(answer.status)
            .with_body(&body))
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let body = CreateBody {
            ttl_seconds: whole_seconds(spec.time_to_live()),
            image: spec.image_name(),
            cpu_limit: spec.cpu_limit(),
            memory_limit: spec.memory_limit(),
            ephemeral_storage_limit: spec.storage_limit(),
        };
        let url = self.base.sandbox(id.as_str());
        let call = Call::new(Name::Change, "PUT", url, self.call(self.timeout)).json(&body)?;
        let answer: CreateAnswer = self.send_json(call)?;
        Ok(SandboxInfo::new(answer.pod_name, answer.expires_at))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        let url = format!("{}/touch", self.base.sandbox(id.as_str()));
        let mut call = Call::new(Name::Change, "POST", url, self.call(self.timeout));
        // An empty body with a length: some servers wait for a POST that has none.
        call.body = CallBody::Bytes(Vec::new());
        self.send_plain(call)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        let seconds = whole_seconds(command.time_limit());
        let body = ExecBody {
            cmd: command.args(),
            workdir: command.working_directory(),
            env: command.environment(),
            timeout_seconds: seconds,
        };
        let url = format!("{}/exec", self.base.sandbox(id.as_str()));
        let total = Duration::from_secs(seconds) + EXEC_GRACE;
        let bounds = self.call(
            command
                .give_up_after
                .map_or(total, |limit| limit.min(total)),
        );
        let mut call = Call::new(Name::Exec, "POST", url, bounds).json(&body)?;
        call.cancel = command.cancellation();
        // A try that began later could be cut off before the command's own time is over.
        call.last_start = Some(Instant::now() + EXEC_GRACE);
        let answer: ExecAnswer = self.send_json(call)?;
        let duration = Duration::from_millis(answer.duration_ms);
        let mut output = Output::new(answer.exit_code, answer.stdout, answer.stderr, duration);
        if let Some(timed_out) = answer.timed_out {
            output = output.with_timed_out(timed_out);
        }
        if let Some(truncated) = answer.truncated {
            output = output.with_truncated(truncated);
        }
        Ok(output)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let url = self.base.files(id.as_str(), "upload", "dest", dest);
        let mut call = Call::new(Name::Change, "POST", url, self.transfer());
        call.content_type = Some("application/x-tar");
        call.body = CallBody::Upload(archive);
        self.send_plain(call)
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let url = self.base.files(id.as_str(), "download", "src", src);
        let mut call = Call::new(Name::Read, "GET", url, self.transfer());
        let answer = success(self.send(&mut call)?)?;
        Ok(Box::new(Download(answer.body)))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        let url = self.base.sandbox(id.as_str());
        let call = Call::new(Name::Change, "DELETE", url, self.call(self.timeout));
        match self.send_plain(call) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// An archive as it arrives. Where the network fails, the I/O error holds an [`Error`], so that
/// it is not taken for a damaged archive.
struct Download(AnswerBody);

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                Err(cut_off(e, Name::Read).into_io())
            }
            result => result,
        }
    }
}

impl fmt::Debug for HttpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBackend")
            .field("base_url", &self.base.to_string())
            .finish_non_exhaustive()
    }
}
