//! Sending one request over a pooled connection. Only this file, `connect` and `socket` name ureq.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ureq::http::{self, HeaderMap, HeaderName, HeaderValue};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector};

use super::base_url::BaseUrl;
use super::connect::{
    FinishConnecting, ForwardProxyConnector, NoResolver, SocketConnector, StartConnecting,
};
use super::socket::{CallOptions, CallScope, Progress};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, io_reason};
use crate::exact_reader::ExactReader;
use crate::upload::Upload;

/// Maximum number of idle connections in the pool.
const MAX_IDLE: usize = 16;

/// Maximum age of an idle connection. Servers close theirs after 5 to 75 s.
const MAX_IDLE_AGE: Duration = Duration::from_secs(15);

/// Maximum size of the headers that a user sets, in bytes. Servers accept 8 to 64 KiB.
const MAX_HEADERS: usize = 32 * 1024;

/// Maximum size of a response head, in bytes.
const MAX_RESPONSE_HEAD: usize = 64 * 1024;

pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) url: String,
    pub(super) content_type: Option<&'static str>,
    pub(super) accept: Option<&'static str>,
    pub(super) body: Body<'a>,
    /// Sends bytes with chunked transfer encoding, without a `Content-Length`.
    pub(super) chunked: bool,
}

pub(super) enum Body<'a> {
    None,
    Bytes(Vec<u8>),
    Upload(Upload<'a>),
}

/// A response whose body has not been read.
pub(super) struct Response {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: ResponseBody,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The body of a response. It can be read on any thread.
pub(super) struct ResponseBody {
    reader: Box<dyn Read + Send>,
    options: CallOptions,
    cancel: Option<Cancel>,
}

impl ResponseBody {
    /// Limits the time for reading the rest.
    pub(super) fn within(mut self, limit: Duration) -> ResponseBody {
        let end = Instant::now() + limit;
        let deadline = self.options.deadline;
        self.options.deadline = Some(deadline.map_or(end, |deadline| deadline.min(end)));
        self
    }

    /// Extends the deadline by time that the caller needed.
    pub(super) fn extend(&mut self, time: Duration) {
        let deadline = self.options.deadline;
        self.options.deadline = deadline.map(|deadline| deadline + time);
    }
}

impl Read for ResponseBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let scope = CallScope::enter(self.options, self.cancel.as_ref());
        match self.reader.read(buf) {
            Err(_) if scope.is_cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "cancelled").into_io())
            }
            result => result,
        }
    }
}

/// The reason for a missing response.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) progress: Progress,
    pub(super) kind: FailureKind,
    /// The reason, in one line.
    pub(super) message: String,
    /// The cause, unless the message includes it. An error of our own, from reading the request body,
    /// replaces the message.
    pub(super) cause: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// Refused, reset, closed or unreachable: another attempt may succeed.
    Broken,
    TimedOut,
    Cancelled,
    /// The response is not HTTP, or exceeds a limit.
    NotHttp,
    /// Another attempt would fail the same way: TLS, a proxy that refuses, an unreadable body.
    Permanent,
}

pub(super) struct Settings {
    pub(super) headers: Vec<(String, String)>,
    pub(super) user_agent: String,
    pub(super) proxy: Option<String>,
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "for https only"))]
    pub(super) ca_pem: Option<Vec<u8>>,
    /// The client's certificates and its private key.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "for https only"))]
    pub(super) client_identity_pem: Option<Vec<u8>>,
}

/// Sends requests over pooled connections.
pub(super) struct HttpClient {
    agent: ureq::Agent,
}

impl HttpClient {
    pub(super) fn new(base: &BaseUrl, settings: &Settings) -> Result<HttpClient> {
        check(base, settings)?;
        let https_proxy = settings.proxy.as_deref().is_some_and(is_https);
        let proxy = settings.proxy.as_deref().map(proxy).transpose()?;
        // Plain http is forwarded by a proxy, https needs a tunnel.
        let (tunnel, forward) = if base.https {
            (proxy, None)
        } else {
            (None, proxy)
        };
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(tunnel)
            .user_agent(settings.user_agent.as_str())
            .accept("")
            .max_response_header_size(MAX_RESPONSE_HEAD)
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .max_idle_age(MAX_IDLE_AGE);
        if base.https || https_proxy {
            config = with_tls(config, settings)?;
        }
        let connector = ()
            .chain(StartConnecting)
            .chain(ConnectProxyConnector::default())
            .chain(ForwardProxyConnector {
                proxy: forward.as_ref().map(|proxy| proxy.uri().clone()),
            })
            .chain(SocketConnector {
                unix: base.unix_socket().map(Path::to_owned),
                plain: !base.https && !https_proxy,
                keep_alive_seen: Arc::default(),
            });
        #[cfg(feature = "tls")]
        let connector = connector.chain(ureq::unversioned::transport::RustlsConnector::default());
        let mut headers = header_lines(&settings.headers)?;
        headers.extend(forward.iter().flat_map(proxy_authorization));
        let end = FinishConnecting {
            headers: headers.into(),
            origin: forward.map(|_| base.origin().into()),
        };
        let agent = ureq::Agent::with_parts(config.build(), connector.chain(end), NoResolver);
        Ok(HttpClient { agent })
    }

    /// Sends a request and reads the head of the response. `headers` are header lines that may be secret.
    pub(super) fn send(
        &self,
        request: &mut Request<'_>,
        headers: &Arc<[u8]>,
        options: CallOptions,
        cancel: Option<&Cancel>,
    ) -> std::result::Result<Response, Failure> {
        let scope = CallScope::enter(options, cancel);
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Err(Failure::cancelled(Progress::NotConnected));
        }
        CallScope::with(|state| state.headers = Arc::clone(headers));
        let response = self.run(request).map_err(|e| failure(&scope, e))?;
        drop(scope);
        let (head, body) = response.into_parts();
        Ok(Response {
            status: head.status.as_u16(),
            headers: head.headers,
            body: ResponseBody {
                reader: Box::new(body.into_reader()),
                options,
                cancel: cancel.cloned(),
            },
        })
    }

    fn run(
        &self,
        request: &mut Request<'_>,
    ) -> std::result::Result<http::Response<ureq::Body>, ureq::Error> {
        let mut head = http::Request::builder()
            .method(request.method)
            .uri(&request.url);
        if let Some(kind) = request.content_type {
            head = head.header(http::header::CONTENT_TYPE, kind);
        }
        if let Some(kinds) = request.accept {
            head = head.header(http::header::ACCEPT, kinds);
        }
        match &mut request.body {
            Body::None => self.agent.run(head.body(())?),
            Body::Bytes(bytes) if request.chunked => {
                let mut body = bytes.as_slice();
                self.agent
                    .run(head.body(ureq::SendBody::from_reader(&mut body))?)
            }
            Body::Bytes(bytes) => self.agent.run(head.body(bytes.as_slice())?),
            Body::Upload(upload) => {
                let length = upload.content_length();
                if let Some(length) = length {
                    head = head.header(http::header::CONTENT_LENGTH, length);
                }
                let mut body = RequestBody::new(upload, length);
                let body = ureq::SendBody::from_reader(&mut body);
                self.agent.run(head.body(body)?)
            }
        }
    }
}

impl Failure {
    /// Creates the failure of a response that ended early.
    pub(super) fn cut_off(e: io::Error) -> Failure {
        let inner = e.get_ref();
        if inner.is_some_and(|inner| inner.is::<Error>()) {
            // The only error of our own in a body.
            return Failure::cancelled(Progress::Sent);
        }
        let ureq_error = inner.and_then(|inner| inner.downcast_ref::<ureq::Error>());
        let kind = match (e.kind(), ureq_error) {
            (io::ErrorKind::TimedOut, _) => FailureKind::TimedOut,
            (_, Some(ureq::Error::Protocol(_))) => FailureKind::NotHttp,
            _ => FailureKind::Broken,
        };
        Failure {
            progress: Progress::Sent,
            kind,
            message: format!("the response was cut off: {}", io_reason(&e)),
            cause: None,
        }
    }

    fn cancelled(progress: Progress) -> Failure {
        Failure {
            progress,
            kind: FailureKind::Cancelled,
            message: "cancelled".to_owned(),
            cause: None,
        }
    }
}

fn is_https(url: &str) -> bool {
    url.get(..8)
        .is_some_and(|start| start.eq_ignore_ascii_case("https://"))
}

fn proxy(url: &str) -> Result<ureq::Proxy> {
    ureq::Proxy::new(url).map_err(|_| Error::invalid("the proxy is not an http or https URL"))
}

fn check(base: &BaseUrl, settings: &Settings) -> Result<()> {
    let invalid = |_| Error::invalid("the user agent has an invalid character");
    HeaderValue::from_str(&settings.user_agent).map_err(invalid)?;
    let invalid = |e| Error::invalid(format!("invalid base URL {base}")).with_source(e);
    base.health()
        .parse::<http::Uri>()
        .map(drop)
        .map_err(invalid)
}

/// Returns the header line with the credentials for a proxy, which is empty if there are none.
fn proxy_authorization(proxy: &ureq::Proxy) -> Vec<u8> {
    if proxy.username().is_none() && proxy.password().is_none() {
        return Vec::new();
    }
    let (user, password) = (proxy.username(), proxy.password());
    let pair = format!(
        "{}:{}",
        user.unwrap_or_default(),
        password.unwrap_or_default()
    );
    let line = format!("proxy-authorization: Basic {}\r\n", BASE64.encode(pair));
    line.into_bytes()
}

/// Formats headers as they are sent.
pub(super) fn header_lines(headers: &[(String, String)]) -> Result<Vec<u8>> {
    const RESERVED: [&str; 7] = [
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
    ];
    let mut lines = Vec::new();
    for (name, value) in headers {
        let refuse = |why: &str| {
            Err(Error::invalid(format!(
                "header {:?}: {why}",
                redact_header(name)
            )))
        };
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            return refuse("the name has an invalid character");
        };
        let Ok(value) = HeaderValue::from_str(value) else {
            return refuse("the value has an invalid character");
        };
        if RESERVED.contains(&parsed.as_str()) {
            return refuse("the client sets this header itself (user_agent() sets the user agent)");
        }
        lines.extend_from_slice(
            &[parsed.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat(),
        );
    }
    if lines.len() > MAX_HEADERS {
        return Err(Error::invalid(format!(
            "the headers are {} bytes long, the limit is {MAX_HEADERS}",
            lines.len()
        )));
    }
    Ok(lines)
}

/// Cuts the name of a header after its valid characters. The rest may be a secret, as in `Name: value`.
pub(super) fn redact_header(name: &str) -> &str {
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
    &name[..end.unwrap_or(name.len())]
}

type Builder = ureq::config::ConfigBuilder<ureq::typestate::AgentScope>;

#[cfg(feature = "tls")]
fn with_tls(config: Builder, settings: &Settings) -> Result<Builder> {
    use ureq::tls::{ClientCert, RootCerts, TlsConfig};
    let roots = match &settings.ca_pem {
        Some(pem) => {
            let (certificates, _) = parse_pem("the CA certificates", pem)?;
            if certificates.is_empty() {
                return Err(Error::invalid("the CA file contains no certificate"));
            }
            RootCerts::new_with_certs(&certificates)
        }
        None if cfg!(feature = "platform-roots") => RootCerts::PlatformVerifier,
        None => RootCerts::WebPki,
    };
    let mut tls = TlsConfig::builder().root_certs(roots);
    if let Some(pem) = &settings.client_identity_pem {
        let (certificates, key) = parse_pem("the client certificate", pem)?;
        let Some(key) = key.filter(|_| !certificates.is_empty()) else {
            let text = "the client certificate or its private key is missing";
            return Err(Error::invalid(text));
        };
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&certificates, key)));
    }
    Ok(config.tls_config(tls.build()))
}

/// Returns the certificates and the last private key of a PEM file.
#[cfg(feature = "tls")]
fn parse_pem(
    name: &str,
    pem: &[u8],
) -> Result<(
    Vec<ureq::tls::Certificate<'static>>,
    Option<ureq::tls::PrivateKey<'static>>,
)> {
    use ureq::tls::PemItem;
    let (mut certificates, mut key) = (Vec::new(), None);
    for item in ureq::tls::parse_pem(pem) {
        match item.map_err(|e| Error::invalid(format!("{name}: not PEM")).with_source(e))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            PemItem::PrivateKey(found) => key = Some(found),
            _ => {}
        }
    }
    Ok((certificates, key))
}

#[cfg(not(feature = "tls"))]
fn with_tls(_: Builder, _: &Settings) -> Result<Builder> {
    Err(Error::new(
        crate::error::ErrorKind::Unsupported,
        "https needs the feature `tls` of noxrunner",
    ))
}

/// The body of a request. ureq waits forever for a body that is shorter than announced.
enum RequestBody<'a> {
    Exact(ExactReader<&'a mut dyn Read, fn(u64) -> io::Error>),
    Chunked(&'a mut dyn Read),
}

impl<'a> RequestBody<'a> {
    fn new(reader: &'a mut dyn Read, length: Option<u64>) -> RequestBody<'a> {
        match length {
            Some(left) => RequestBody::Exact(ExactReader {
                inner: reader,
                left,
                short: |_| io::Error::other("it is shorter than announced"),
            }),
            None => RequestBody::Chunked(reader),
        }
    }

    /// Returns bytes of no meaning. If the peer no longer reads, ureq still needs as many bytes as
    /// announced, to drop them.
    fn pad(&mut self, buf: &[u8]) -> usize {
        match self {
            RequestBody::Exact(body) => {
                let left = usize::try_from(body.left).unwrap_or(usize::MAX);
                let count = buf.len().min(left);
                body.left -= count as u64;
                count
            }
            RequestBody::Chunked(_) => 0,
        }
    }
}

impl Read for RequestBody<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if CallScope::peer_stopped_reading() {
            return Ok(self.pad(buf));
        }
        match self {
            RequestBody::Exact(body) => body.read(buf),
            RequestBody::Chunked(reader) => reader.read(buf),
        }
        .map_err(unreadable)
    }
}

fn unreadable(e: io::Error) -> io::Error {
    Error::from_io(e)
        .unwrap_or_else(|e| Error::io("cannot read the data to send", e))
        .into_io()
}

/// Classifies an error of ureq by how far the call got.
fn failure(scope: &CallScope, error: ureq::Error) -> Failure {
    let (progress, peer) = scope.progress();
    if scope.is_cancelled() {
        return Failure::cancelled(progress);
    }
    let (kind, reason) = match &error {
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::TimedOut => (FailureKind::TimedOut, io_reason(e)),
            _ if is_own(e) => (FailureKind::Permanent, e.to_string()),
            // rustls refuses the peer, for example its certificate.
            io::ErrorKind::InvalidData => (FailureKind::Permanent, tls_reason(e)),
            io::ErrorKind::UnexpectedEof => {
                (FailureKind::Broken, "the connection was closed".to_owned())
            }
            _ => (FailureKind::Broken, io_reason(e)),
        },
        ureq::Error::HostNotFound => (FailureKind::Broken, "no such host".to_owned()),
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => (
            FailureKind::NotHttp,
            format!("not an HTTP response ({error})"),
        ),
        _ => (FailureKind::Permanent, error.to_string()),
    };
    let is_system_error = matches!(&error, ureq::Error::Io(e) if e.raw_os_error().is_some());
    let message = match progress {
        Progress::NotConnected if peer.is_empty() => reason,
        Progress::NotConnected if is_system_error => format!("cannot connect to {peer}"),
        Progress::NotConnected => format!("cannot connect to {peer}: {reason}"),
        Progress::NotReceived => format!("{reason} before the request was received"),
        Progress::Sent if kind == FailureKind::Broken => {
            format!("{reason} before the response was complete")
        }
        Progress::Sent => reason,
    };
    let cause = match error {
        ureq::Error::Io(e) if is_own(&e) => Some(e),
        ureq::Error::Io(e) if is_system_error && progress == Progress::NotConnected => Some(e),
        _ => None,
    };
    Failure {
        progress,
        kind,
        message,
        cause,
    }
}

/// Returns the text of an error of rustls, which names some causes by their Rust names only.
fn tls_reason(e: &io::Error) -> String {
    const UNKNOWN_CA: &str =
        "no trusted CA has signed the server's certificate: set its CA with ca_pem() (noxrc: --ca)";
    const EXPLANATIONS: [(&str, &str); 4] = [
        (
            "InvalidContentType",
            "the server does not speak TLS on this port: use http:// or another port",
        ),
        ("UnknownIssuer", UNKNOWN_CA),
        // By another CA of the same name.
        ("BadSignature", UNKNOWN_CA),
        (
            "CaUsedAsEndEntity",
            "the server uses the certificate of a CA as its own: sign another one with it, or create it with \
             `openssl req -x509 -addext basicConstraints=critical,CA:FALSE`",
        ),
    ];
    let text = e.to_string();
    let mut known = EXPLANATIONS.iter().filter(|(name, _)| text.contains(name));
    match known.next() {
        Some((_, explanation)) => (*explanation).to_owned(),
        None => text.replace("Other(OtherError(", "").replace("))", ""),
    }
}

/// Returns true for an I/O error that contains an [`Error`].
fn is_own(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|inner| inner.is::<Error>())
}
