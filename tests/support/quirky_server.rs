//! A v1 server that deviates from the protocol as other people's servers do.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use noxrunner::{Backend, Command, Error, ErrorKind, Output, SandboxSpec, SessionId, Upload};
use serde_json::{Value, json};

use super::rate_limit::RateLimit;
use super::scripted::{Conn, Request, Scripted};
use super::v1_server::{command_of, decode, spec_of};

/// The deviations of a server. Each can be set alone; the default has none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quirks {
    /// Errors are `{"error": {"code", "message", "requestId"}}`.
    pub(crate) nested_errors: bool,
    /// The body of `/healthz`, if it is not `OK`.
    pub(crate) health: Option<&'static str>,
    /// Joins the arguments after the `-c` of a shell or an interpreter with spaces, inside the double quotes
    /// of an outer shell.
    pub(crate) joins_arguments: bool,
    /// Every call creates a sandbox that does not exist, except that DELETE answers 204.
    pub(crate) creates_unknown: bool,
    /// PUT of an existing sandbox does not renew its TTL.
    pub(crate) keeps_ttl: bool,
    /// The download of a file, or of what does not exist, answers 200 with an archive without entries.
    pub(crate) empty_downloads: Option<EmptyArchive>,
    /// A longer `timeoutSeconds`, and a timeout, answer 504 with the code `EXEC_TIMEOUT` and no output.
    pub(crate) max_timeout: Option<u64>,
    /// The connection is closed if an exec takes longer.
    pub(crate) write_timeout: Option<Duration>,
    /// Every exit code other than 0 is -1.
    pub(crate) hides_exit_codes: bool,
    /// Names of variables have capital letters only. Paths must be below `/workspace`. Uploads have neither
    /// hard links nor absolute symbolic links.
    pub(crate) strict_arguments: bool,
    /// Maximum size of an upload, in bytes.
    pub(crate) max_upload: Option<usize>,
    /// The key that requests must have, in either of two headers.
    pub(crate) service_key: Option<&'static str>,
    /// Requests per second, for each session and for the address, each with a burst of twice as many.
    pub(crate) rates: Option<(u32, u32)>,
    /// Empty streams are null, numbers are floats, and bytes that are not UTF-8 are lone surrogates.
    pub(crate) python_json: bool,
    /// Downloads are not compressed.
    pub(crate) plain_tar: bool,
    /// Only health, create, exec and delete exist.
    pub(crate) minimal: bool,
    /// No optional fields in the answer of exec.
    pub(crate) no_extensions: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum EmptyArchive {
    /// A gzip stream of nothing.
    Nothing,
    /// A gzip stream of a tar archive that has only its end.
    OnlyEnd,
}

impl Quirks {
    /// The control plane, in its last revision with these calls. Its real rates are a tenth of these, with
    /// which the suites take too long; `http_network::rate_limits` tests them.
    pub(crate) fn control_plane() -> Quirks {
        Quirks {
            nested_errors: true,
            health: Some(r#"{"status":"ok"}"#),
            joins_arguments: true,
            creates_unknown: true,
            keeps_ttl: true,
            empty_downloads: Some(EmptyArchive::OnlyEnd),
            max_timeout: Some(300),
            write_timeout: Some(Duration::from_secs(60)),
            strict_arguments: true,
            max_upload: Some(50 << 20),
            service_key: Some("key of the service"),
            rates: Some((50, 100)),
            no_extensions: true,
            ..Quirks::default()
        }
    }

    /// An earlier revision.
    pub(crate) fn old_control_plane() -> Quirks {
        Quirks {
            hides_exit_codes: true,
            empty_downloads: Some(EmptyArchive::Nothing),
            ..Quirks::control_plane()
        }
    }

    /// The local backend of the Python package, behind a server.
    pub(crate) fn python_backend() -> Quirks {
        Quirks {
            python_json: true,
            plain_tar: true,
            no_extensions: true,
            ..Quirks::default()
        }
    }

    /// A backend with the calls that every backend must have.
    pub(crate) fn minimal() -> Quirks {
        Quirks {
            minimal: true,
            no_extensions: true,
            ..Quirks::default()
        }
    }
}

/// Serves a backend with these deviations.
pub(crate) fn serve(backend: impl Backend + 'static, quirks: Quirks) -> Scripted {
    let server = QuirkyServer {
        backend,
        quirks,
        sessions: Mutex::default(),
        limits: Mutex::default(),
    };
    Scripted::each_request(move |request, conn| server.answer(request, conn))
}

struct QuirkyServer<B> {
    backend: B,
    quirks: Quirks,
    /// The answers to the first PUT of each sandbox.
    sessions: Mutex<HashMap<String, Value>>,
    limits: Mutex<HashMap<String, RateLimit>>,
}

/// An answer that is not a success: status, code, message.
struct Refusal(u16, &'static str, String);

enum Answer {
    Json(String),
    Text(&'static str),
    Health(&'static str),
    Archive(Vec<u8>),
    /// 204.
    Nothing,
    /// The connection is closed instead of an answer.
    Cut,
}

type Result<T> = std::result::Result<T, Refusal>;

impl<B: Backend> QuirkyServer<B> {
    fn answer(&self, request: &Request, conn: &mut Conn) {
        let json = [("Content-Type", "application/json")];
        let plain = [("Content-Type", "text/plain")];
        let tar = [("Content-Type", "application/x-tar")];
        match self.route(request) {
            Ok(Answer::Json(text)) => conn.respond_with(200, &json, text),
            Ok(Answer::Text(text)) => conn.respond(200, text),
            Ok(Answer::Health(text)) => {
                let is_json = text.starts_with('{');
                let json_or_text = if is_json { json } else { plain };
                conn.respond_with(200, &json_or_text, text);
            }
            Ok(Answer::Archive(bytes)) => conn.respond_with(200, &tar, bytes),
            Ok(Answer::Nothing) => conn.respond(204, ""),
            Ok(Answer::Cut) => conn.close(),
            Err(Refusal(status, code, message)) => {
                let error = if self.quirks.nested_errors {
                    json!({"code": code, "message": message, "requestId": "req-1"})
                } else {
                    json!(message)
                };
                conn.respond_with(status, &json, json!({ "error": error }).to_string());
            }
        }
    }

    fn route(&self, request: &Request) -> Result<Answer> {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        if path == "/healthz" {
            return Ok(Answer::Health(self.quirks.health.unwrap_or("OK")));
        }
        self.check_key(request)?;
        let no_route = || Refusal(404, "NOT_FOUND", "page not found".to_owned());
        let rest = path.strip_prefix("/v1/sandboxes/").ok_or_else(no_route)?;
        let (id, call) = rest.split_once('/').unwrap_or((rest, ""));
        let id = SessionId::new(decode(id)).map_err(|e| refusal(&e))?;
        self.check_rate(id.as_str())?;
        let path = query
            .split_once('=')
            .map_or("/workspace".to_owned(), |(_, value)| decode(value));
        match (request.method.as_str(), call) {
            ("PUT", "") => self.create(&id, &body_json(request)?),
            ("POST", "exec") => self.exec(&id, &body_json(request)?),
            ("DELETE", "") => self.delete(&id),
            _ if self.quirks.minimal => Err(no_route()),
            ("POST", "touch") => {
                self.with(&id, || self.backend.touch(&id))?;
                Ok(Answer::Text("touched"))
            }
            ("POST", "files/upload") => self.upload(&id, &path, &request.body),
            ("GET", "files/download") => self.download(&id, &path),
            _ => Err(no_route()),
        }
    }

    fn check_key(&self, request: &Request) -> Result<()> {
        let Some(key) = self.quirks.service_key else {
            return Ok(());
        };
        let in_authorization = request
            .header("authorization")
            .is_some_and(|value| value == format!("ServiceKey {key}"));
        if in_authorization || request.header("x-service-key") == Some(key) {
            return Ok(());
        }
        Err(Refusal(
            401,
            "UNAUTHORIZED",
            "missing service key".to_owned(),
        ))
    }

    fn check_rate(&self, id: &str) -> Result<()> {
        let Some((session, address)) = self.quirks.rates else {
            return Ok(());
        };
        let mut limits = self.limits.lock().unwrap();
        for (name, rate) in [(id, session), ("", address)] {
            let limit = limits.entry(name.to_owned());
            let limit = limit.or_insert_with(|| RateLimit::new(rate, 2 * rate));
            if !limit.admits() {
                return Err(Refusal(429, "RATE_LIMITED", "too many requests".to_owned()));
            }
        }
        Ok(())
    }

    /// Runs a call, and creates the sandbox for it if this server does so.
    fn with<T>(&self, id: &SessionId, call: impl Fn() -> noxrunner::Result<T>) -> Result<T> {
        let result = match call() {
            Err(e) if e.is_sandbox_gone() && self.quirks.creates_unknown => {
                let spec = SandboxSpec::new();
                self.backend.create(id, &spec).and_then(|_| call())
            }
            result => result,
        };
        result.map_err(|e| refusal(&e))
    }

    fn create(&self, id: &SessionId, body: &Value) -> Result<Answer> {
        check_seconds(body, "ttlSeconds")?;
        let mut sessions = self.sessions.lock().unwrap();
        if self.quirks.keeps_ttl && self.backend.exec(id, &Command::new("true")).is_ok() {
            if let Some(answer) = sessions.get(id.as_str()) {
                return Ok(Answer::Json(answer.to_string()));
            }
        }
        let created = self.backend.create(id, &spec_of(body));
        let info = created.map_err(|e| refusal(&e))?;
        let mut expires_at = info.expires_at().to_owned();
        if self.quirks.python_json {
            expires_at = expires_at.replace('Z', "+00:00Z");
        }
        let answer = json!({"podName": info.pod_name(), "expiresAt": expires_at});
        sessions.insert(id.as_str().to_owned(), answer.clone());
        Ok(Answer::Json(answer.to_string()))
    }

    fn delete(&self, id: &SessionId) -> Result<Answer> {
        match self.backend.delete(id) {
            Ok(false) if !self.quirks.creates_unknown => {
                Err(Refusal(404, "NOT_FOUND", "no such sandbox".to_owned()))
            }
            Ok(_) => Ok(Answer::Nothing),
            Err(e) => Err(refusal(&e)),
        }
    }

    fn exec(&self, id: &SessionId, body: &Value) -> Result<Answer> {
        check_seconds(body, "timeoutSeconds")?;
        let mut command = command_of(body);
        if self.quirks.strict_arguments {
            check_names(&command)?;
            check_path("workdir", command.get_workdir())?;
        }
        let timed_out = || Refusal(504, "EXEC_TIMEOUT", "command timed out".to_owned());
        if let Some(max) = self.quirks.max_timeout
            && command.get_timeout() > Duration::from_secs(max)
        {
            return Err(timed_out());
        }
        if self.quirks.joins_arguments {
            command = join_arguments(command);
        }
        let started = Instant::now();
        let cut_after = self.quirks.write_timeout;
        if let Some(most) = cut_after {
            // The output after the cut is not needed.
            let timeout = command.get_timeout().min(most + Duration::from_secs(1));
            command = command.timeout(timeout);
        }
        let out = self.with(id, || self.backend.exec(id, &command))?;
        if cut_after.is_some_and(|most| started.elapsed() >= most) {
            return Ok(Answer::Cut);
        }
        if out.timed_out() && self.quirks.max_timeout.is_some() {
            return Err(timed_out());
        }
        Ok(Answer::Json(self.exec_json(&out)))
    }

    fn exec_json(&self, out: &Output) -> String {
        let code = match out.exit_code() {
            0 => 0,
            _ if self.quirks.hides_exit_codes => -1,
            code => code,
        };
        let mut answer = json!({
            "exitCode": code,
            "stdout": out.stdout(),
            "stderr": out.stderr(),
            "durationMs": out.duration().as_millis() as u64,
        });
        if !self.quirks.no_extensions {
            answer["timedOut"] = json!(out.timed_out());
            answer["truncated"] = json!(out.truncated());
        }
        if !self.quirks.python_json {
            return answer.to_string();
        }
        answer["exitCode"] = json!(f64::from(code));
        answer["durationMs"] = json!(out.duration().as_secs_f64() * 1000.0);
        for (name, bytes) in [
            ("stdout", out.stdout_bytes()),
            ("stderr", out.stderr_bytes()),
        ] {
            answer[name] = match bytes {
                b"" => Value::Null,
                bytes => json!(with_surrogates(bytes)),
            };
        }
        answer.to_string().replace(SURROGATE, "\\udc")
    }

    fn upload(&self, id: &SessionId, dest: &str, body: &[u8]) -> Result<Answer> {
        if self.quirks.max_upload.is_some_and(|max| body.len() > max) {
            let message = "the upload is too large".to_owned();
            return Err(Refusal(413, "PAYLOAD_TOO_LARGE", message));
        }
        if self.quirks.strict_arguments {
            check_path("dest", dest)?;
            check_archive(body)?;
        }
        self.with(id, || {
            self.backend.upload(id, dest, Upload::from_bytes(body))
        })?;
        Ok(Answer::Text("uploaded"))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Answer> {
        if self.quirks.strict_arguments {
            check_path("src", src)?;
        }
        if let Some(archive) = self.quirks.empty_downloads {
            let test = Command::from(["test", "-d", src]);
            if !self.with(id, || self.backend.exec(id, &test))?.success() {
                return Ok(Answer::Archive(archive.bytes()));
            }
        }
        let mut archive = Vec::new();
        let mut reader = self.with(id, || self.backend.download(id, src))?;
        reader.read_to_end(&mut archive).expect("a whole archive");
        if self.quirks.plain_tar {
            archive = uncompressed(&archive);
        }
        Ok(Answer::Archive(archive))
    }
}

impl EmptyArchive {
    fn bytes(self) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        if let EmptyArchive::OnlyEnd = self {
            std::io::Write::write_all(&mut gzip, &[0; 1024]).unwrap();
        }
        gzip.finish().unwrap()
    }
}

fn refusal(error: &Error) -> Refusal {
    let (status, code) = match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Archive => (400, "INVALID_ARGUMENT"),
        ErrorKind::NotFound => (404, "NOT_FOUND"),
        ErrorKind::NotReady => (503, "NOT_READY"),
        _ => (500, "INTERNAL"),
    };
    Refusal(status, code, format!("{error:#}"))
}

fn invalid(message: String) -> Refusal {
    Refusal(422, "VALIDATION_FAILED", message)
}

fn body_json(request: &Request) -> Result<Value> {
    let bad = |e| Refusal(400, "INVALID_JSON", format!("{e}"));
    serde_json::from_slice(&request.body).map_err(bad)
}

fn check_seconds(body: &Value, name: &str) -> Result<()> {
    match &body[name] {
        Value::Null => Ok(()),
        value if value.as_u64().is_some_and(|seconds| seconds > 0) => Ok(()),
        value => {
            let message = format!("{name} is {value}");
            Err(Refusal(400, "INVALID_ARGUMENT", message))
        }
    }
}

fn check_names(command: &Command) -> Result<()> {
    let is_start = |c: char| c.is_ascii_uppercase() || c == '_';
    let is_valid = |name: &str| {
        name.starts_with(is_start) && name.chars().all(|c| is_start(c) || c.is_ascii_digit())
    };
    let wrong = command.get_envs().keys().find(|name| !is_valid(name));
    wrong.map_or(Ok(()), |name| {
        Err(invalid(format!(
            "invalid environment variable name {name:?}"
        )))
    })
}

fn check_path(what: &str, path: &str) -> Result<()> {
    let relative = path.strip_prefix("/workspace");
    if relative.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Ok(());
    }
    Err(invalid(format!("{what} must be below /workspace")))
}

fn check_archive(body: &[u8]) -> Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(body));
    // The backend reports a damaged archive.
    for entry in archive.entries().into_iter().flatten().flatten() {
        let kind = entry.header().entry_type();
        let target = entry.link_name().ok().flatten();
        let is_absolute = target.is_some_and(|target| target.is_absolute());
        if kind.is_hard_link() || (kind.is_symlink() && is_absolute) {
            let message = "hard links and absolute symbolic links are refused".to_owned();
            return Err(Refusal(400, "INVALID_ARCHIVE", message));
        }
    }
    Ok(())
}

/// Changes `sh -c LINE ARG…` to `sh -lc 'sh -c "LINE ARG…"'`.
fn join_arguments(command: Command) -> Command {
    const JOINED: [&str; 7] = ["sh", "bash", "dash", "zsh", "perl", "ruby", "node"];
    let args = command.get_args();
    let is_joined = |name: &str| JOINED.contains(&name) || name.starts_with("python");
    match args {
        [program, flag, rest @ ..] if flag == "-c" && is_joined(program) => {
            let line = format!("{program} -c \"{}\"", rest.join(" "));
            Command::from(["sh", "-lc", &line])
                .workdir(command.get_workdir())
                .timeout(command.get_timeout())
                .envs(command.get_envs().clone())
        }
        _ => command,
    }
}

/// Stands for the beginning of an escaped surrogate until the text is JSON.
const SURROGATE: &str = "<surrogate>";

/// Decodes as Python's `surrogateescape` does.
fn with_surrogates(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("{SURROGATE}{byte:02x}"));
        }
    }
    text
}

fn uncompressed(archive: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(archive).read_to_end(&mut plain).unwrap();
    plain
}
