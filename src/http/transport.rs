//! One request over one pooled connection, within its bounds. This file, `connect` and `socket` are
//! all that name ureq.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::{self, HeaderMap, HeaderName, HeaderValue};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector};

use super::base_url::BaseUrl;
use super::connect::{Begin, End, NoLookup, SocketConnector};
use super::socket::{Bounds, Call, Reach};
use crate::cancel::Cancel;
use crate::error::{Error, Result, io_reason};

/// How many idle connections are kept.
const MAX_IDLE: usize = 16;

/// An idle connection older than this is not used again. Servers close theirs after 5 to 75 s.
const MAX_IDLE_AGE: Duration = Duration::from_secs(15);

/// What the headers that a user sets may take, in bytes. Servers take 8 to 64 KiB.
const MAX_HEADERS: usize = 32 * 1024;

/// What an answer's head may take, in bytes.
const MAX_RESPONSE_HEAD: usize = 64 * 1024;

pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) url: &'a str,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Body<'a>,
}

pub(super) enum Body<'a> {
    None,
    Bytes(&'a [u8]),
    Reader {
        reader: &'a mut dyn Read,
        length: Option<u64>,
    },
}

/// An answer whose body has not been read yet.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: AnswerBody,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Reads the rest of the answer, on any thread.
pub(super) struct AnswerBody {
    reader: Box<dyn Read + Send>,
    bounds: Bounds,
    cancel: Option<Cancel>,
}

impl AnswerBody {
    /// Gives up after so long.
    pub(super) fn within(mut self, limit: Duration) -> AnswerBody {
        let end = Instant::now() + limit;
        self.bounds.deadline = Some(
            self.bounds
                .deadline
                .map_or(end, |deadline| deadline.min(end)),
        );
        self
    }
}

impl Read for AnswerBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let _call = Call::begin(self.bounds, self.cancel.as_ref());
        self.reader.read(buf)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reach: Reach,
    pub(super) what: What,
    /// In words, for one line.
    pub(super) message: String,
    pub(super) source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Refused, reset, closed or unreachable: another try may succeed.
    Broken,
    /// The time was over.
    TimedOut,
    /// Cancelled from another thread.
    Cancelled,
    /// Not HTTP, or more than the limits allow.
    NotHttp,
    /// Another try will fail the same way: TLS, a proxy that refuses, a body that can't be read.
    Permanent,
}

pub(super) struct Settings {
    pub(super) headers: Vec<(String, String)>,
    pub(super) user_agent: String,
    pub(super) proxy: Option<String>,
    pub(super) ca_pem: Option<Vec<u8>>,
}

/// Sends requests over pooled connections.
pub(super) struct Http {
    agent: ureq::Agent,
}

impl Http {
    pub(super) fn new(base: &BaseUrl, settings: &Settings) -> Result<Http> {
        let too_odd = |_| Error::invalid("the user agent has a character that no header can have");
        HeaderValue::from_str(&settings.user_agent).map_err(too_odd)?;
        base.health()
            .parse::<http::Uri>()
            .map_err(|e| Error::invalid(format!("base URL {base}: {e}")).with_source(e))?;
        let https_proxy = settings.proxy.as_deref().is_some_and(is_https);
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(settings.proxy.as_deref().map(proxy).transpose()?)
            .user_agent(settings.user_agent.as_str())
            .accept("")
            .max_response_header_size(MAX_RESPONSE_HEAD)
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .max_idle_age(MAX_IDLE_AGE);
        if base.is_https() || https_proxy {
            config = with_tls(config, settings.ca_pem.as_deref())?;
        }
        let connector = ()
            .chain(Begin)
            .chain(ConnectProxyConnector::default())
            .chain(SocketConnector::new(!base.is_https() && !https_proxy));
        #[cfg(feature = "tls")]
        let connector = connector.chain(ureq::unversioned::transport::RustlsConnector::default());
        let end = End::new(&header_lines(&settings.headers)?);
        let agent = ureq::Agent::with_parts(config.build(), connector.chain(end), NoLookup);
        Ok(Http { agent })
    }

    /// Sends one request and reads the head of its answer.
    pub(super) fn send(
        &self,
        request: Request<'_>,
        bounds: Bounds,
        cancel: Option<&Cancel>,
    ) -> std::result::Result<Answer, Failure> {
        let call = Call::begin(bounds, cancel);
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Err(Failure::cancelled(Reach::Nowhere));
        }
        let response = self.run(request).map_err(|e| failure(&call, e))?;
        drop(call);
        let (head, body) = response.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: AnswerBody {
                reader: Box::new(body.into_reader()),
                bounds,
                cancel: cancel.cloned(),
            },
        })
    }

    fn run(
        &self,
        request: Request<'_>,
    ) -> std::result::Result<http::Response<ureq::Body>, ureq::Error> {
        let mut head = http::Request::builder()
            .method(request.method)
            .uri(request.url);
        if let Some(headers) = head.headers_mut() {
            if let Some(kind) = request.content_type {
                headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            if let Body::Reader {
                length: Some(length),
                ..
            } = request.body
            {
                headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
        match request.body {
            Body::None => self.agent.run(head.body(())?),
            Body::Bytes(bytes) => self.agent.run(head.body(bytes)?),
            Body::Reader { reader, length } => {
                let mut exact = ExactBody {
                    reader,
                    left: length,
                };
                self.agent
                    .run(head.body(ureq::SendBody::from_reader(&mut exact))?)
            }
        }
    }
}

impl Failure {
    /// The answer began and did not end.
    pub(super) fn cut_off(e: io::Error) -> Failure {
        let protocol = |e: &io::Error| {
            let inner = e
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<ureq::Error>());
            matches!(inner, Some(ureq::Error::Protocol(_)))
        };
        let what = match e.kind() {
            io::ErrorKind::TimedOut => What::TimedOut,
            _ if protocol(&e) => What::NotHttp,
            _ => What::Broken,
        };
        let message = format!("the answer was cut off: {}", io_reason(&e));
        Failure {
            reach: Reach::Sent,
            what,
            message,
            source: Some(Box::new(e)),
        }
    }

    fn cancelled(reach: Reach) -> Failure {
        let message = "cancelled".to_owned();
        Failure {
            reach,
            what: What::Cancelled,
            message,
            source: None,
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

/// Headers as they go over the wire.
fn header_lines(headers: &[(String, String)]) -> Result<Vec<u8>> {
    const OURS: [&str; 7] = [
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
                shown_name(name)
            )))
        };
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            return refuse("its name has a character that no header can have");
        };
        let Ok(value) = HeaderValue::from_str(value) else {
            return refuse("its value has a character that no header can have");
        };
        if OURS.contains(&parsed.as_str()) {
            return refuse("the client sets it itself; for the user agent there is user_agent()");
        }
        lines.extend_from_slice(
            &[parsed.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat(),
        );
    }
    match lines.len() > MAX_HEADERS {
        true => Err(Error::invalid(format!(
            "the headers take {} bytes, the limit is {MAX_HEADERS}",
            lines.len()
        ))),
        false => Ok(lines),
    }
}

/// A header's name as far as it is one: what follows may be a secret, as in `Name: value`.
pub(super) fn shown_name(name: &str) -> &str {
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
    &name[..end.unwrap_or(name.len())]
}

type Builder = ureq::config::ConfigBuilder<ureq::typestate::AgentScope>;

#[cfg(feature = "tls")]
fn with_tls(config: Builder, ca_pem: Option<&[u8]>) -> Result<Builder> {
    use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
    let roots = match ca_pem {
        Some(pem) => {
            let mut certificates = Vec::new();
            for item in parse_pem(pem) {
                match item {
                    Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                    Ok(_) => {}
                    Err(e) => return Err(Error::invalid("the CA is not PEM").with_source(e)),
                }
            }
            if certificates.is_empty() {
                return Err(Error::invalid("the CA's PEM holds no certificate"));
            }
            RootCerts::new_with_certs(&certificates)
        }
        None if cfg!(feature = "platform-roots") => RootCerts::PlatformVerifier,
        None => RootCerts::WebPki,
    };
    Ok(config.tls_config(TlsConfig::builder().root_certs(roots).build()))
}

#[cfg(not(feature = "tls"))]
fn with_tls(_: Builder, _: Option<&[u8]>) -> Result<Builder> {
    Err(Error::new(
        crate::ErrorKind::Unsupported,
        "https needs the feature `tls` of noxrunner",
    ))
}

/// A body that must be as long as was said: ureq waits for ever for one that ends early.
struct ExactBody<'a> {
    reader: &'a mut dyn Read,
    left: Option<u64>,
}

impl Read for ExactBody<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Call::is_deaf() {
            // ureq must get as much as was said, if only to drop it.
            let want = self.left.map_or(0, |left| {
                buf.len().min(usize::try_from(left).unwrap_or(usize::MAX))
            });
            self.left = self.left.map(|left| left - want as u64);
            return Ok(want);
        }
        let Some(left) = self.left else {
            return self.reader.read(buf).map_err(unreadable);
        };
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        match self.reader.read(&mut buf[..want]).map_err(unreadable)? {
            0 => Err(unreadable(io::Error::other("it ended before its length"))),
            got => {
                self.left = Some(left - got as u64);
                Ok(got)
            }
        }
    }
}

fn unreadable(e: io::Error) -> io::Error {
    Error::from_io(e)
        .unwrap_or_else(|e| Error::io("cannot read what is to be sent", e))
        .into_io()
}

/// What ureq's error means, given how far this call got.
fn failure(call: &Call, error: ureq::Error) -> Failure {
    let (reach, place) = call.progress();
    if call.is_cancelled() {
        return Failure::cancelled(reach);
    }
    let (what, words) = match &error {
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::TimedOut => (What::TimedOut, io_reason(e)),
            _ if e.get_ref().is_some_and(|inner| inner.is::<Error>()) => {
                (What::Permanent, e.to_string())
            }
            // rustls refuses what the peer says, its certificate for one.
            io::ErrorKind::InvalidData => (What::Permanent, e.to_string()),
            io::ErrorKind::UnexpectedEof => (What::Broken, "the connection was closed".to_owned()),
            _ => (What::Broken, io_reason(e)),
        },
        ureq::Error::HostNotFound => (What::Broken, "no such host".to_owned()),
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
            (What::NotHttp, format!("not an HTTP answer ({error})"))
        }
        _ => (What::Permanent, error.to_string()),
    };
    let message = match reach {
        Reach::Nowhere if place.is_empty() => words,
        Reach::Nowhere => format!("cannot connect to {place}: {words}"),
        Reach::NotReceived => format!("{words} before the request was received"),
        Reach::Sent if what == What::Broken => {
            format!("{words} before the answer was complete")
        }
        Reach::Sent => words,
    };
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        ureq::Error::Io(e) => Box::new(e),
        error => Box::new(error),
    };
    Failure {
        reach,
        what,
        message,
        source: Some(source),
    }
}
