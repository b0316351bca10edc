//! One call of the protocol: sent until an answer is worth keeping, and what it means if none is.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::HttpBackend;
use super::retry::{self, Repeat};
use super::socket::{Bounds, Reach};
use super::transport::{Answer, Body, Failure, Request, What};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, Result, one_line};
use crate::upload::Upload;

/// How long the body of a refusal is waited for.
const ERROR_BODY_TIME: Duration = Duration::from_secs(2);

/// The largest JSON answer that is read, in bytes. Two streams of 1 MiB, each byte written as
/// `\u0000`, are 12 MiB.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// One call of the protocol, as its tries need it.
pub(super) struct Call<'a> {
    pub(super) name: Name,
    pub(super) method: &'static str,
    pub(super) url: String,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: CallBody<'a>,
    pub(super) bounds: Bounds,
    pub(super) cancel: Option<&'a Cancel>,
    /// No try begins after this.
    pub(super) last_start: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Read,
    Change,
    Exec,
}

pub(super) enum CallBody<'a> {
    None,
    Bytes(Vec<u8>),
    Upload(Upload<'a>),
}

impl<'a> Call<'a> {
    pub(super) fn new(name: Name, method: &'static str, url: String, bounds: Bounds) -> Call<'a> {
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

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Call<'a>> {
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

    pub(super) fn request(&mut self) -> Result<Request<'_>> {
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
    /// Sends the request until there is an answer that no other try can mend. `finish` reads what a
    /// good answer says, so that one that breaks off counts as none.
    pub(super) fn send<T>(
        &self,
        call: &mut Call<'_>,
        finish: impl Fn(Answer) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let repeat = call.repeat();
        let first = Instant::now();
        let mut attempt = 1;
        // An earlier try may have done what the last one says it has not.
        let mut sent_before = false;
        loop {
            let started = Instant::now();
            let (bounds, cancel) = (call.bounds, call.cancel);
            let answer = self.http.send(call.request()?, bounds, cancel);
            let status = answer.as_ref().ok().map(|answer| answer.status);
            let outcome = match answer {
                Ok(answer) if answer.is_success() => finish(answer).map(Outcome::Good),
                Ok(answer) => Ok(Outcome::Refused(answer)),
                Err(failure) => Err(failure),
            };
            self.log(call, status, outcome.as_ref().err(), started, attempt);
            let (pause, error) = match outcome {
                Ok(Outcome::Good(value)) => return Ok(value),
                Ok(Outcome::Refused(answer)) => {
                    let (status, wait) = (answer.status, retry_after(&answer));
                    // A gateway's words for a backend that it lost, perhaps in the middle.
                    sent_before |= matches!(status, 502 | 504);
                    let pause = retry::after_status(self.retry, attempt, repeat, status, wait);
                    (pause, refusal(answer, call.name))
                }
                Err(failure) => {
                    let pause = retry::after_failure(self.retry, attempt, repeat, &failure);
                    let sent = failure.reach == Reach::Sent;
                    let error = failed(failure, call.name, first.elapsed());
                    let known = call.name != Name::Change || error.kind() != ErrorKind::Connect;
                    let error = match known || !sent_before {
                        true => error,
                        false => error.with_kind(ErrorKind::OutcomeUnknown),
                    };
                    sent_before |= sent;
                    (pause, error)
                }
            };
            let in_time = |pause: &Duration| match call.last_start {
                Some(end) => Instant::now() + *pause < end,
                None => *pause < call.bounds.stall,
            };
            let Some(pause) = pause.filter(in_time) else {
                return Err(error);
            };
            self.wait(pause, call)?;
            attempt += 1;
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

    pub(super) fn log(
        &self,
        call: &Call<'_>,
        status: Option<u16>,
        failure: Option<&Failure>,
        started: Instant,
        attempt: u32,
    ) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let path = call
            .url
            .strip_prefix(&self.base.to_string())
            .unwrap_or_default();
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let why = failure.map_or(String::new(), |failure| format!(": {}", failure.message));
        let millis = started.elapsed().as_millis();
        log::debug!(
            "{} {path} {status} {millis} ms, attempt {attempt}{why}",
            call.method
        );
    }

    /// Sends the request; all that a good answer says is its status.
    pub(super) fn send_plain(&self, mut call: Call<'_>) -> Result<()> {
        // The body is empty or any text; reading it frees the connection.
        self.send(&mut call, |answer| {
            read_capped(answer, MAX_ERROR_BODY as u64)
        })
        .map(drop)
    }

    pub(super) fn send_json<T: for<'de> Deserialize<'de>>(&self, mut call: Call<'_>) -> Result<T> {
        let (status, body) = self.send(&mut call, |answer| {
            Ok((answer.status, read_capped(answer, MAX_JSON + 1)?))
        })?;
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
            // It may quote all of the answer.
            let why = one_line(&e.to_string());
            let text = format!("the answer is not the JSON of NoxRunner v1: {why}");
            Error::new(kind, text).with_status(status).with_body(&body)
        })
    }
}

enum Outcome<T> {
    Good(T),
    Refused(Answer),
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    answer
        .header("retry-after")
        .and_then(retry::parse_retry_after)
}

pub(super) fn read_capped(answer: Answer, cap: u64) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    answer
        .body
        .take(cap)
        .read_to_end(&mut bytes)
        .map_err(Failure::cut_off)?;
    Ok(bytes)
}

/// What it means to the caller that there is no answer.
pub(super) fn failed(failure: Failure, name: Name, elapsed: Duration) -> Error {
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
        ErrorKind::OutcomeUnknown if name == Name::Exec && reach == Reach::Sent => {
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

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

fn refusal(answer: Answer, name: Name) -> Error {
    let status = answer.status;
    let kind = match status {
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        503 => ErrorKind::NotReady,
        // A gateway's words for a backend that it lost, perhaps in the middle of the command.
        502 | 504 if name == Name::Exec => ErrorKind::OutcomeUnknown,
        _ => ErrorKind::Status,
    };
    let wait = retry_after(&answer);
    let location = answer.header("location").map(one_line);
    // As much as comes of it in a moment; the status alone says what matters. Once it is read to
    // its end, the connection can be used again.
    let mut body = Vec::new();
    let _ = answer
        .body
        .within(ERROR_BODY_TIME)
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
