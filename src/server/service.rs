//! The calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, spawn_blocking};

use super::admission::Visitor;
use super::auth::Auth;
use super::body::{self, BodyEnd, ReplyBody};
use super::budget::{Budget, Reservation, Reserved};
use super::maxima::Maxima;
use super::reply::{ErrorReply, Reply};
use super::route::Route;
use super::turn::CallGuard;
use crate::backend::Backend;
use crate::backend::wire::{CreateRequest, JSON};
use crate::error::Result as CallResult;
use crate::printable::printable;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

/// Maximum size of a JSON body, in bytes.
const MAX_JSON: usize = 8 * 1024 * 1024;

/// Validity of a health check of the backend.
const HEALTH_VALID: Duration = Duration::from_secs(1);

/// The time and the result of a health check.
type LastHealth = Option<(Instant, Result<(), ErrorReply>)>;

/// Handles the requests of all connections.
pub(super) struct Service {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) auth: Auth,
    /// Permits for concurrent calls.
    pub(super) calls: Arc<Semaphore>,
    pub(super) budget: Budget,
    pub(super) maxima: Arc<Maxima>,
    pub(super) max_upload: u64,
    pub(super) body_idle: Duration,
    /// The last health check. The lock is held during the next one, which needs no permit, so that one of
    /// them runs at a time.
    pub(super) health: Arc<Mutex<LastHealth>>,
}

impl Service {
    /// Handles a request. `guard` is held until the response is complete.
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
        guard: CallGuard,
        visitor: &Visitor,
    ) -> Response<ReplyBody> {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let mut body = Some(body);
        let route = self.admit(&head);
        if matches!(&route, Ok(route) if *route != Route::Health) {
            visitor.authenticated();
        }
        let as_json = route.as_ref().map_or(true, Route::has_json_errors);
        let reply = match route {
            Ok(route) => self.call(route, &head, &mut body).await,
            Err(refused) => Err(refused),
        };
        // A client that sent `Expect` has not sent its body.
        if let Some(body) = body.filter(|_| !head.headers.contains_key(EXPECT)) {
            body::drain(body);
        }
        let mut response = Response::new(());
        let content = match reply {
            Ok(reply) => reply.write(&mut response),
            Err(refused) => refused.write(as_json, &mut response),
        };
        log::info!(
            target: "noxrunner::server",
            "{} {} {} {} ms",
            head.method,
            printable(head.uri.path()),
            response.status().as_u16(),
            started.elapsed().as_millis()
        );
        response.map(|()| ReplyBody::new(content, guard))
    }

    /// Checks authentication and finds the call.
    fn admit(&self, head: &Parts) -> Result<Route, ErrorReply> {
        self.auth.check_host(&head.headers, head.version)?;
        // Health checks need no token.
        if head.uri.path() != "/healthz" {
            self.auth.check_token(&head.headers)?;
        }
        Route::find(&head.method, &head.uri)
    }

    /// Runs a call. Takes the body if the call reads it completely.
    async fn call(
        &self,
        route: Route,
        head: &Parts,
        body: &mut Option<Incoming>,
    ) -> Result<Reply, ErrorReply> {
        match route {
            Route::Health => self.health().await.map(|()| Reply::Text("OK")),
            Route::Create(id) => {
                let received = self.receive_json::<CreateRequest<'_>>(&head.headers, body);
                let (request, _memory) = received.await?;
                self.create(id, SandboxSpec::from(request)).await
            }
            Route::Touch(id) => self.touch(id).await,
            Route::Exec(id) => self.exec(id, &head.headers, body).await,
            Route::Upload(id, dest) => self.upload(id, dest, &head.headers, body).await,
            Route::Download(id, src) => self.download(id, src).await,
            Route::Delete(id) => self.delete(id).await,
        }
    }

    async fn create(&self, id: SessionId, spec: SandboxSpec) -> Result<Reply, ErrorReply> {
        spec.check()?;
        let spec = self.maxima.apply(spec)?;
        let permit = self.call_permit()?;
        let is_new = self.maxima.begin(&id, spec.get_ttl())?;
        let maxima = Arc::clone(&self.maxima);
        // Counted in the call itself, which continues if the client disconnects.
        let create = move |backend: &dyn Backend| {
            let created = backend.create(&id, &spec);
            match &created {
                Ok(_) => maxima.renew(&id),
                Err(_) if is_new => maxima.end(&id),
                Err(_) => {}
            }
            created
        };
        Reply::json(&self.run_with(permit, create).await?)
    }

    async fn touch(&self, id: SessionId) -> Result<Reply, ErrorReply> {
        let maxima = Arc::clone(&self.maxima);
        let touch = move |backend: &dyn Backend| {
            let touched = backend.touch(&id);
            match &touched {
                Ok(()) => maxima.renew(&id),
                Err(e) if e.is_not_found() => maxima.end(&id),
                Err(_) => {}
            }
            touched
        };
        self.run(touch).await?;
        Ok(Reply::Empty(StatusCode::OK))
    }

    async fn delete(&self, id: SessionId) -> Result<Reply, ErrorReply> {
        let maxima = Arc::clone(&self.maxima);
        let delete = move |backend: &dyn Backend| {
            let existed = backend.delete(&id)?;
            maxima.end(&id);
            Ok(existed)
        };
        if self.run(delete).await? {
            Ok(Reply::Empty(StatusCode::NO_CONTENT))
        } else {
            Err(ErrorReply::new(StatusCode::NOT_FOUND, "no such sandbox"))
        }
    }

    async fn health(&self) -> Result<(), ErrorReply> {
        let mut last = Arc::clone(&self.health).lock_owned().await;
        if let Some((_, health)) = last.clone().filter(|(at, _)| at.elapsed() < HEALTH_VALID) {
            return health;
        }
        let check = move |backend: &dyn Backend| {
            let health = backend.health().map_err(ErrorReply::from);
            *last = Some((Instant::now(), health.clone()));
            Ok(health)
        };
        self.run_with((), check).await?
    }

    pub(super) fn call_permit(&self) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        permit.map_err(|_| ErrorReply::busy())
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Backend) -> CallResult<T> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let permit = self.call_permit()?;
        self.run_with(permit, call).await
    }

    async fn run_with<T: Send + 'static>(
        &self,
        permit: impl Send + 'static,
        call: impl FnOnce(&dyn Backend) -> CallResult<T> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            // Held until the call ends, even if its client has disconnected.
            let _permit = permit;
            call(&*backend)
        });
        join(task.await)
    }

    /// Receives a JSON body. Returns its values, and the memory that is reserved for them.
    pub(super) async fn receive_json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: &mut Option<Incoming>,
    ) -> Result<(T, Reservation), ErrorReply> {
        if content_length(headers).is_some_and(|length| length > MAX_JSON as u64) {
            return Err(ErrorReply::too_large());
        }
        check_content_type(headers, &[JSON])?;
        let Some(incoming) = body else {
            return Err(BodyEnd::Broken.into());
        };
        let received = body::receive_whole(incoming, self.body_idle, MAX_JSON, &self.budget).await;
        // The rest of a refused body is still to be read.
        if !received.as_ref().is_err_and(BodyEnd::leaves_rest) {
            *body = None;
        }
        let Reserved { bytes, mut memory } = received?;
        let values = values_size(&bytes);
        memory.grow_by(values)?;
        let parsed = parse_json(&bytes)?;
        drop(bytes);
        memory.shrink_to(values);
        Ok((parsed, memory))
    }
}

/// Returns the maximum size of the values of a JSON text in memory.
fn values_size(json: &[u8]) -> u64 {
    /// A short text, in a list that grows by doubling, and its copy in a command.
    const VALUE: u64 = 256;
    let starts_value = |byte: &&u8| matches!(byte, b',' | b':' | b'[' | b'{');
    let values = json.iter().filter(starts_value).count() as u64;
    values * VALUE + 2 * json.len() as u64
}

/// Returns the result of a call that ran on a blocking thread.
pub(super) fn join<T>(task: Result<CallResult<T>, JoinError>) -> Result<T, ErrorReply> {
    match task {
        Ok(result) => result.map_err(ErrorReply::from),
        Err(e) if e.is_panic() => Err(ErrorReply::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the backend panicked",
        )),
        Err(_) => Err(ErrorReply::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down",
        )),
    }
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn check_content_type(headers: &HeaderMap, allowed: &[&str]) -> Result<(), ErrorReply> {
    let value = headers.get(CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    let value = value.unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if allowed.iter().any(|t| t.eq_ignore_ascii_case(essence)) {
        return Ok(());
    }
    let text = format!("unsupported content type {value:?}: use {}", allowed[0]);
    Err(ErrorReply::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ErrorReply> {
    serde_json::from_slice(bytes)
        .map_err(|e| ErrorReply::bad_request(format!("the body is not the JSON of this call: {e}")))
}
