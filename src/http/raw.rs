//! Single requests as they are: for asking a server what it does with any of them.

use std::time::{Duration, Instant};

use super::HttpBackend;
use super::call::{Call, CallBody, Name, failed, read_capped};
use super::retry::{self, Repeat};
use super::socket::Bounds;
use crate::cancel::Cancel;
use crate::error::Result;

/// The most of an answer that is read, in bytes: more than any question asks for.
const MAX_BODY: u64 = 8 << 20;

/// What a request is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    Health,
    /// A path that v1 does not have.
    Unknown,
    Sandbox(&'a str),
    /// `touch` or `exec` of a sandbox.
    Call(&'a str, &'a str),
    /// A sandbox, and `dest`.
    Upload(&'a str, &'a str),
    /// A sandbox, and `src`.
    Download(&'a str, &'a str),
}

/// A whole answer.
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl HttpBackend {
    /// Sends one request; again only if it certainly was not received. Without a body there is no
    /// Content-Length either. It may take as long as the client's timeout, unless it says otherwise.
    pub(crate) fn raw(
        &self,
        method: &'static str,
        place: Place<'_>,
        body: Option<(&'static str, &[u8])>,
        time: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<RawAnswer> {
        let url = match place {
            Place::Health => self.base.health(),
            Place::Unknown => format!("{}/v1/no-such-call", self.base),
            Place::Sandbox(id) => self.base.sandbox(id),
            Place::Call(id, call) => format!("{}/{call}", self.base.sandbox(id)),
            Place::Upload(id, dest) => self.base.files(id, "upload", "dest", dest),
            Place::Download(id, src) => self.base.files(id, "download", "src", src),
        };
        let bounds = Bounds {
            once: true,
            ..self.call(time.unwrap_or(self.timeout))
        };
        let mut call = Call::new(Name::Read, method, url, bounds);
        if let Some((content_type, bytes)) = body {
            call.content_type = Some(content_type).filter(|text| !text.is_empty());
            call.body = CallBody::Bytes(bytes.to_vec());
        }
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let answer = self.http.send(call.request()?, bounds, Some(cancel));
            let answer = answer.and_then(|answer| {
                Ok(RawAnswer {
                    status: answer.status,
                    content_type: answer.header("content-type").map(str::to_owned),
                    body: read_capped(answer, MAX_BODY)?,
                })
            });
            let status = answer.as_ref().ok().map(|answer| answer.status);
            self.log(&call, status, answer.as_ref().err(), started, attempt);
            let failure = match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match retry::after_failure(self.retry, attempt, Repeat::Exec, &failure) {
                Some(pause) if cancel.sleep(pause) => attempt += 1,
                _ => return Err(failed(failure, Name::Exec, started.elapsed())),
            }
        }
    }
}
