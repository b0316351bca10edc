//! The settings of a client over HTTP.

use std::fmt;
use std::time::Duration;

use super::HttpBackend;
use super::base_url::{BaseUrl, shown_url};
use super::retry::Retry;
use super::transport::{Http, Settings, shown_name};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::exec::check_time;

/// How long a call other than exec and transfers may take, unless the client says otherwise.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long making a connection may take, unless the client says otherwise.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
enum ProxyChoice {
    Environment,
    Never,
    Through(String),
}

/// Settings of a [`Client`] or [`HttpBackend`]. Nothing is checked before
/// [`build`](ClientBuilder::build).
///
/// ```
/// use noxrunner::Client;
/// use std::time::Duration;
///
/// let client = Client::builder("https://sandboxes.example.com/team-a")
///     .token("s3cret")
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct ClientBuilder {
    base_url: String,
    timeout: Duration,
    connect_timeout: Duration,
    transfer_timeout: Option<Duration>,
    token: Option<String>,
    headers: Vec<(String, String)>,
    user_agent: String,
    proxy: ProxyChoice,
    ca_pem: Option<Vec<u8>>,
    retry: Retry,
}

impl ClientBuilder {
    pub(super) fn new(base_url: &str) -> ClientBuilder {
        ClientBuilder {
            base_url: base_url.to_owned(),
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            transfer_timeout: None,
            token: None,
            headers: Vec::new(),
            user_agent: concat!("noxrunner/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxy: ProxyChoice::Environment,
            ca_pem: None,
            retry: Retry::default(),
        }
    }

    /// How long health, create, touch and delete may take, with all their tries; and how long an
    /// upload or a download may stand still. An exec goes by its command's own timeout instead.
    /// Defaults to 30 s.
    ///
    /// ```
    /// use noxrunner::Client;
    /// use std::time::Duration;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").timeout(Duration::ZERO).build().unwrap_err();
    /// assert!(error.to_string().contains("the timeout is zero"));
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.timeout = timeout;
        self
    }

    /// How long making a connection may take: name, TCP, proxy and TLS together. Defaults to 10 s.
    ///
    /// ```
    /// use noxrunner::Client;
    /// use std::time::Duration;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").connect_timeout(Duration::ZERO).build().unwrap_err();
    /// assert!(error.to_string().contains("the connect timeout is zero"));
    /// ```
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.connect_timeout = timeout;
        self
    }

    /// How long one upload or download may take in all. Defaults to no limit, as long as bytes
    /// keep moving.
    ///
    /// ```
    /// use noxrunner::Client;
    /// use std::time::Duration;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").transfer_timeout(Duration::ZERO).build().unwrap_err();
    /// assert!(error.to_string().contains("the transfer timeout is zero"));
    /// ```
    pub fn transfer_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.transfer_timeout = Some(timeout);
        self
    }

    /// Sent as `Authorization: Bearer …` with every request. Never shown or logged. Defaults to none.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let builder = Client::builder("http://127.0.0.1:8080").token("s3cret");
    /// assert!(!format!("{builder:?}").contains("s3cret"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn token(mut self, token: impl Into<String>) -> ClientBuilder {
        self.token = Some(token.into());
        self
    }

    /// A header for every request, for a gateway say. Its value is never shown or logged.
    /// Defaults to none.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").header("Host", "x").build().unwrap_err();
    /// assert!(error.to_string().contains("the client sets it itself"));
    /// ```
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> ClientBuilder {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The `User-Agent`. Defaults to `noxrunner/VERSION`.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").user_agent("\n").build().unwrap_err();
    /// assert!(error.to_string().contains("user agent"));
    /// ```
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> ClientBuilder {
        self.user_agent = user_agent.into();
        self
    }

    /// Goes through this HTTP proxy (`http://user:password@host:port`), to loopback too. Defaults
    /// to what `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` say, and to none for loopback.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let error = Client::builder("http://127.0.0.1:8080").proxy("socks5://127.0.0.1:1080").build().unwrap_err();
    /// assert!(error.to_string().contains("must be an http or https URL"));
    /// ```
    pub fn proxy(mut self, url: impl Into<String>) -> ClientBuilder {
        self.proxy = ProxyChoice::Through(url.into());
        self
    }

    /// Goes through no proxy, whatever the environment says.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let client = Client::builder("http://127.0.0.1:8080").no_proxy().build()?;
    /// assert!(client.sandbox("demo").is_ok());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn no_proxy(mut self) -> ClientBuilder {
        self.proxy = ProxyChoice::Never;
        self
    }

    /// Trusts these certificates (PEM) for `https`, and no others. Defaults to the public roots
    /// compiled in, or with the feature `platform-roots` to what the system trusts.
    ///
    /// ```
    /// use noxrunner::Client;
    ///
    /// let builder = Client::builder("https://127.0.0.1:8443").ca_pem("no certificate");
    /// assert!(builder.build().is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> ClientBuilder {
        self.ca_pem = Some(pem.into());
        self
    }

    /// How often a request is tried. Defaults to 3 times; see [`Retry`] for which.
    ///
    /// ```
    /// use noxrunner::{Client, Retry};
    ///
    /// let client = Client::builder("http://127.0.0.1:1").retry(Retry::none()).build()?;
    /// assert!(client.health().is_err(), "after one try");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn retry(mut self, retry: Retry) -> ClientBuilder {
        self.retry = retry;
        self
    }

    /// The client. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a setting that can't be, by its name;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for `https` without the feature `tls`.
    ///
    /// # Example
    ///
    /// ```
    /// let error = noxrunner::Client::builder("example.com").build().unwrap_err();
    /// assert!(error.to_string().contains("must start with http:// or https://"));
    /// ```
    pub fn build(self) -> Result<Client> {
        self.build_backend().map(Client::with_backend)
    }

    /// The backend alone, to be wrapped by one of yours.
    ///
    /// # Errors
    ///
    /// As [`build`](ClientBuilder::build).
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{Client, HttpBackend};
    ///
    /// let backend: HttpBackend = Client::builder("http://127.0.0.1:8080").build_backend()?;
    /// assert!(Client::builder("http://127.0.0.1:8080").token("").build_backend().is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn build_backend(self) -> Result<HttpBackend> {
        check_time("the timeout", self.timeout)?;
        check_time("the connect timeout", self.connect_timeout)?;
        if let Some(timeout) = self.transfer_timeout {
            check_time("the transfer timeout", timeout)?;
        }
        let base = BaseUrl::new(&self.base_url)?;
        let mut headers = self.headers;
        if let Some(token) = &self.token {
            if token.is_empty() {
                return Err(Error::invalid("the token is empty"));
            }
            if headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            {
                return Err(Error::invalid(
                    "there is both a token and a header \"authorization\"",
                ));
            }
            headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        }
        let settings = Settings {
            headers,
            user_agent: self.user_agent,
            proxy: choose_proxy(self.proxy, &base)?,
            ca_pem: self.ca_pem,
        };
        let http = Http::new(&base, &settings)?;
        Ok(HttpBackend {
            http,
            base,
            timeout: self.timeout,
            connect_timeout: self.connect_timeout,
            transfer_timeout: self.transfer_timeout,
            retry: self.retry,
        })
    }
}

fn choose_proxy(choice: ProxyChoice, base: &BaseUrl) -> Result<Option<String>> {
    let (source, url) = match choice {
        ProxyChoice::Never => return Ok(None),
        ProxyChoice::Through(url) => ("the proxy", url),
        ProxyChoice::Environment => match base.environment_proxy(|name| std::env::var(name).ok()) {
            Some((name, url)) => (name, url),
            None => return Ok(None),
        },
    };
    // The URL may hold a password, so it is not shown.
    let scheme = url
        .split_once("://")
        .map_or("http", |(scheme, _)| scheme)
        .to_ascii_lowercase();
    match scheme.as_str() {
        "http" => Ok(Some(url)),
        "https" if cfg!(feature = "tls") => Ok(Some(url)),
        _ => Err(Error::invalid(format!(
            "{source}: a proxy must be an http or https URL, not {scheme}; no_proxy() does without"
        ))),
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of headers, the token and the proxy's URL may be secrets.
        let names: Vec<&str> = self
            .headers
            .iter()
            .map(|(name, _)| shown_name(name))
            .collect();
        f.debug_struct("ClientBuilder")
            .field("base_url", &shown_url(&self.base_url))
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("transfer_timeout", &self.transfer_timeout)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("headers", &names)
            .field("user_agent", &self.user_agent)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
