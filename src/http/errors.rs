//! Errors of calls over HTTP: what a failure or an error response means to the caller.

use std::io::Read;
use std::time::Duration;

use super::socket::Progress;
use super::transport::{Failure, FailureKind, Response};
use crate::backend::wire::{ErrorResponse, MISSING, MISSING_SANDBOX};
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, one_line};

/// Maximum time for reading the body of an error response.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

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
        message.push_str("; the command may have run");
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

/// Returns the error of an error response.
pub(super) fn response_error(response: Response, operation: Operation) -> Error {
    let status = response.status;
    let kind = match status {
        400 | 422 => ErrorKind::InvalidInput,
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        503 => ErrorKind::NotReady,
        // A gateway may have lost the backend while the command was running.
        502 | 504 if operation == Operation::Exec => ErrorKind::OutcomeUnknown,
        _ => ErrorKind::Status,
    };
    // Only a download has another reason for a 404: the path.
    let names_sandbox = response.header(MISSING) == Some(MISSING_SANDBOX);
    let gone = status == 404 && (operation != Operation::Read || names_sandbox);
    let wait = response.retry_after();
    let location = response.header("location").map(one_line);
    let body = read_error_body(response);
    let text = match serde_json::from_slice::<ErrorResponse<'_>>(&body) {
        Ok(json) => json.error.into_owned(),
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    let mut message = format!("server answered {status}");
    match (status, location) {
        (300..=399, Some(location)) => message.push_str(&format!(
            ", a redirect to {location}, which is not followed: use it as the base URL"
        )),
        _ if text.trim().is_empty() => {}
        _ => message.push_str(&format!(": {}", one_line(&text))),
    }
    if status == 401 {
        message.push_str(" (set a token with token())");
    }
    Error::new(kind, message)
        .with_status(status)
        .with_sandbox_gone(gone)
        .with_body(&body)
        .with_retry_after(wait)
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
