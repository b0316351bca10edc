//! The calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinError, spawn_blocking};

use super::body::{self, AHEAD, AnswerBody, Content, Ended, UploadReader};
use super::connection::Answering;
use super::gate::Gate;
use super::route::Route;
use crate::backend::Backend;
use crate::backend::wire::{
    CreateRequest, CreateResponse, ErrorResponse, ExecRequest, ExecResponse, JSON,
};
use crate::cancel::Cancel;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result as OurResult};
use crate::sandbox_path::SandboxPath;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;
use crate::upload::Upload;

/// The largest JSON body.
const MAX_JSON: usize = 8 * 1024 * 1024;

/// How long the backend's health is taken for known.
const HEALTH_KNOWN: Duration = Duration::from_secs(1);

/// When to come again where there was no room, in seconds.
const BUSY_WAIT: &str = "1";

/// What requests are answered with.
pub(super) struct Service {
    backend: Arc<dyn Backend>,
    pub(super) gate: Gate,
    calls: Arc<Semaphore>,
    max_upload: u64,
    pub(super) body_idle: Duration,
    health: Mutex<Option<(Instant, Result<(), Refusal>)>>,
}

/// Why a request is not done.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    allow: Option<String>,
    retry_after: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal {
            status,
            text: text.into(),
            allow: None,
            retry_after: None,
        }
    }

    pub(super) fn with_allow(mut self, methods: &str) -> Refusal {
        self.allow = Some(methods.to_owned());
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    fn busy() -> Refusal {
        let mut refusal = Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server has as many calls as it may: try again",
        );
        refusal.retry_after = Some(BUSY_WAIT.to_owned());
        refusal
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let status = match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Archive => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            // Nothing has happened, and it may be tried again.
            ErrorKind::NotReady | ErrorKind::Connect => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Status if error.status() == Some(429) => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::OutcomeUnknown
            | ErrorKind::Protocol
            | ErrorKind::Status
            | ErrorKind::Unauthorized => StatusCode::BAD_GATEWAY,
            ErrorKind::Io | ErrorKind::Isolation | ErrorKind::Command | ErrorKind::Cancelled => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let mut refusal = Refusal::new(status, format!("{error:#}"));
        refusal.retry_after = error.retry_after().map(|wait| wait.as_secs().to_string());
        refusal
    }
}

impl From<Ended> for Refusal {
    fn from(ended: Ended) -> Refusal {
        match ended {
            Ended::TooLarge => too_large(),
            Ended::Stalled => Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not go on for too long",
            ),
            Ended::Broken | Ended::Unwanted | Ended::Whole => {
                Refusal::new(StatusCode::BAD_REQUEST, "the body is not whole")
            }
        }
    }
}

fn too_large() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large")
}

/// What a call is answered with.
enum Reply {
    Empty(StatusCode),
    Text(&'static str),
    Json(Vec<u8>),
    Archive(mpsc::Receiver<body::Part>),
}

/// Ends the command of a call that nobody waits for any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Service {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        gate: Gate,
        max_calls: usize,
        max_upload: u64,
        body_idle: Duration,
    ) -> Service {
        Service {
            backend,
            gate,
            calls: Arc::new(Semaphore::new(max_calls)),
            max_upload,
            body_idle,
            health: Mutex::new(None),
        }
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        answering: Answering,
    ) -> Response<AnswerBody> {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let mut body = Some(body);
        let route = self.let_in(&head);
        let speaks_json = !matches!(
            route,
            Ok(Route::Health
                | Route::Touch(_)
                | Route::Upload(..)
                | Route::Download(..)
                | Route::Delete(_))
        );
        let reply = match route {
            Ok(route) => self.call(route, &head, &mut body).await,
            Err(refusal) => Err(refusal),
        };
        // One that asked before sending has not sent.
        if let Some(body) = body.filter(|_| !head.headers.contains_key(EXPECT)) {
            body::drain(body);
        }
        let mut response = Response::new(());
        let content = match reply {
            Ok(reply) => write_reply(reply, &mut response),
            Err(refusal) => write_refusal(&refusal, speaks_json, &mut response),
        };
        log::info!(
            target: "noxrunner::server",
            "{} {} {} {} ms",
            head.method,
            head.uri.path(),
            response.status().as_u16(),
            started.elapsed().as_millis()
        );
        response.map(|()| AnswerBody::new(content, answering))
    }

    fn let_in(&self, head: &Parts) -> Result<Route, Refusal> {
        self.gate.check_host(&head.headers, head.version)?;
        // Whether it is there is no secret.
        if head.uri.path() != "/healthz" {
            self.gate.check(&head.headers)?;
        }
        Route::find(&head.method, &head.uri)
    }

    /// Takes the body where it is wanted.
    async fn call(
        &self,
        route: Route,
        head: &Parts,
        body: &mut Option<Incoming>,
    ) -> Result<Reply, Refusal> {
        match route {
            Route::Health => self.health().await.map(|()| Reply::Text("OK")),
            Route::Create(id) => {
                let bytes = self.json(&head.headers, body).await?;
                let spec = spec_of(&bytes)?;
                let info = self.run(move |backend| backend.create(&id, &spec)).await?;
                to_json(&CreateResponse::from(&info))
            }
            Route::Touch(id) => {
                self.run(move |backend| backend.touch(&id)).await?;
                Ok(Reply::Empty(StatusCode::OK))
            }
            Route::Exec(id) => {
                let bytes = self.json(&head.headers, body).await?;
                let cancel = Cancel::new();
                let command = command_of(&bytes)?.cancel_on(&cancel);
                let _ends = CancelOnDrop(cancel);
                let out = self.run(move |backend| backend.exec(&id, &command)).await?;
                to_json(&ExecResponse::from(&out))
            }
            Route::Upload(id, dest) => self.upload(id, dest, &head.headers, body).await,
            Route::Download(id, src) => self.download(id, src).await,
            Route::Delete(id) => match self.run(move |backend| backend.delete(&id)).await? {
                true => Ok(Reply::Empty(StatusCode::NO_CONTENT)),
                false => Err(Refusal::new(StatusCode::NOT_FOUND, "no such sandbox")),
            },
        }
    }

    async fn health(&self) -> Result<(), Refusal> {
        let known = || self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = known()
            .clone()
            .filter(|(at, _)| at.elapsed() < HEALTH_KNOWN);
        if let Some((_, health)) = recent {
            return health;
        }
        let permit = self.room()?;
        let health = self.run_with(permit, |backend| backend.health()).await;
        *known() = Some((Instant::now(), health.clone()));
        health
    }

    fn room(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let room = Arc::clone(&self.calls).try_acquire_owned();
        room.map_err(|_| Refusal::busy())
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Backend) -> OurResult<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let permit = self.room()?;
        self.run_with(permit, call).await
    }

    async fn run_with<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        call: impl FnOnce(&dyn Backend) -> OurResult<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            // Until it is over, also where nobody waits for it any more.
            let _permit = permit;
            call(&*backend)
        });
        done(task.await)
    }

    async fn json(
        &self,
        headers: &HeaderMap,
        body: &mut Option<Incoming>,
    ) -> Result<Vec<u8>, Refusal> {
        if content_length(headers).is_some_and(|length| length > MAX_JSON as u64) {
            return Err(too_large());
        }
        check_type(headers, &[JSON])?;
        let Some(incoming) = body else {
            return Ok(Vec::new());
        };
        let whole = body::receive_whole(incoming, self.body_idle, MAX_JSON).await;
        if !matches!(whole, Err(Ended::TooLarge)) {
            *body = None;
        }
        Ok(whole?)
    }

    async fn upload(
        &self,
        id: SessionId,
        dest: String,
        headers: &HeaderMap,
        body: &mut Option<Incoming>,
    ) -> Result<Reply, Refusal> {
        let types = [
            "application/x-tar",
            "application/gzip",
            "application/x-gzip",
            "application/octet-stream",
        ];
        check_type(headers, &types)?;
        let dest = SandboxPath::new("dest", dest)?.as_text()?.to_owned();
        let length = content_length(headers);
        if length.is_some_and(|length| length > self.max_upload) {
            return Err(too_large());
        }
        let (parts, received) = mpsc::channel(AHEAD);
        let permit = self.room()?;
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            let _permit = permit;
            let mut reader = UploadReader::new(received);
            backend.upload(&id, &dest, Upload::from_reader(&mut reader, length))?;
            reader.finish().map_err(|e| Error::io("the body", e))
        });
        let ended = match body.as_mut() {
            Some(body) => body::receive(body, &parts, self.body_idle, self.max_upload).await,
            None => Ended::Broken,
        };
        drop(parts);
        let result = done(task.await);
        match ended {
            Ended::Whole | Ended::Unwanted => result?,
            Ended::TooLarge => return Err(ended.into()),
            Ended::Stalled | Ended::Broken => {
                *body = None;
                return Err(ended.into());
            }
        }
        Ok(Reply::Empty(StatusCode::OK))
    }

    async fn download(&self, id: SessionId, src: String) -> Result<Reply, Refusal> {
        let src = SandboxPath::new("src", src)?.as_text()?.to_owned();
        let (parts, received) = mpsc::channel(AHEAD);
        let (began, begins) = oneshot::channel();
        let permit = self.room()?;
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            let _permit = permit;
            let archive = backend.download(&id, &src)?;
            if began.send(()).is_ok() {
                body::send_archive(archive, &parts);
            }
            Ok(())
        });
        match begins.await {
            Ok(()) => Ok(Reply::Archive(received)),
            Err(_) => {
                done(task.await)?;
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the download did not begin",
                ))
            }
        }
    }
}

fn done<T>(task: Result<OurResult<T>, JoinError>) -> Result<T, Refusal> {
    match task {
        Ok(result) => result.map_err(Refusal::from),
        Err(e) if e.is_panic() => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the backend panicked",
        )),
        Err(_) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is being stopped",
        )),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_type(headers: &HeaderMap, allowed: &[&str]) -> Result<(), Refusal> {
    let given = headers.get(CONTENT_TYPE);
    let text = given
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    match allowed.iter().any(|t| t.eq_ignore_ascii_case(essence)) {
        true => Ok(()),
        false => {
            let text = format!("the content type is {text:?}: send {}", allowed[0]);
            Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
        }
    }
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| {
        let text = format!("the body is not the JSON of this call: {e}");
        Refusal::new(StatusCode::BAD_REQUEST, text)
    })
}

fn to_json(value: &impl Serialize) -> Result<Reply, Refusal> {
    serde_json::to_vec(value).map(Reply::Json).map_err(|e| {
        let text = format!("the answer can't be written as JSON: {e}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })
}

fn spec_of(bytes: &[u8]) -> Result<SandboxSpec, Refusal> {
    let request: CreateRequest<'_> = from_json(bytes)?;
    let spec = SandboxSpec::from(request);
    spec.check()?;
    Ok(spec)
}

fn command_of(bytes: &[u8]) -> Result<Command, Refusal> {
    let request: ExecRequest<'_> = from_json(bytes)?;
    let command = Command::from(request);
    command.check()?;
    Ok(command)
}

fn write_reply(reply: Reply, response: &mut Response<()>) -> Content {
    let mut typed = |kind| {
        let value = HeaderValue::from_static(kind);
        response.headers_mut().insert(CONTENT_TYPE, value);
    };
    match reply {
        Reply::Empty(status) => {
            *response.status_mut() = status;
            Content::Whole(Bytes::new())
        }
        Reply::Text(text) => {
            typed("text/plain");
            Content::Whole(Bytes::from_static(text.as_bytes()))
        }
        Reply::Json(json) => {
            typed("application/json");
            Content::Whole(json.into())
        }
        Reply::Archive(parts) => {
            typed("application/x-tar");
            Content::Archive(parts)
        }
    }
}

fn write_refusal(refusal: &Refusal, as_json: bool, response: &mut Response<()>) -> Content {
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    let mut set = |name, value: Option<&str>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    };
    set(ALLOW, refusal.allow.as_deref());
    set(RETRY_AFTER, refusal.retry_after.as_deref());
    let wants_token = refusal.status == StatusCode::UNAUTHORIZED;
    set(WWW_AUTHENTICATE, wants_token.then_some("Bearer"));
    let json = ErrorResponse {
        error: refusal.text.as_str().into(),
    };
    match serde_json::to_vec(&json) {
        Ok(json) if as_json => {
            set(CONTENT_TYPE, Some("application/json"));
            Content::Whole(json.into())
        }
        _ => {
            set(CONTENT_TYPE, Some("text/plain; charset=utf-8"));
            Content::Whole(refusal.text.clone().into())
        }
    }
}
