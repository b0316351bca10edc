//! Calls of the protocol: sent until they succeed or cannot be retried.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::base_url::BaseUrl;
use super::errors::{Operation, Refusal, failure_error, refusal};
use super::retry::{Attempts, Next, Repeatable, Retry};
use super::socket::{CallOptions, Progress};
use super::transport::{Body, Failure, HttpClient, Request, Response};
use crate::backend::wire::JSON;
use crate::cancel::{Cancel, sleep};
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, Result, one_line};
use crate::lenient_json;
use crate::printable::printable;

/// Maximum size of a JSON response, in bytes. Two streams of 1 MiB with every byte escaped as `\u0000`
/// need 12 MiB.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// A call of the protocol.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) request: Request<'a>,
    pub(super) options: CallOptions,
    pub(super) cancel: Option<&'a Cancel>,
    /// No attempt starts after this.
    pub(super) last_start: Option<Instant>,
    /// The timeout of the call, which is also the default of how long to wait for a rate limit.
    pub(super) timeout: Duration,
    pub(super) is_repeated_by_caller: bool,
    /// Returns true for the statuses of a success.
    pub(super) accepts: fn(u16) -> bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        operation: Operation,
        method: &'static str,
        url: String,
        options: CallOptions,
    ) -> Call<'a> {
        Call {
            operation,
            request: Request {
                method,
                url,
                content_type: None,
                accept: None,
                body: Body::None,
                chunked: false,
            },
            options,
            cancel: None,
            last_start: options.deadline,
            timeout: options.stall,
            is_repeated_by_caller: false,
            accepts: |status| (200..300).contains(&status),
        }
    }

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Call<'a>> {
        let bytes = serde_json::to_vec(body)
            .map_err(|e| Error::invalid("cannot be written as JSON").with_source(e))?;
        self.request.content_type = Some(JSON);
        self.request.body = Body::Bytes(bytes);
        Ok(self)
    }

    fn repeatable(&self) -> Repeatable {
        match (&self.request.body, self.operation) {
            (Body::Upload(upload), _) if !upload.is_replayable() => Repeatable::IfUnsent,
            (_, Operation::Exec) => Repeatable::IfNotReceived,
            _ => Repeatable::Always,
        }
    }

    /// Returns true if another attempt may start after a pause.
    fn may_start_after(&self, pause: Duration) -> bool {
        match self.last_start {
            Some(end) => Instant::now() + pause < end,
            None => pause < self.options.stall,
        }
    }

    /// Moves the time limits of the call after a wait that does not count.
    fn postpone(&mut self, waited: Duration) {
        let limits = [
            &mut self.options.deadline,
            &mut self.options.connect_by,
            &mut self.last_start,
        ];
        for limit in limits.into_iter().flatten() {
            *limit += waited;
        }
    }

    fn rewind(&mut self) -> Result<()> {
        if let Body::Upload(upload) = &mut self.request.body {
            let failed = |e| Error::io("cannot read the archive again", e);
            upload.rewind().map_err(failed)?;
        }
        Ok(())
    }
}

/// Result of one attempt.
enum Attempt<T> {
    Success(T),
    ErrorResponse(Response),
    Failed(Failure),
}

/// The API of a server: sends calls, and retries them.
pub(super) struct Api {
    pub(super) http: Arc<HttpClient>,
    pub(super) base: BaseUrl,
    pub(super) retry: Retry,
    /// Header lines of each request, beside those of the connection.
    pub(super) headers: Arc<[u8]>,
}

impl Api {
    /// Sends a call until it succeeds or cannot be retried. `finish` reads the body of a success, so
    /// that a response that breaks off counts as a failed attempt.
    pub(super) fn send<T>(
        &self,
        call: &mut Call<'_>,
        finish: impl Fn(Response) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut attempts = Attempts::new(self.retry(call), call.repeatable(), call.timeout);
        let mut first = Instant::now();
        // An earlier attempt may have had the effect that the last one reports as not done.
        let mut sent_before = false;
        loop {
            let started = Instant::now();
            let (next, error) = match self.attempt(call, attempts.number(), &finish)? {
                Attempt::Success(value) => return Ok(value),
                Attempt::ErrorResponse(response) => {
                    self.after_response(response, call, &mut attempts, &mut sent_before)
                }
                Attempt::Failed(failure) => {
                    let next = attempts.after_failure(&failure);
                    let sent = failure.progress == Progress::Sent;
                    let error =
                        failure_error(failure, call.operation, sent_before, first.elapsed());
                    sent_before |= sent;
                    (next, error)
                }
            };
            match next {
                Next::Retry(pause) if call.may_start_after(pause) => sleep(pause, call.cancel)?,
                Next::Wait(pause) => {
                    sleep(pause, call.cancel)?;
                    let waited = started.elapsed();
                    attempts.waited(waited);
                    call.postpone(waited);
                    first += waited;
                }
                _ => return Err(error),
            }
        }
    }

    /// Decides after an error response, and returns its error.
    fn after_response(
        &self,
        response: Response,
        call: &Call<'_>,
        attempts: &mut Attempts,
        sent_before: &mut bool,
    ) -> (Next, Error) {
        let status = response.status;
        let Refusal { error, is_own } =
            refusal(response, call.operation, &call.request.url, &self.base);
        let wait = error.retry_after();
        // A gateway may have lost the backend in the middle of the call.
        *sent_before |= match status {
            502 | 504 => true,
            503 => !is_own && wait.is_none(),
            _ => false,
        };
        (attempts.after_response(status, wait, is_own), error)
    }

    /// Returns the retries of a call. A caller that repeats the call itself also waits itself.
    fn retry(&self, call: &Call<'_>) -> Retry {
        if call.is_repeated_by_caller {
            self.retry.wait_for(Duration::ZERO)
        } else {
            self.retry
        }
    }

    fn attempt<T>(
        &self,
        call: &mut Call<'_>,
        number: u32,
        finish: impl Fn(Response) -> std::result::Result<T, Failure>,
    ) -> Result<Attempt<T>> {
        let started = Instant::now();
        call.rewind()?;
        let request = &mut call.request;
        let response = self
            .http
            .send(request, &self.headers, call.options, call.cancel);
        let status = response.as_ref().ok().map(|response| response.status);
        let attempt = match response {
            Ok(response) if (call.accepts)(response.status) => match finish(response) {
                Ok(value) => Attempt::Success(value),
                Err(failure) => Attempt::Failed(failure),
            },
            Ok(response) => Attempt::ErrorResponse(response),
            Err(failure) => Attempt::Failed(failure),
        };
        if log::log_enabled!(log::Level::Debug) {
            let Request { method, url, .. } = &call.request;
            let path = self.base.path(url);
            let status = status.map_or("-".to_owned(), |status| status.to_string());
            let reason = match &attempt {
                Attempt::Failed(failure) => format!(": {}", printable(&failure.message)),
                _ => String::new(),
            };
            let millis = started.elapsed().as_millis();
            log::debug!("{method} {path} {status} {millis} ms, attempt {number}{reason}");
        }
        Ok(attempt)
    }

    /// Sends a call whose response has nothing but a status.
    pub(super) fn send_plain(&self, mut call: Call<'_>) -> Result<()> {
        // The body is empty or any text. Reading it lets the connection be reused.
        self.send(&mut call, |response| {
            read_body(response, MAX_ERROR_BODY as u64)
        })
        .map(drop)
    }

    /// Sends a call whose response is JSON.
    pub(super) fn send_json<T: DeserializeOwned>(&self, mut call: Call<'_>) -> Result<T> {
        let (status, body) = self.send(&mut call, read_json)?;
        parse_json(call.operation, status, &body)
    }
}

/// Reads a JSON response. Returns its status and its body.
pub(super) fn read_json(response: Response) -> std::result::Result<(u16, Vec<u8>), Failure> {
    Ok((response.status, read_body(response, MAX_JSON + 1)?))
}

/// Parses the body of a JSON response.
pub(super) fn parse_json<T: DeserializeOwned>(
    operation: Operation,
    status: u16,
    body: &[u8],
) -> Result<T> {
    if body.len() as u64 > MAX_JSON {
        let message = format!("the response is larger than {MAX_JSON} bytes");
        return Err(Error::new(ErrorKind::Protocol, message).with_status(status));
    }
    lenient_json::from_slice(body).map_err(|e| {
        // A body without a length ends with the connection, also where that breaks.
        let kind = match operation {
            Operation::Exec if e.is_eof() => ErrorKind::OutcomeUnknown,
            _ => ErrorKind::Protocol,
        };
        // The reason may quote the whole response.
        let reason = one_line(&e.to_string());
        let message = format!("the response is not the JSON of NoxRunner v1: {reason}");
        Error::new(kind, message)
            .with_status(status)
            .with_body(body)
    })
}

/// Reads at most `max` bytes of the body.
pub(super) fn read_body(response: Response, max: u64) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    response
        .body
        .take(max)
        .read_to_end(&mut bytes)
        .map_err(Failure::cut_off)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::upload::Upload;

    const STALL: Duration = Duration::from_secs(10);
    const MINUTE: Duration = Duration::from_secs(60);

    fn call<'a>(operation: Operation, deadline: Option<Instant>) -> Call<'a> {
        let options = CallOptions {
            connect: STALL,
            connect_by: deadline,
            stall: STALL,
            deadline,
            once: false,
        };
        Call::new(operation, "POST", String::new(), options)
    }

    #[test]
    fn next_attempt_starts_before_the_deadline() {
        let call = call(Operation::Change, Some(Instant::now() + MINUTE));
        assert!(call.may_start_after(Duration::ZERO));
        assert!(!call.may_start_after(MINUTE));
        assert!(!call.may_start_after(2 * MINUTE));
    }

    #[test]
    fn next_attempt_of_a_transfer_starts_before_it_counts_as_stalled() {
        let call = call(Operation::Change, None);
        assert!(call.may_start_after(STALL - Duration::from_nanos(1)));
        assert!(!call.may_start_after(STALL));
        assert!(!call.may_start_after(STALL + Duration::from_nanos(1)));
    }

    #[test]
    fn waits_for_a_rate_limit_move_all_time_limits() {
        let deadline = Instant::now() + MINUTE;
        let mut call = call(Operation::Exec, Some(deadline));
        call.postpone(STALL);
        let later = Some(deadline + STALL);
        assert_eq!(call.options.deadline, later);
        assert_eq!(call.options.connect_by, later);
        assert_eq!(call.last_start, later);
    }

    #[test]
    fn repetition_depends_on_the_operation_and_the_body() {
        let repeatable = |operation, body| {
            let mut call = call(operation, None);
            call.request.body = body;
            call.repeatable()
        };
        let json = || Body::Bytes(Vec::new());
        assert_eq!(
            repeatable(Operation::Exec, json()),
            Repeatable::IfNotReceived
        );
        assert_eq!(repeatable(Operation::Change, json()), Repeatable::Always);
        assert_eq!(repeatable(Operation::Read, Body::None), Repeatable::Always);
        let mut archives = [Cursor::new(Vec::new()), Cursor::new(Vec::new())];
        let [read_once, seekable] = &mut archives;
        let once = Upload::from_reader(read_once, None);
        let once = repeatable(Operation::Change, Body::Upload(once));
        assert_eq!(once, Repeatable::IfUnsent);
        let again = Upload::from_seekable(seekable).unwrap();
        let again = repeatable(Operation::Change, Body::Upload(again));
        assert_eq!(again, Repeatable::Always);
    }
}
