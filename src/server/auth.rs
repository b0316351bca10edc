//! Authentication, and protection against requests of web pages.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use hyper::{StatusCode, Version};

use super::reply::ErrorReply;
use crate::backend::wire::TOKEN;

/// Decides who may send requests.
pub(super) enum Auth {
    /// Everyone who can connect.
    None,
    Token(String),
    /// SHA-256 of a token.
    #[cfg(feature = "agent")]
    Sha256([u8; 32]),
}

impl Auth {
    /// Checks the Host header of any request, including those that need no token.
    pub(super) fn check_host(
        &self,
        headers: &HeaderMap,
        version: Version,
    ) -> Result<(), ErrorReply> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default(),
            (None, _) if version < Version::HTTP_11 => return Ok(()),
            (None, _) => return Err(ErrorReply::bad_request("the request has no Host header")),
            (Some(_), Some(_)) => {
                return Err(ErrorReply::bad_request(
                    "the request has more than one Host header",
                ));
            }
        };
        // DNS rebinding: a web page can point its own host name to this server.
        if matches!(self, Auth::None) && !is_local_host(host) {
            return Err(ErrorReply::new(
                StatusCode::FORBIDDEN,
                format!(
                    "host {host:?} is not allowed without a token (only localhost and IP addresses are)"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn check_token(&self, headers: &HeaderMap) -> Result<(), ErrorReply> {
        if headers.contains_key(ORIGIN) {
            let text = "requests from web pages (with an Origin header) are not allowed";
            return Err(ErrorReply::new(StatusCode::FORBIDDEN, text));
        }
        if matches!(self, Auth::None) {
            return Ok(());
        }
        let text = match given_token(headers) {
            Some(given) if self.accepts(given) => return Ok(()),
            Some(_) => "invalid token",
            None => {
                "missing token: send `Authorization: Bearer TOKEN`, or start the server with --no-auth"
            }
        };
        Err(ErrorReply::new(StatusCode::UNAUTHORIZED, text))
    }
}

impl Auth {
    /// Returns the token, if it is known.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Auth::Token(token) => Some(token),
            _ => None,
        }
    }

    fn accepts(&self, given: &[u8]) -> bool {
        match self {
            Auth::None => true,
            Auth::Token(token) => equal(given, token.as_bytes()),
            #[cfg(feature = "agent")]
            Auth::Sha256(hash) => {
                let given = ring::digest::digest(&ring::digest::SHA256, given);
                equal(given.as_ref(), hash)
            }
        }
    }
}

fn is_local_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    if host.starts_with('[') {
        name.parse::<Ipv6Addr>().is_ok()
    } else {
        name.parse::<Ipv4Addr>().is_ok() || name.eq_ignore_ascii_case("localhost")
    }
}

/// Returns the token of a request. Proxies that remove `Authorization` pass on a header of our own.
fn given_token(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(TOKEN) {
        return Some(value.as_bytes());
    }
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Compares in constant time.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_must_be_equal() {
        assert!(equal(b"abc", b"abc"));
        for other in [&b""[..], b"ab", b"abcd", b"abd", b"Abc", b"bac"] {
            assert!(!equal(b"abc", other));
        }
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let parsed = list
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        parsed.collect()
    }

    #[test]
    fn request_has_one_host() {
        let token = Auth::Token("secret".to_owned());
        let hosts: [&[(&str, &str)]; 3] = [&[], &[("host", "a")], &[("host", "a"), ("host", "a")]];
        for (version, allowed) in [
            (Version::HTTP_10, [true, true, false]),
            (Version::HTTP_11, [false, true, false]),
        ] {
            let is_allowed = |list| token.check_host(&headers(list), version).is_ok();
            assert_eq!(hosts.map(is_allowed), allowed, "{version:?}");
        }
        let without_token = |host| {
            let headers = headers(&[("host", host)]);
            Auth::None.check_host(&headers, Version::HTTP_11).is_ok()
        };
        assert!(without_token("localhost:80") && !without_token("rebound.example"));
    }

    #[test]
    fn token_is_in_one_of_two_headers() {
        const BEARER: (&str, &str) = ("authorization", "Bearer secret");
        let auth = Auth::Token("secret".to_owned());
        let is_allowed = |auth: &Auth, list| auth.check_token(&headers(list)).is_ok();
        for allowed in [
            &[BEARER][..],
            &[("authorization", "bearer secret")],
            &[(TOKEN, "secret")],
            &[(TOKEN, "secret"), ("authorization", "Basic x")],
        ] {
            assert!(is_allowed(&auth, allowed), "{allowed:?}");
        }
        for refused in [
            &[][..],
            &[("authorization", "Bearer  secret")],
            &[("authorization", "Bearer")],
            &[("authorization", "Basic: secret")],
            &[(TOKEN, "Bearer secret")],
            &[(TOKEN, "secre"), BEARER],
            &[BEARER, ("origin", "http://localhost")],
        ] {
            assert!(!is_allowed(&auth, refused), "{refused:?}");
        }
        assert!(is_allowed(&Auth::None, &[]));
        assert!(!is_allowed(&Auth::None, &[("origin", "http://localhost")]));
        assert_eq!((auth.token(), Auth::None.token()), (Some("secret"), None));
    }

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "[::1]:1",
            "10.0.0.1",
            "[::1]",
            "localhost:",
        ] {
            assert!(is_local_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil",
            "127.0.0.1:80@evil",
            "127.0.0.1:80:evil",
            "[::1]evil.example",
            "[::1",
            "[127.0.0.1]",
            "::1",
        ] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
