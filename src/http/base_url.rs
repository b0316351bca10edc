//! The base URL of a server, and the proxy for it.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::{Error, ErrorKind, Result, one_line};
use crate::os::MAX_SOCKET_PATH;

/// Everything but the unreserved characters of RFC 3986, so that any text is one path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// For a value in the query, where `/` stays readable.
const QUERY: &AsciiSet = &SEGMENT.remove(b'/');

/// A valid `http://host:port/prefix` without a trailing slash, or `unix:///path/of/socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseUrl {
    /// The prefix of the URLs of requests. For a Unix socket the host is `localhost`.
    text: String,
    unix_socket: Option<PathBuf>,
    pub(super) https: bool,
    host: String,
    port: u16,
}

impl BaseUrl {
    pub(super) fn new(given: &str) -> Result<BaseUrl> {
        let shown = redact_url(given);
        let refuse = |why: String| Error::invalid(format!("base URL {shown:?}: {why}"));
        let Some((scheme, rest)) = given.trim().split_once("://") else {
            let why = "not a URL: it must start with http://, https:// or unix:///";
            return Err(refuse(why.to_owned()));
        };
        let parsed = match scheme.to_ascii_lowercase().as_str() {
            "http" => BaseUrl::of_host(false, rest),
            "https" if !cfg!(feature = "tls") => {
                let text =
                    format!("base URL {shown:?}: https needs the feature `tls` of noxrunner");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            "https" => BaseUrl::of_host(true, rest),
            "unix" => BaseUrl::of_socket(rest),
            _ => Err("the scheme must be http, https or unix".to_owned()),
        };
        parsed.map_err(refuse)
    }

    /// Parses `host:port/prefix`. The error is the reason.
    fn of_host(https: bool, rest: &str) -> std::result::Result<BaseUrl, String> {
        if rest.contains(['?', '#']) {
            return Err("it must not have a query or a fragment".to_owned());
        }
        let odd = |c: char| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(c);
        if rest.chars().any(odd) {
            return Err("it contains a character that must be percent-encoded".to_owned());
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("credentials belong in token() or header(), not in the URL".to_owned());
        }
        let Some((host, port)) = split_port(authority) else {
            return Err("the host or port is invalid".to_owned());
        };
        let scheme = if https { "https" } else { "http" };
        Ok(BaseUrl {
            text: format!("{scheme}://{authority}{}", path.trim_end_matches('/')),
            unix_socket: None,
            https,
            host,
            port: port.unwrap_or(if https { 443 } else { 80 }),
        })
    }

    /// Parses what follows `unix://`. The error is the reason.
    fn of_socket(rest: &str) -> std::result::Result<BaseUrl, String> {
        Ok(BaseUrl {
            text: "http://localhost".to_owned(),
            unix_socket: Some(socket_path(rest)?),
            https: false,
            host: "localhost".to_owned(),
            port: 80,
        })
    }

    /// Returns the path of the Unix socket, if this is one.
    pub(super) fn unix_socket(&self) -> Option<&Path> {
        self.unix_socket.as_deref()
    }

    /// Returns `http://host:port`, without the prefix.
    pub(super) fn origin(&self) -> &str {
        let host = self.text.find("://").map_or(0, |at| at + 3);
        let end = self.text[host..].find('/').map(|at| host + at);
        &self.text[..end.unwrap_or(self.text.len())]
    }

    /// Returns the URL of a path, such as `/healthz`.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    /// Returns the path of one of our URLs, without the prefix.
    pub(super) fn path<'a>(&self, url: &'a str) -> &'a str {
        url.strip_prefix(&self.text).unwrap_or_default()
    }

    /// Returns the base URL of what is below a path, such as `/prefix`.
    #[cfg(feature = "kubernetes")]
    pub(super) fn below(&self, path: &str) -> BaseUrl {
        BaseUrl {
            text: self.url(path),
            ..self.clone()
        }
    }

    pub(super) fn health(&self) -> String {
        self.url("/healthz")
    }

    pub(super) fn sandbox(&self, id: &str) -> String {
        self.url(&format!(
            "/v1/sandboxes/{}",
            utf8_percent_encode(id, SEGMENT)
        ))
    }

    pub(super) fn files(&self, id: &str, call: &str, name: &str, value: &str) -> String {
        let value = utf8_percent_encode(value, QUERY);
        format!("{}/files/{call}?{name}={value}", self.sandbox(id))
    }

    /// Returns true for addresses of this machine, which a proxy cannot reach.
    fn is_loopback(&self) -> bool {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        }
    }

    /// Returns the proxy for this server from the environment, with the name of the variable.
    /// `variable` reads the environment.
    pub(super) fn environment_proxy(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Option<(&'static str, String)> {
        if self.is_loopback() {
            return None;
        }
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let no_proxy = set("no_proxy")
            .or_else(|| set("NO_PROXY"))
            .unwrap_or_default();
        if no_proxy
            .split(',')
            .any(|rule| self.matches_no_proxy(rule.trim()))
        {
            return None;
        }
        // In a CGI script, HTTP_PROXY comes from the client's Proxy header.
        let in_cgi = variable("REQUEST_METHOD").is_some();
        let names: &[&'static str] = match (self.https, in_cgi) {
            (true, _) => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            (false, true) => &["http_proxy", "all_proxy", "ALL_PROXY"],
            (false, false) => &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
        };
        names
            .iter()
            .find_map(|name| Some((*name, set(name)?.trim().to_owned())))
    }

    /// Matches `*`, a host, a domain with its subdomains, an address, or a network such as
    /// `10.0.0.0/8`, with an optional port.
    fn matches_no_proxy(&self, rule: &str) -> bool {
        if rule == "*" {
            return true;
        }
        let ip = self.host.parse::<IpAddr>().ok();
        if let (Some(ip), Some((network, bits))) = (ip, rule.split_once('/')) {
            return in_network(ip, network, bits);
        }
        let (rule, port) = split_port(rule).unwrap_or((rule.to_owned(), None));
        if port.is_some_and(|port| port != self.port) || rule.is_empty() {
            return false;
        }
        if let Some(ip) = ip {
            return rule.parse() == Ok(ip);
        }
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        let domain = rule
            .trim_start_matches("*.")
            .trim_matches('.')
            .to_ascii_lowercase();
        let above = host.strip_suffix(&domain);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unix_socket {
            Some(path) => write!(f, "unix://{}", path.display()),
            None => f.write_str(&self.text),
        }
    }
}

/// Parses an absolute path, which may be percent-encoded.
fn socket_path(text: &str) -> std::result::Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(
            "a Unix socket needs an absolute path, as in unix:///run/noxrunner.sock".to_owned(),
        );
    }
    let bytes: Vec<u8> = percent_decode_str(text.trim_end_matches('/')).collect();
    if bytes.contains(&0) {
        return Err("the path contains a NUL byte".to_owned());
    }
    if bytes.is_empty() {
        return Err("the path of the Unix socket is empty".to_owned());
    }
    if bytes.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "the path of the Unix socket is {} bytes long, and the system's limit is {MAX_SOCKET_PATH}: \
             use a shorter path or a symbolic link",
            bytes.len()
        ));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// Removes parts of a URL that may be secret: credentials, query and fragment.
pub(super) fn redact_url(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let start = url[..end].rfind('@').map_or(0, |at| at + 1);
    let cut = if start > 0 { "…@" } else { "" };
    format!(
        "{cut}{}{}",
        one_line(&url[start..end]),
        if end < url.len() { "…" } else { "" }
    )
}

fn in_network(ip: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let same = |a: u128, b: u128, width: u32| {
        bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0)
    };
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// Splits `host`, `host:80` or `[::1]:80`, and removes the brackets.
fn split_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
        None if port.is_empty() => None,
        None => return None,
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:".contains(c);
    (!host.is_empty() && host.chars().all(valid)).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> BaseUrl {
        BaseUrl::new(text).unwrap()
    }

    #[test]
    fn prefixes_are_kept_and_slashes_trimmed() {
        assert_eq!(base("http://h").health(), "http://h/healthz");
        assert_eq!(base(" HTTP://h:8080/ ").health(), "http://h:8080/healthz");
        assert_eq!(base("http://h/nox//").health(), "http://h/nox/healthz");
        assert_eq!(
            base("http://[::1]:80/p").health(),
            "http://[::1]:80/p/healthz"
        );
    }

    #[test]
    fn unix_sockets_have_a_path() {
        let url = base("unix:///run/a%20b.sock/");
        assert_eq!(url.unix_socket(), Some(Path::new("/run/a b.sock")));
        assert_eq!(url.health(), "http://localhost/healthz");
        assert_eq!(url.to_string(), "unix:///run/a b.sock");
        let path = |length: usize| format!("unix:///{}", "x".repeat(length - 1));
        assert!(BaseUrl::new(&path(MAX_SOCKET_PATH)).is_ok());
        let error = BaseUrl::new(&path(MAX_SOCKET_PATH + 1)).unwrap_err();
        let text = format!("limit is {MAX_SOCKET_PATH}");
        assert!(error.to_string().contains(&text), "{error}");
    }

    #[test]
    fn ids_are_one_path_segment() {
        let url = base("http://h").sandbox("a/b?c#d%2F e.ä");
        assert_eq!(url, "http://h/v1/sandboxes/a%2Fb%3Fc%23d%252F%20e.%C3%A4");
        let url = base("http://h").files("i", "upload", "dest", "/workspace/a b&c");
        assert_eq!(
            url,
            "http://h/v1/sandboxes/i/files/upload?dest=/workspace/a%20b%26c"
        );
    }

    #[test]
    fn invalid_base_urls_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "not a URL"),
            ("localhost:8080", "not a URL"),
            ("ftp://h", "scheme must be http, https or unix"),
            ("unix://run/x.sock", "absolute path"),
            ("unix:///", "is empty"),
            ("unix:///a%00b", "NUL"),
            ("http://", "host or port"),
            ("http://h:99999", "host or port"),
            ("http://h:x", "host or port"),
            ("http://[::1", "host or port"),
            ("http://h/a b", "percent-encoded"),
            ("http://h/ä", "percent-encoded"),
            ("http://h/<team>", "percent-encoded"),
            ("http://h?x=1", "a query or a fragment"),
            ("http://h#x", "a query or a fragment"),
            ("http://me:secret@h", "token()"),
        ] {
            let error = BaseUrl::new(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn https_without_tls_names_the_feature() {
        let error = BaseUrl::new("https://h").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"));
    }

    fn proxy_for(url: &str, vars: &[(&str, &str)]) -> Option<String> {
        let read = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        base(url).environment_proxy(read).map(|(_, value)| value)
    }

    #[test]
    fn loopback_never_has_a_proxy() {
        let vars = [("http_proxy", "http://p:1"), ("ALL_PROXY", "http://p:1")];
        for host in [
            "localhost",
            "a.localhost",
            "127.0.0.1",
            "127.8.8.8",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "LOCALHOST.",
            "0.0.0.0",
        ] {
            assert_eq!(
                proxy_for(&format!("http://{host}:8080"), &vars),
                None,
                "{host}"
            );
        }
        assert_eq!(proxy_for("http://h", &vars), Some("http://p:1".into()));
    }

    #[test]
    fn proxy_variables_depend_on_the_scheme() {
        let vars = [("HTTP_PROXY", "a"), ("HTTPS_PROXY", "b")];
        assert_eq!(proxy_for("http://h", &vars), Some("a".into()));
        assert_eq!(
            proxy_for(
                "http://h",
                &[("HTTP_PROXY", "a"), ("REQUEST_METHOD", "GET")]
            ),
            None
        );
        assert_eq!(proxy_for("http://h", &[("http_proxy", " ")]), None);
        #[cfg(feature = "tls")]
        assert_eq!(proxy_for("https://h", &vars), Some("b".into()));
    }

    #[test]
    fn no_proxy_matches_domains_ports_spaces_and_networks() {
        let through = |url: &str, rules: &str| {
            proxy_for(url, &[("http_proxy", "p"), ("NO_PROXY", rules)]).is_some()
        };
        assert!(!through("http://a.example.com", "x, .example.com"));
        assert!(!through("http://example.com", "example.com"));
        assert!(!through("http://a.example.com", " example.com "));
        assert!(!through("http://a.example.com", "*.example.com"));
        assert!(through("http://badexample.com", "example.com"));
        assert!(through("http://h", ""));
        assert!(!through("http://h", "*"));
        assert!(!through("http://10.1.2.3", "10.0.0.0/8"));
        assert!(through("http://11.1.2.3", "10.0.0.0/8"));
        assert!(!through("http://h:81", "h:81"));
        assert!(through("http://h:82", "h:81"));
        assert!(!through("http://[fd00::1]", "fd00::/8"));
    }
}
