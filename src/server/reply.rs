//! Responses: of calls that succeeded, and of requests that were refused.

use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::body::{BodyEnd, Content, Piece};
use super::budget::{Reservation, Reserved, Shortage};
use super::event_body::EventBody;
use crate::backend::events::error_event;
use crate::backend::wire::{
    ARCHIVE, EVENT_STREAM, ErrorEvent, ErrorResponse, JSON, MISSING, MISSING_SANDBOX, REQUEST_ID,
    SANDBOX_ENDED,
};
use crate::error::{Error, ErrorKind};
use crate::os::time::whole_seconds;

/// `Retry-After` of a server at a limit, in seconds.
const BUSY_RETRY_AFTER: &str = "1";

/// Response of a call that succeeded.
pub(super) enum Reply {
    Empty(StatusCode),
    Text(&'static str),
    Json(Vec<u8>),
    /// JSON whose memory is reserved until it is sent.
    Reserved(Reserved),
    Archive(mpsc::Receiver<Piece>, Reservation),
    Events(EventBody),
}

impl Reply {
    pub(super) fn json(value: &impl Serialize) -> Result<Reply, ErrorReply> {
        let json = serde_json::to_vec(value);
        json.map(Reply::Json).map_err(ErrorReply::not_json)
    }

    /// Writes the head, and returns the content.
    pub(super) fn write(self, response: &mut Response<()>) -> Content {
        let mut set_type = |media_type| {
            let value = HeaderValue::from_static(media_type);
            response.headers_mut().insert(CONTENT_TYPE, value);
        };
        match self {
            Reply::Empty(status) => {
                *response.status_mut() = status;
                Content::Whole(Bytes::new())
            }
            Reply::Text(text) => {
                set_type("text/plain");
                Content::Whole(Bytes::from_static(text.as_bytes()))
            }
            Reply::Json(json) => {
                set_type(JSON);
                Content::Whole(json.into())
            }
            Reply::Reserved(json) => {
                set_type(JSON);
                Content::Whole(Bytes::from_owner(json))
            }
            Reply::Archive(pieces, memory) => {
                set_type(ARCHIVE);
                Content::Archive(pieces, memory)
            }
            Reply::Events(events) => {
                // Without parameters: some proxies compare the whole value before they stop buffering.
                set_type(EVENT_STREAM);
                let headers = response.headers_mut();
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                // nginx buffers responses without this.
                let buffering = HeaderName::from_static("x-accel-buffering");
                headers.insert(buffering, HeaderValue::from_static("no"));
                Content::Events(events)
            }
        }
    }
}

/// Response of a request that was refused or failed.
#[derive(Debug, Clone)]
pub(super) struct ErrorReply {
    status: StatusCode,
    text: String,
    allow: Option<String>,
    retry_after: Option<String>,
    sandbox_gone: bool,
    /// Boxed, because few replies have it.
    upstream: Option<Box<Upstream>>,
}

impl ErrorReply {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> ErrorReply {
        ErrorReply {
            status,
            text: text.into(),
            allow: None,
            retry_after: None,
            sandbox_gone: false,
            upstream: None,
        }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> ErrorReply {
        ErrorReply::new(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn not_json(error: serde_json::Error) -> ErrorReply {
        let text = format!("cannot write the response as JSON: {error}");
        ErrorReply::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    pub(super) fn too_large() -> ErrorReply {
        ErrorReply::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large")
    }

    pub(super) fn busy() -> ErrorReply {
        ErrorReply::retry("too many concurrent calls, try again later")
    }

    pub(super) fn too_many_sandboxes(max: usize) -> ErrorReply {
        let mut reply = ErrorReply::retry(&format!(
            "this server's maximum of {max} sandboxes exists: delete one, or try again later"
        ));
        reply.status = StatusCode::TOO_MANY_REQUESTS;
        reply
    }

    fn retry(text: &str) -> ErrorReply {
        let mut reply = ErrorReply::new(StatusCode::SERVICE_UNAVAILABLE, text);
        reply.retry_after = Some(BUSY_RETRY_AFTER.to_owned());
        reply
    }

    pub(super) fn method_not_allowed(allow: &str) -> ErrorReply {
        let text = format!("method not allowed: use {allow}");
        let mut reply = ErrorReply::new(StatusCode::METHOD_NOT_ALLOWED, text);
        reply.allow = Some(allow.to_owned());
        reply
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Writes the head, and returns the content.
    pub(super) fn write(&self, as_json: bool, response: &mut Response<()>) -> Content {
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let mut set = |name, value: Option<&str>| {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        };
        set(ALLOW, self.allow.as_deref());
        set(RETRY_AFTER, self.retry_after.as_deref());
        let missing = HeaderName::from_static(MISSING);
        set(missing, self.sandbox_gone.then_some(MISSING_SANDBOX));
        let needs_token = self.status == StatusCode::UNAUTHORIZED;
        set(WWW_AUTHENTICATE, needs_token.then_some("Bearer"));
        let upstream = self.upstream.as_deref();
        let request_id = upstream.and_then(|upstream| upstream.request_id.as_deref());
        set(HeaderName::from_static(REQUEST_ID), request_id);
        let error = ErrorResponse {
            error: &self.text,
            code: upstream.and_then(|upstream| upstream.code.as_deref()),
        };
        match serde_json::to_vec(&error) {
            Ok(json) if as_json => {
                set(CONTENT_TYPE, Some(JSON));
                Content::Whole(json.into())
            }
            _ => {
                set(CONTENT_TYPE, Some("text/plain; charset=utf-8"));
                Content::Whole(self.text.clone().into())
            }
        }
    }
}

/// The code of an error, and the request id of another server that this one passes on.
#[derive(Debug, Clone)]
struct Upstream {
    code: Option<String>,
    request_id: Option<String>,
}

impl Upstream {
    fn of(error: &Error) -> Option<Upstream> {
        let upstream = Upstream {
            code: code_of(error).map(str::to_owned),
            request_id: error.request_id().map(str::to_owned),
        };
        (upstream.code.is_some() || upstream.request_id.is_some()).then_some(upstream)
    }
}

/// Returns the code of an error: that of the server behind this one, or our own.
fn code_of(error: &Error) -> Option<&str> {
    let ended = error.kind() == ErrorKind::OutcomeUnknown && error.is_sandbox_gone();
    error.code().or(ended.then_some(SANDBOX_ENDED))
}

fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Archive => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        // Nothing has changed, and the call may be repeated.
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
    }
}

/// Encodes the error of a call after the head of its response.
pub(super) fn encode_error_event(error: &Error) -> Vec<u8> {
    error_event(&ErrorEvent {
        response: ErrorResponse {
            error: &format!("{error:#}"),
            code: code_of(error),
        },
        status: status_of(error).as_u16(),
        request_id: error.request_id(),
    })
}

impl From<Error> for ErrorReply {
    fn from(error: Error) -> ErrorReply {
        let mut reply = ErrorReply::new(status_of(&error), format!("{error:#}"));
        reply.retry_after = error
            .retry_after()
            .map(|wait| whole_seconds(wait).to_string());
        reply.sandbox_gone = error.is_sandbox_gone();
        reply.upstream = Upstream::of(&error).map(Box::new);
        reply
    }
}

impl From<Shortage> for ErrorReply {
    fn from(shortage: Shortage) -> ErrorReply {
        match shortage {
            Shortage::Now => {
                ErrorReply::retry("the server's memory budget is used up, try again later")
            }
            Shortage::Always => ErrorReply::too_large(),
        }
    }
}

impl From<BodyEnd> for ErrorReply {
    fn from(end: BodyEnd) -> ErrorReply {
        match end {
            BodyEnd::TooLarge => ErrorReply::too_large(),
            BodyEnd::NoMemory(shortage) => shortage.into(),
            BodyEnd::Stalled => ErrorReply::new(StatusCode::REQUEST_TIMEOUT, "the body stalled"),
            BodyEnd::Broken | BodyEnd::NotRead | BodyEnd::Complete => {
                ErrorReply::bad_request("the body is incomplete")
            }
        }
    }
}
