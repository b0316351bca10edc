//! JSON APIs other than NoxRunner v1: those of container engines and of Kubernetes.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "kubernetes")]
use super::backend::HttpBackend;
use super::base_url::BaseUrl;
use super::builder::{DEFAULT_CONNECT_TIMEOUT, USER_AGENT, environment_proxy};
use super::call::{Api, Call, read_body};
use super::errors::Operation;
use super::retry::Retry;
use super::socket::CallOptions;
#[cfg(feature = "kubernetes")]
use super::transport::header_lines;
use super::transport::{Body, HttpClient, ResponseBody, Settings};
#[cfg(feature = "docker")]
use crate::backend::wire::ARCHIVE;
use crate::backend::wire::JSON;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, one_line};

/// Maximum size of a response in one piece, in bytes. A list of 1,000 pods has about 8 MiB.
const MAX_BODY: u64 = 64 << 20;

/// Settings of a [`RestClient`].
#[derive(Default)]
pub(crate) struct RestSettings {
    pub(crate) base_url: String,
    /// Headers of every request. Their values are never shown or logged.
    pub(crate) headers: Vec<(String, String)>,
    /// The certificates to trust, instead of the default ones.
    pub(crate) ca_pem: Option<Vec<u8>>,
    /// The client's certificates and its private key.
    pub(crate) client_identity_pem: Option<Vec<u8>>,
}

/// Sends requests to a JSON API over pooled connections.
pub(crate) struct RestClient {
    api: Api,
}

/// The body of a request.
pub(crate) enum RestBody {
    None,
    Json(Vec<u8>),
    /// A tar archive.
    #[cfg(feature = "docker")]
    Archive(Vec<u8>),
}

impl RestBody {
    /// Encodes a value, whose maps have text as keys.
    pub(crate) fn json(value: &impl Serialize) -> Result<RestBody> {
        let bytes = serde_json::to_vec(value);
        let failed = |e| Error::invalid("cannot be written as JSON").with_source(e);
        bytes.map(RestBody::Json).map_err(failed)
    }
}

/// A complete response, of any status but 429.
pub(crate) struct RestResponse {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl RestResponse {
    #[cfg(feature = "docker")]
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Parses the body.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| {
            let message = format!("unexpected JSON: {}", one_line(&e.to_string()));
            Error::new(ErrorKind::Protocol, message)
                .with_status(self.status)
                .with_body(&self.body)
        })
    }
}

/// A response whose body arrives in pieces. Each piece must arrive within the timeout of the request.
pub(crate) struct RestStream {
    pub(crate) status: u16,
    body: ResponseBody,
}

impl RestStream {
    /// Limits the time for reading the rest.
    pub(crate) fn within(self, limit: Duration) -> RestStream {
        RestStream {
            body: self.body.within(limit),
            ..self
        }
    }
}

impl Read for RestStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.body.read(buf)
    }
}

impl RestClient {
    pub(crate) fn new(settings: RestSettings) -> Result<RestClient> {
        let base = BaseUrl::new(&settings.base_url)?;
        let settings = Settings {
            headers: settings.headers,
            user_agent: USER_AGENT.to_owned(),
            proxy: environment_proxy(&base)?,
            ca_pem: settings.ca_pem,
            client_identity_pem: settings.client_identity_pem,
        };
        let api = Api {
            http: Arc::new(HttpClient::new(&base, &settings)?),
            base,
            retry: Retry::default(),
            headers: Arc::default(),
        };
        Ok(RestClient { api })
    }

    /// Sends a request and reads the response. Requests are idempotent: they are sent again after a
    /// failure of the network, and after a 429.
    ///
    /// # Errors
    ///
    /// If no response arrives by the timeout, or each has the status 429. Other statuses are not errors.
    pub(crate) fn send(
        &self,
        method: &'static str,
        path: &str,
        body: RestBody,
        timeout: Duration,
    ) -> Result<RestResponse> {
        let mut call = self.call(method, path, body, timeout);
        call.options.deadline = Some(Instant::now() + timeout);
        call.last_start = call.options.deadline;
        self.api.send(&mut call, |response| {
            Ok(RestResponse {
                status: response.status,
                body: read_body(response, MAX_BODY)?,
            })
        })
    }

    /// Same as [`send`](RestClient::send) without a body, for a response that arrives in pieces. `cancel` can
    /// end it.
    pub(crate) fn stream(
        &self,
        method: &'static str,
        path: &str,
        stall: Duration,
        cancel: Option<&Cancel>,
    ) -> Result<RestStream> {
        let mut call = self.call(method, path, RestBody::None, stall);
        call.cancel = cancel;
        self.api.send(&mut call, |response| {
            Ok(RestStream {
                status: response.status,
                body: response.body,
            })
        })
    }

    fn call<'a>(
        &self,
        method: &'static str,
        path: &str,
        body: RestBody,
        stall: Duration,
    ) -> Call<'a> {
        let options = CallOptions {
            connect: DEFAULT_CONNECT_TIMEOUT,
            connect_by: None,
            stall,
            deadline: None,
            once: false,
        };
        let operation = match method {
            "GET" => Operation::Read,
            _ => Operation::Change,
        };
        let mut call = Call::new(operation, method, self.api.base.url(path), options);
        call.accepts = |status| status != 429;
        (call.request.content_type, call.request.body) = match body {
            // Sends `Content-Length: 0`.
            RestBody::None if method == "POST" => (None, Body::Bytes(Vec::new())),
            RestBody::None => (None, Body::None),
            RestBody::Json(bytes) => (Some(JSON), Body::Bytes(bytes)),
            #[cfg(feature = "docker")]
            RestBody::Archive(bytes) => (Some(ARCHIVE), Body::Bytes(bytes)),
        };
        call
    }
}

#[cfg(feature = "kubernetes")]
impl HttpBackend {
    /// Creates a backend for a v1 server below a path of another API, whose proxy is written in Go, over that
    /// API's connections. `headers` are those of v1 requests alone. `timeout` is that of calls other than
    /// exec and transfers.
    pub(crate) fn over(
        rest: &RestClient,
        path: &str,
        headers: &[(String, String)],
        timeout: Duration,
        transfer_timeout: Option<Duration>,
        retry: Retry,
    ) -> Result<HttpBackend> {
        let api = Api {
            http: Arc::clone(&rest.api.http),
            base: rest.api.base.below(path),
            retry,
            headers: header_lines(headers)?.into(),
        };
        Ok(HttpBackend {
            api,
            timeout,
            create_timeout: timeout,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            transfer_timeout,
            sends_exec_in_chunks: true,
        })
    }
}
