//! Who is let in.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use hyper::{StatusCode, Version};

use super::call::Refusal;

/// What a request has to bring before it is looked at.
pub(super) struct Gate {
    token: Option<String>,
}

impl Gate {
    pub(super) fn new(token: Option<String>) -> Gate {
        Gate { token }
    }

    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// What every request must have, also one that needs no token.
    pub(super) fn check_host(&self, headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default(),
            (None, _) if version < Version::HTTP_11 => return Ok(()),
            (None, _) => return Err(bad_host("the request has no Host")),
            (Some(_), Some(_)) => return Err(bad_host("the request has more than one Host")),
        };
        // A web page can have a name of its own lead here.
        if self.token.is_none() && !is_this_machine(host) {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!(
                    "without a token this server answers to addresses and to localhost, not to {host:?}"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if headers.contains_key(ORIGIN) {
            let text = "requests of web pages (with an Origin) are refused";
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        let Some(token) = &self.token else {
            return Ok(());
        };
        let text = match given(headers) {
            Some(given) if same(given, token.as_bytes()) => return Ok(()),
            Some(_) => "the token is not this server's",
            None => {
                "this server wants its token: send `Authorization: Bearer TOKEN`, or start it with --no-auth"
            }
        };
        Err(Refusal::new(StatusCode::UNAUTHORIZED, text))
    }
}

fn bad_host(text: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, text)
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Takes as long whatever the first difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_whole_token() {
        assert!(same(b"abc", b"abc"));
        for other in [&b""[..], b"ab", b"abcd", b"abd", b"Abc"] {
            assert!(!same(b"abc", other));
        }
    }

    #[test]
    fn names_of_this_machine_are_known() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "[::1]:1",
            "10.0.0.1",
        ] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
