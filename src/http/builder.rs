//! Settings of the HTTP backend.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::backend::HttpBackend;
use super::base_url::{BaseUrl, redact_url};
use super::call::Api;
use super::retry::Retry;
use super::transport::{HttpClient, Settings, redact_header};
use crate::error::{Error, Result};
use crate::validate::check_duration;

/// Default timeout of calls other than exec and transfers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Default timeout of create. A server may pull an image and start a container before it answers.
const DEFAULT_CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Default timeout of making a connection.
pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default of the `User-Agent` header.
pub(super) const USER_AGENT: &str = concat!("noxrunner/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone)]
enum Proxy {
    FromEnvironment,
    Disabled,
    Url(String),
}

/// Settings of an [`HttpBackend`], or of a [`Client`](crate::Client) over HTTP. They are validated by
/// [`build`](HttpBackendBuilder::build).
///
/// ```
/// use noxrunner::{Client, HttpBackend};
/// use std::time::Duration;
///
/// let client: Client = Client::builder("https://sandboxes.example.com/team-a")
///     .token("s3cret")
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// let backend: HttpBackend = HttpBackend::builder("http://127.0.0.1:8080").build()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[must_use]
pub struct HttpBackendBuilder<T = HttpBackend> {
    base_url: String,
    timeout: Option<Duration>,
    create_timeout: Option<Duration>,
    connect_timeout: Duration,
    transfer_timeout: Option<Duration>,
    token: Option<String>,
    headers: Vec<(String, String)>,
    user_agent: String,
    proxy: Proxy,
    ca_pem: Option<Vec<u8>>,
    retry: Retry,
    builds: PhantomData<fn() -> T>,
}

impl HttpBackend {
    /// Creates a backend at `base_url` with the default settings. Sends nothing.
    ///
    /// # Errors
    ///
    /// The same as for [`Client::new`](crate::Client::new).
    pub fn new(base_url: impl AsRef<str>) -> Result<HttpBackend> {
        HttpBackend::builder(base_url).build()
    }

    /// Returns a builder for a backend at `base_url`.
    pub fn builder(base_url: impl AsRef<str>) -> HttpBackendBuilder {
        HttpBackendBuilder::new(base_url.as_ref())
    }
}

impl<T: From<HttpBackend>> HttpBackendBuilder<T> {
    pub(crate) fn new(base_url: &str) -> HttpBackendBuilder<T> {
        HttpBackendBuilder {
            base_url: base_url.to_owned(),
            timeout: None,
            create_timeout: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            transfer_timeout: None,
            token: None,
            headers: Vec::new(),
            user_agent: USER_AGENT.to_owned(),
            proxy: Proxy::FromEnvironment,
            ca_pem: None,
            retry: Retry::default(),
            builds: PhantomData,
        }
    }

    /// Sets the timeout of health, create, touch and delete, including all attempts, and how long an
    /// upload or a download may stall. An exec uses the timeout of its command instead. Defaults to
    /// 30 s, and for create to 120 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the timeout of create alone: some servers answer when an image was pulled and a container was
    /// started. Defaults to the [`timeout`](Self::timeout) if that is set, and else to 120 s.
    pub fn create_timeout(mut self, timeout: Duration) -> Self {
        self.create_timeout = Some(timeout);
        self
    }

    /// Sets the timeout of making a connection: name resolution, TCP, proxy and TLS together. Defaults
    /// to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the total timeout of an upload or a download. Defaults to none: a transfer may take as
    /// long as bytes keep moving.
    pub fn transfer_timeout(mut self, timeout: Duration) -> Self {
        self.transfer_timeout = Some(timeout);
        self
    }

    /// Sets the token, which every request sends as `Authorization: Bearer TOKEN`. Space around it, such
    /// as the newline at the end of a file, is removed. It is never shown or logged. Defaults to none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Adds a header to every request, for example `X-Service-Key` for a server that has no bearer tokens.
    /// Space around the value is removed. The value is never shown or logged. Defaults to none.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the `User-Agent` header. Defaults to `noxrunner/VERSION`.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Sets an HTTP proxy (`http://user:password@host:port`), which is used for loopback addresses as
    /// well. It forwards plain `http` requests, and tunnels `https` (CONNECT). Defaults to the variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, and to
    /// no proxy for loopback addresses. A Unix socket never has one.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Proxy::Url(url.into());
        self
    }

    /// Uses no proxy, and ignores the environment.
    pub fn no_proxy(mut self) -> Self {
        self.proxy = Proxy::Disabled;
        self
    }

    /// Sets the certificates (PEM) to trust for `https`, instead of the default ones. A self-signed
    /// certificate works if it is not one of a CA (`basicConstraints=CA:FALSE`). Defaults to the
    /// public roots compiled in, or with the feature `platform-roots` to those of the operating system.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Sets how often a request is attempted, and for how long rate limits are waited for; see [`Retry`].
    /// Defaults to 3 attempts.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Creates the client or the backend. Sends nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid setting, by its name;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for `https` without the feature `tls`.
    pub fn build(self) -> Result<T> {
        let timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let create_timeout = self.create_timeout.or(self.timeout);
        let create_timeout = create_timeout.unwrap_or(DEFAULT_CREATE_TIMEOUT);
        check_duration("the timeout", timeout)?;
        check_duration("the create timeout", create_timeout)?;
        check_duration("the connect timeout", self.connect_timeout)?;
        if let Some(timeout) = self.transfer_timeout {
            check_duration("the transfer timeout", timeout)?;
        }
        let base = BaseUrl::new(&self.base_url)?;
        let settings = Settings {
            headers: headers(self.headers, self.token)?,
            user_agent: self.user_agent,
            proxy: choose_proxy(self.proxy, &base)?,
            ca_pem: self.ca_pem,
            client_identity_pem: None,
        };
        let api = Api {
            http: Arc::new(HttpClient::new(&base, &settings)?),
            base,
            retry: self.retry,
            headers: Arc::default(),
        };
        let backend = HttpBackend {
            api,
            timeout,
            create_timeout,
            connect_timeout: self.connect_timeout,
            transfer_timeout: self.transfer_timeout,
            sends_exec_in_chunks: false,
        };
        Ok(backend.into())
    }
}

/// Trims the values, and adds the token to the headers.
fn headers(
    mut headers: Vec<(String, String)>,
    token: Option<String>,
) -> Result<Vec<(String, String)>> {
    for (_, value) in &mut headers {
        *value = value.trim().to_owned();
    }
    let Some(token) = token else {
        return Ok(headers);
    };
    let token = token.trim();
    if token.is_empty() {
        return Err(Error::invalid("the token is empty"));
    }
    if token.chars().any(|c| !c.is_ascii_graphic()) {
        let text = "the token has an invalid character, such as a space or a newline";
        return Err(Error::invalid(text));
    }
    let is_authorization = |name: &str| name.eq_ignore_ascii_case("authorization");
    if headers.iter().any(|(name, _)| is_authorization(name)) {
        return Err(Error::invalid(
            "there is both a token and a header \"authorization\"",
        ));
    }
    headers.push(("authorization".to_owned(), format!("Bearer {token}")));
    Ok(headers)
}

fn choose_proxy(proxy: Proxy, base: &BaseUrl) -> Result<Option<String>> {
    let (origin, url) = match proxy {
        Proxy::Disabled => return Ok(None),
        Proxy::Url(_) if base.unix_socket().is_some() => {
            return Err(Error::invalid(
                "a Unix socket cannot be reached through a proxy",
            ));
        }
        Proxy::Url(url) => ("the proxy", url),
        Proxy::FromEnvironment => return environment_proxy(base),
    };
    check_proxy(origin, url).map(Some)
}

/// Returns the proxy that the environment names.
pub(super) fn environment_proxy(base: &BaseUrl) -> Result<Option<String>> {
    let found = base.environment_proxy(|name| std::env::var(name).ok());
    found.map(|(name, url)| check_proxy(name, url)).transpose()
}

fn check_proxy(origin: &str, url: String) -> Result<String> {
    // The URL may contain a password, so the error does not show it.
    let scheme = url.split_once("://").map_or("http", |(scheme, _)| scheme);
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "http" => Ok(url),
        "https" if cfg!(feature = "tls") => Ok(url),
        _ => Err(Error::invalid(format!(
            "{origin}: a proxy must be an http or https URL, not {scheme} (no_proxy() disables it)"
        ))),
    }
}

impl<T> Clone for HttpBackendBuilder<T> {
    fn clone(&self) -> Self {
        HttpBackendBuilder {
            base_url: self.base_url.clone(),
            token: self.token.clone(),
            headers: self.headers.clone(),
            user_agent: self.user_agent.clone(),
            proxy: self.proxy.clone(),
            ca_pem: self.ca_pem.clone(),
            ..*self
        }
    }
}

/// Does not show the token, the values of headers and the URL of the proxy, which may be secrets.
impl<T> fmt::Debug for HttpBackendBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter().map(|(name, _)| redact_header(name));
        f.debug_struct("HttpBackendBuilder")
            .field("base_url", &redact_url(&self.base_url))
            .field("timeout", &self.timeout)
            .field("create_timeout", &self.create_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("transfer_timeout", &self.transfer_timeout)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("headers", &headers.collect::<Vec<_>>())
            .field("user_agent", &self.user_agent)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpBackend;

    #[test]
    fn create_may_take_longer_unless_all_timeouts_are_set() {
        let secs = Duration::from_secs;
        let timeouts = |builder: HttpBackendBuilder<HttpBackend>| {
            let backend = builder.build().unwrap();
            (backend.timeout, backend.create_timeout)
        };
        let new = || HttpBackend::builder("http://127.0.0.1:1");
        assert_eq!(timeouts(new()), (secs(30), secs(120)));
        assert_eq!(timeouts(new().timeout(secs(5))), (secs(5), secs(5)));
        let both = new().create_timeout(secs(7)).timeout(secs(5));
        assert_eq!(timeouts(both), (secs(5), secs(7)));
    }
}
