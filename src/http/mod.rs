//! v1 over HTTP: the seven calls, their deadlines and what they are worth repeating for.

mod base_url;
mod builder;
mod call;
mod connect;
#[cfg(feature = "conformance")]
mod raw;
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
use self::call::{Call, CallBody, Name, failed, read_capped};
#[cfg(feature = "conformance")]
pub(crate) use self::raw::{Place, RawAnswer};
pub use self::retry::Retry;
use self::socket::Bounds;
use self::transport::{AnswerBody, Failure, Http};
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, Result, one_line};
use crate::exec::Command;
use crate::os::time::whole_seconds;
use crate::output::Output;
use crate::spec::{SandboxInfo, SandboxSpec, SessionId};
use crate::upload::Upload;

/// How long an exec's answer may take beyond the command's own timeout.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// NoxRunner v1 over HTTP or HTTPS.
///
/// Keeps up to 16 idle connections; all clones of a [`Client`](crate::Client) share them.
/// Redirects are not followed. Each request is one debug line in the `log` crate: method, path,
/// status, milliseconds and attempt.
///
/// ```
/// use noxrunner::{Backend, ErrorKind, HttpBackend};
///
/// let backend = HttpBackend::new("http://127.0.0.1:1")?;
/// assert_eq!(backend.health().unwrap_err().kind(), ErrorKind::Connect);
/// # Ok::<_, noxrunner::Error>(())
/// ```
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
    ///
    /// ```
    /// use noxrunner::HttpBackend;
    ///
    /// let backend = HttpBackend::builder("http://127.0.0.1:8080/").token("s3cret").build_backend()?;
    /// assert!(format!("{backend:?}").contains("http://127.0.0.1:8080"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn builder(base_url: impl AsRef<str>) -> ClientBuilder {
        ClientBuilder::new(base_url.as_ref())
    }

    /// The bounds of a call that is over at a known time.
    fn call(&self, total: Duration) -> Bounds {
        let deadline = Some(Instant::now() + total);
        Bounds {
            connect: self.connect_timeout,
            connect_by: None,
            stall: total,
            deadline,
            once: false,
        }
    }

    /// The bounds of a call that goes on as long as bytes move.
    fn transfer(&self) -> Bounds {
        let deadline = self.transfer_timeout.map(|total| Instant::now() + total);
        Bounds {
            connect: self.connect_timeout,
            connect_by: None,
            stall: self.timeout,
            deadline,
            once: false,
        }
    }
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
        let (status, body) = self.send(&mut call, |answer| {
            Ok((answer.status, read_capped(answer, MAX_ERROR_BODY as u64)?))
        })?;
        let text = String::from_utf8_lossy(&body);
        if text.contains("OK") {
            return Ok(());
        }
        let text = format!(
            "the answer says {:?}, not OK: is this a NoxRunner server?",
            one_line(&text)
        );
        Err(Error::new(ErrorKind::Protocol, text)
            .with_status(status)
            .with_body(&body))
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
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
        command.check()?;
        command.check_bare()?;
        let seconds = whole_seconds(command.time_limit());
        let body = ExecBody {
            cmd: command.args(),
            workdir: command.working_directory(),
            env: command.environment(),
            timeout_seconds: seconds,
        };
        let url = format!("{}/exec", self.base.sandbox(id.as_str()));
        let total = Duration::from_secs(seconds) + EXEC_GRACE;
        let limit = command
            .give_up_after
            .map_or(total, |limit| limit.min(total));
        // What begins later could be cut off before the command's own time is over.
        let grace = Instant::now() + EXEC_GRACE.min(limit);
        let bounds = Bounds {
            once: true,
            connect_by: Some(grace),
            ..self.call(limit)
        };
        let mut call = Call::new(Name::Exec, "POST", url, bounds).json(&body)?;
        call.cancel = command.cancellation();
        call.last_start = Some(grace);
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
        let answer = self.send(&mut call, Ok)?;
        Ok(Box::new(Download(answer.body, Instant::now())))
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
struct Download(AnswerBody, Instant);

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                let failure = Failure::cut_off(e);
                Err(failed(failure, Name::Read, self.1.elapsed()).into_io())
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
