//! The seven calls over HTTP.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::call::{Api, Call, read_body};
use super::errors::{Operation, failure_error};
use super::socket::CallOptions;
use super::transport::{Body, Failure, ResponseBody};
use crate::backend::Backend;
use crate::backend::wire::{ARCHIVE, CreateRequest, ExecRequest, ExecResponse};
use crate::chunk::Chunk;
use crate::command::Command;
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, Result, one_line};
use crate::os::time::whole_seconds;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Time for the response of an exec beyond the command's own timeout.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// Maximum timeout of a command whose response may come in one piece. Many proxies close a connection
/// that is quiet for 60 s. A longer command uses events, if the server has them.
const LONGEST_SILENCE: Duration = Duration::from_secs(50);

/// A NoxRunner v1 server, reached over HTTP or HTTPS.
///
/// Keeps up to 16 idle connections, which all clones of a [`Client`](crate::Client) share. Redirects
/// are not followed. Logs one debug line per request: method, path, status, duration and attempt.
pub struct HttpBackend {
    pub(super) api: Api,
    pub(super) timeout: Duration,
    pub(super) create_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) transfer_timeout: Option<Duration>,
    /// Sends execs with chunked transfer encoding. A proxy written in Go that knows the length of a body may cut a
    /// response that starts before the proxy has checked for the end of that body (golang/go#40747).
    pub(super) sends_exec_in_chunks: bool,
}

impl HttpBackend {
    /// Returns the options of a call that must finish within `total`.
    pub(super) fn bounded(&self, total: Duration) -> CallOptions {
        CallOptions {
            connect: self.connect_timeout,
            connect_by: None,
            stall: total,
            deadline: Some(Instant::now() + total),
            once: false,
        }
    }

    /// Returns the options of a call that may take as long as bytes keep moving.
    fn transfer(&self) -> CallOptions {
        CallOptions {
            stall: self.timeout,
            deadline: self.transfer_timeout.map(|total| Instant::now() + total),
            ..self.bounded(self.timeout)
        }
    }

    pub(super) fn exec_call<'a>(&self, id: &SessionId, command: &'a Command) -> Result<Call<'a>> {
        let seconds = Duration::from_secs(whole_seconds(command.get_timeout()));
        let give_up_after = command.give_up_after.unwrap_or(Duration::MAX);
        let total = give_up_after.min(seconds + EXEC_GRACE);
        // An attempt that starts later might be cut off before the command's own timeout.
        let last_start = Instant::now() + EXEC_GRACE.min(total);
        let options = CallOptions {
            once: true,
            connect_by: Some(last_start),
            ..self.bounded(total)
        };
        let url = format!("{}/exec", self.api.base.sandbox(id.as_str()));
        let request = ExecRequest::from(command);
        let mut call = Call::new(Operation::Exec, "POST", url, options).json(&request)?;
        call.request.chunked = self.sends_exec_in_chunks;
        call.cancel = command.get_cancel();
        call.last_start = Some(last_start);
        call.timeout = seconds;
        call.is_repeated_by_caller = command.give_up_after.is_some();
        Ok(call)
    }
}

impl Backend for HttpBackend {
    fn health(&self) -> Result<()> {
        let options = self.bounded(self.timeout);
        let mut call = Call::new(Operation::Read, "GET", self.api.base.health(), options);
        let (status, body) = self.api.send(&mut call, |response| {
            Ok((response.status, read_body(response, MAX_ERROR_BODY as u64)?))
        })?;
        let text = String::from_utf8_lossy(&body);
        if says_ok(&text) {
            return Ok(());
        }
        let text = one_line(&text);
        let message = format!("unexpected health response {text:?}: is this a NoxRunner server?");
        Err(Error::new(ErrorKind::Protocol, message)
            .with_status(status)
            .with_body(&body))
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        let url = self.api.base.sandbox(id.as_str());
        let options = self.bounded(self.create_timeout);
        let request = CreateRequest::from(spec);
        let call = Call::new(Operation::Change, "PUT", url, options).json(&request)?;
        self.api.send_json(call)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        let url = format!("{}/touch", self.api.base.sandbox(id.as_str()));
        let options = self.bounded(self.timeout);
        let mut call = Call::new(Operation::Change, "POST", url, options);
        // Sends `Content-Length: 0`. Some servers wait for the body of a POST without it.
        call.request.body = Body::Bytes(Vec::new());
        self.api.send_plain(call)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        command.check()?;
        command.check_no_files(false)?;
        if command.get_timeout() > LONGEST_SILENCE {
            return self.exec_by_events(id, command);
        }
        let call = self.exec_call(id, command)?;
        let response: ExecResponse<'_> = self.api.send_json(call)?;
        Ok(response.into())
    }

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        command.check()?;
        command.check_no_files(false)?;
        self.exec_to_sink(id, command, sink)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let url = self.api.base.files(id.as_str(), "upload", "dest", dest);
        let mut call = Call::new(Operation::Change, "POST", url, self.transfer());
        call.request.content_type = Some(ARCHIVE);
        call.request.body = Body::Upload(archive);
        self.api.send_plain(call)
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let url = self.api.base.files(id.as_str(), "download", "src", src);
        let mut call = Call::new(Operation::Read, "GET", url, self.transfer());
        let response = self.api.send(&mut call, Ok)?;
        Ok(Box::new(DownloadBody {
            body: response.body,
            started: Instant::now(),
        }))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        let url = self.api.base.sandbox(id.as_str());
        let options = self.bounded(self.timeout);
        let call = Call::new(Operation::Change, "DELETE", url, options);
        match self.api.send_plain(call) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Returns true for a healthy server's body, such as `OK` or `{"status":"ok"}`, and for an empty one.
fn says_ok(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    let words = || text.split(|c: char| !c.is_alphanumeric());
    let is_page = text.starts_with('<');
    text.is_empty()
        || !is_page && words().any(|w| w == "ok") && !words().any(|w| matches!(w, "not" | "false"))
}

/// The body of a download. Its I/O errors contain an [`Error`], so that a network failure is not taken
/// for a damaged archive.
struct DownloadBody {
    body: ResponseBody,
    started: Instant,
}

impl Read for DownloadBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.body.read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                let (failure, elapsed) = (Failure::cut_off(e), self.started.elapsed());
                Err(failure_error(failure, Operation::Read, false, elapsed).into_io())
            }
            result => result,
        }
    }
}

impl fmt::Debug for HttpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBackend")
            .field("base_url", &self.api.base.to_string())
            .finish_non_exhaustive()
    }
}
