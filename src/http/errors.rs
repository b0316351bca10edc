//! Errors of calls over HTTP: what a failure or an error response means to the caller.

use std::io::Read;
use std::time::Duration;

use super::base_url::BaseUrl;
use super::socket::Progress;
use super::transport::{Failure, FailureKind, Response};
use crate::backend::wire::{
    EXEC_TIMEOUT, MISSING, MISSING_SANDBOX, REQUEST_ID, SANDBOX_ENDED, ServerError,
};
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, one_line};

/// Maximum time for reading the body of an error response.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of the message for a command whose outcome is unknown.
const MAY_HAVE_RUN: &str = "; the command may have run";

/// The time after which a server or a proxy may have cut a connection because the response took too long.
const SUSPICIOUS: Duration = Duration::from_secs(5);

/// The end of the message for a command without a response.
const RESPONSE_ADVICE: &str = ": some servers and proxies limit the time of a response, so run long commands \
    as jobs with spawn()";

/// The end of the message for a command that exceeded the server's maximum, which the answer does not name.
const EXEC_TIMEOUT_ADVICE: &str = "; the command ran into its own timeout or the server's maximum, \
    which is 300 s on some servers, or 60 s for one response: run it as a job with spawn()";

/// Category of a call, by the effect of sending it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Changes nothing.
    Read,
    /// Changes something; sending it twice has the same effect as once.
    Change,
    /// Runs a command.
    Exec,
}

/// Returns the error of a call that got no response. `sent_before` is true if an earlier attempt may have
/// had the effect.
pub(super) fn failure_error(
    failure: Failure,
    operation: Operation,
    sent_before: bool,
    elapsed: Duration,
) -> Error {
    let (progress, sent) = (failure.progress, failure.progress == Progress::Sent);
    let kind = match error_kind(progress, failure.kind, operation) {
        ErrorKind::Connect if sent_before && operation == Operation::Change => {
            ErrorKind::OutcomeUnknown
        }
        kind => kind,
    };
    let mut message = failure.message;
    if failure.kind == FailureKind::TimedOut {
        message = format!("timed out after {:.1} s: {message}", elapsed.as_secs_f64());
    }
    let may_have_run = matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Cancelled);
    if operation == Operation::Exec && sent && may_have_run {
        if failure.kind == FailureKind::Broken {
            message.push_str(&format!(" after {:.1} s", elapsed.as_secs_f64()));
        }
        message.push_str(MAY_HAVE_RUN);
        if failure.kind == FailureKind::Broken && elapsed > SUSPICIOUS {
            message.push_str(RESPONSE_ADVICE);
        }
    }
    let error = Error::new(kind, message);
    match failure.cause.map(Error::from_io) {
        None => error,
        Some(Ok(own)) => own,
        Some(Err(e)) => error.with_source(e),
    }
}

fn error_kind(progress: Progress, failure: FailureKind, operation: Operation) -> ErrorKind {
    match (progress, failure, operation) {
        (_, FailureKind::Cancelled, _) => ErrorKind::Cancelled,
        (Progress::Sent, _, Operation::Exec) => ErrorKind::OutcomeUnknown,
        (Progress::Sent, FailureKind::NotHttp, _) => ErrorKind::Protocol,
        (Progress::Sent, FailureKind::TimedOut, _) => ErrorKind::Timeout,
        (Progress::Sent, _, Operation::Change) => ErrorKind::OutcomeUnknown,
        (Progress::Sent, _, Operation::Read) => ErrorKind::Connect,
        // An exec that was not received has not run, whatever the time.
        (_, FailureKind::TimedOut, Operation::Read | Operation::Change) => ErrorKind::Timeout,
        _ => ErrorKind::Connect,
    }
}

/// An error response.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The error is one of a NoxRunner server, and not of a proxy.
    pub(super) is_own: bool,
}

/// Reads an error response.
pub(super) fn refusal(
    response: Response,
    operation: Operation,
    url: &str,
    base: &BaseUrl,
) -> Refusal {
    let status = response.status;
    // Only a download has another reason for a 404: the path.
    let names_sandbox = response.header(MISSING) == Some(MISSING_SANDBOX);
    let gone = status == 404 && (operation != Operation::Read || names_sandbox);
    let wait = response.retry_after();
    let header_id = response.header(REQUEST_ID).map(str::to_owned);
    let location = response.header("location");
    let redirect = location.map(|location| redirect(location, url, base));
    let body = read_error_body(response);
    let said = ServerError::parse(&body);
    let is_own = said.is_some();
    let said = said.unwrap_or_default();
    let gone = gone || said.code.as_deref() == Some(SANDBOX_ENDED);
    let timed_out = status == 504 && said.code.as_deref() == Some(EXEC_TIMEOUT);
    let kind = match status_kind(status, operation) {
        ErrorKind::OutcomeUnknown if timed_out => ErrorKind::Timeout,
        // A proxy may have delivered the request before.
        ErrorKind::NotReady if operation == Operation::Exec && !is_own && wait.is_none() => {
            ErrorKind::OutcomeUnknown
        }
        kind => kind,
    };
    let error = Error::new(kind, message(status, kind, redirect, &said, &body))
        .with_status(status)
        .with_sandbox_gone(gone)
        .with_body(&body)
        .with_code(said.code)
        .with_request_id(said.request_id.or(header_id))
        .with_retry_after(wait);
    Refusal { error, is_own }
}

fn message(
    status: u16,
    kind: ErrorKind,
    redirect: Option<String>,
    said: &ServerError,
    body: &[u8],
) -> String {
    let code = said.code.as_deref().map(one_line);
    let code = code.map_or(String::new(), |code| format!(" ({code})"));
    let whole = String::from_utf8_lossy(body);
    let text = said.message.as_deref().unwrap_or(&whole);
    let explanation = explanation(status, redirect, text);
    let end = match kind {
        ErrorKind::OutcomeUnknown => MAY_HAVE_RUN,
        ErrorKind::Timeout => EXEC_TIMEOUT_ADVICE,
        _ => "",
    };
    format!("server answered {status}{code}{explanation}{end}")
}

fn status_kind(status: u16, operation: Operation) -> ErrorKind {
    match status {
        400 | 422 => ErrorKind::InvalidInput,
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        503 => ErrorKind::NotReady,
        // A gateway may have lost the backend while the command was running.
        502 | 504 if operation == Operation::Exec => ErrorKind::OutcomeUnknown,
        _ => ErrorKind::Status,
    }
}

/// Returns the part of the message after the status. `text` is from the server.
fn explanation(status: u16, redirect: Option<String>, text: &str) -> String {
    let mut explanation = match (status, redirect) {
        (300..=399, Some(redirect)) => redirect,
        _ if text.trim().is_empty() => String::new(),
        _ => format!(": {}", one_line(text)),
    };
    if status == 401 {
        explanation.push_str(
            " (set a token with token(), or the header that the server needs with header())",
        );
    }
    if status == 407 {
        explanation.push_str(" (the proxy needs credentials: http://USER:PASSWORD@HOST:PORT)");
    }
    explanation
}

/// Explains a redirect. If only the base URL differs, names the new one.
fn redirect(location: &str, url: &str, base: &BaseUrl) -> String {
    let new_base = match location.strip_suffix(base.path(url)) {
        Some(prefix) if prefix.contains("://") => prefix.to_owned(),
        Some(prefix) if !prefix.starts_with("//") => format!("{}{prefix}", base.origin()),
        _ => {
            let location = one_line(location);
            return format!(
                ", a redirect to {location}, which is not followed: check the base URL"
            );
        }
    };
    let new_base = one_line(&new_base);
    format!(", a redirect, which is not followed: use {new_base} as the base URL")
}

/// Returns the error of an exec that failed after the head of its response. `json` is the data of the
/// event.
pub(super) fn event_error(json: &[u8]) -> Error {
    let said = ServerError::parse(json).unwrap_or_default();
    let whole = || String::from_utf8_lossy(json).into_owned();
    let text = said.message.unwrap_or_else(whole);
    let text = one_line(&text);
    let error = match said.status {
        Some(status) => {
            let kind = match said.code.as_deref() {
                Some(EXEC_TIMEOUT) => ErrorKind::Timeout,
                _ => status_kind(status, Operation::Exec),
            };
            let message = format!("server reported {status}: {text}");
            Error::new(kind, message).with_status(status)
        }
        None => Error::new(ErrorKind::Status, format!("server reported: {text}")),
    };
    error
        .with_sandbox_gone(said.status == Some(404) || said.code.as_deref() == Some(SANDBOX_ENDED))
        .with_body(json)
        .with_code(said.code)
        .with_request_id(said.request_id)
}

/// Reads what arrives of the body in a short time. If that is all, the connection can be reused. The
/// status alone says what matters, so errors are ignored.
fn read_error_body(response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let _ = response
        .body
        .within(ERROR_BODY_TIMEOUT)
        .take(MAX_ERROR_BODY as u64)
        .read_to_end(&mut body);
    body
}
