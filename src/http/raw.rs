//! Single requests without retries of responses, for the conformance checker.

use std::time::Duration;

use super::backend::HttpBackend;
use super::call::{Call, read_body};
use super::errors::Operation;
use super::socket::CallOptions;
use super::transport::Body;
use crate::backend::wire::ACCEPT_LIVE;
use crate::cancel::Cancel;
use crate::error::Result;

/// Maximum size of a response body, in bytes. No check needs more.
const MAX_BODY: u64 = 8 << 20;

/// The target of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endpoint<'a> {
    Health,
    /// A path that is not part of v1.
    Unknown,
    Sandbox(&'a str),
    /// `touch` or `exec` of a sandbox.
    Call(&'a str, &'a str),
    /// Exec in a sandbox, with live output if the server has it.
    LiveExec(&'a str),
    /// Upload to a sandbox, and `dest`.
    Upload(&'a str, &'a str),
    /// Download from a sandbox, and `src`.
    Download(&'a str, &'a str),
}

/// A complete response.
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl HttpBackend {
    /// Sends a request, and repeats it only if it certainly was not received. A request without a body
    /// has no Content-Length. `timeout` defaults to the client's timeout.
    pub(crate) fn send_raw(
        &self,
        method: &'static str,
        endpoint: Endpoint<'_>,
        body: Option<(&'static str, &[u8])>,
        timeout: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<RawResponse> {
        let options = CallOptions {
            once: true,
            ..self.bounded(timeout.unwrap_or(self.timeout))
        };
        let mut call = Call::new(Operation::Exec, method, self.url(endpoint), options);
        call.cancel = Some(cancel);
        call.accepts = |_| true;
        call.request.accept = matches!(endpoint, Endpoint::LiveExec(_)).then_some(ACCEPT_LIVE);
        if let Some((content_type, bytes)) = body {
            call.request.content_type = Some(content_type).filter(|text| !text.is_empty());
            call.request.body = Body::Bytes(bytes.to_vec());
        }
        self.api.send(&mut call, |response| {
            Ok(RawResponse {
                status: response.status,
                content_type: response.header("content-type").map(str::to_owned),
                body: read_body(response, MAX_BODY)?,
            })
        })
    }

    fn url(&self, endpoint: Endpoint<'_>) -> String {
        let base = &self.api.base;
        match endpoint {
            Endpoint::Health => base.health(),
            Endpoint::Unknown => base.url("/v1/no-such-call"),
            Endpoint::Sandbox(id) => base.sandbox(id),
            Endpoint::LiveExec(id) => format!("{}/exec", base.sandbox(id)),
            Endpoint::Call(id, call) => format!("{}/{call}", base.sandbox(id)),
            Endpoint::Upload(id, dest) => base.files(id, "upload", "dest", dest),
            Endpoint::Download(id, src) => base.files(id, "download", "src", src),
        }
    }
}
