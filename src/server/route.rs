//! Which call a request is.

use hyper::{Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::call::Refusal;
use crate::sandbox_path::WORKSPACE;
use crate::session_id::SessionId;

/// One of the seven, with what its path says.
#[derive(Debug, PartialEq)]
pub(super) enum Route {
    Health,
    Create(SessionId),
    Touch(SessionId),
    Exec(SessionId),
    Upload(SessionId, String),
    Download(SessionId, String),
    Delete(SessionId),
}

impl Route {
    pub(super) fn find(method: &Method, uri: &Uri) -> Result<Route, Refusal> {
        if uri.path() == "/healthz" {
            return only(&Method::GET, method, || Ok(Route::Health));
        }
        // Before anything is decoded: an id may have slashes.
        let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
        let (id, call) = match parts.as_slice() {
            ["v1", "sandboxes", id, call @ ..] => (id, call.join("/")),
            _ => return Err(no_route(uri)),
        };
        let id = || {
            let id = decode(id).ok_or_else(|| bad("the session id is not UTF-8"))?;
            SessionId::new(id).map_err(|e| bad(&e.to_string()))
        };
        let query = |name| query(uri, name).map(|path| path.unwrap_or_else(|| WORKSPACE.into()));
        match call.as_str() {
            "" if parts.len() == 3 => match *method {
                Method::PUT => Ok(Route::Create(id()?)),
                Method::DELETE => Ok(Route::Delete(id()?)),
                _ => Err(not_allowed("PUT, DELETE")),
            },
            "touch" => only(&Method::POST, method, || Ok(Route::Touch(id()?))),
            "exec" => only(&Method::POST, method, || Ok(Route::Exec(id()?))),
            "files/upload" => only(&Method::POST, method, || {
                Ok(Route::Upload(id()?, query("dest")?))
            }),
            "files/download" => only(&Method::GET, method, || {
                Ok(Route::Download(id()?, query("src")?))
            }),
            _ => Err(no_route(uri)),
        }
    }
}

fn only(
    allowed: &Method,
    method: &Method,
    route: impl FnOnce() -> Result<Route, Refusal>,
) -> Result<Route, Refusal> {
    match method == allowed {
        true => route(),
        false => Err(not_allowed(allowed.as_str())),
    }
}

fn bad(text: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, text)
}

fn no_route(uri: &Uri) -> Refusal {
    let text = format!("there is no {} in NoxRunner v1", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, text)
}

fn not_allowed(allow: &str) -> Refusal {
    let text = format!("the method is not allowed here: use {allow}");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).with_allow(allow)
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// The first one of that name. As forms have it, a plus is a space.
fn query(uri: &Uri, name: &str) -> Result<Option<String>, Refusal> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.find(|(found, _)| *found == name) else {
        return Ok(None);
    };
    let value = decode(&value.replace('+', " "));
    value
        .map(Some)
        .ok_or_else(|| bad(&format!("{name} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: Method, uri: &str) -> Result<Route, u16> {
        Route::find(&method, &uri.parse().unwrap()).map_err(|refusal| refusal.status().as_u16())
    }

    fn id(text: &str) -> SessionId {
        SessionId::new(text).unwrap()
    }

    #[test]
    fn paths_are_calls() {
        assert_eq!(find(Method::GET, "/healthz"), Ok(Route::Health));
        assert_eq!(
            find(Method::PUT, "/v1/sandboxes/a"),
            Ok(Route::Create(id("a")))
        );
        assert_eq!(
            find(Method::DELETE, "/v1/sandboxes/a%2Fb%20%C3%A4?x=1"),
            Ok(Route::Delete(id("a/b \u{e4}")))
        );
        assert_eq!(
            find(
                Method::POST,
                "/v1/sandboxes/a/files/upload?dest=/tmp/a+b%2B&dest=c"
            ),
            Ok(Route::Upload(id("a"), "/tmp/a b+".to_owned()))
        );
        assert_eq!(
            find(Method::GET, "/v1/sandboxes/a/files/download"),
            Ok(Route::Download(id("a"), "/workspace".to_owned()))
        );
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (method, uri, status) in [
            (Method::GET, "/", 404),
            (Method::GET, "/healthz/", 404),
            (Method::PUT, "/v1/sandboxes/", 400),
            (Method::PUT, "/v1/sandboxes", 404),
            (Method::PUT, "/v1/sandboxes/..", 400),
            (Method::PUT, "/v1/sandboxes/%2E%2E", 400),
            (Method::PUT, "/v1/sandboxes/%ff", 400),
            (Method::PUT, "/v1/sandboxes/a/", 404),
            (Method::PUT, "/v2/sandboxes/a", 404),
            (Method::GET, "/v1/sandboxes/a", 405),
            (Method::POST, "/healthz", 405),
            (Method::GET, "/v1/sandboxes/a/exec", 405),
            (Method::POST, "/v1/sandboxes/a/files/download", 405),
            (Method::POST, "/v1/sandboxes/a/exec/", 404),
            (Method::GET, "/v1/sandboxes/a/files/download?src=%ff", 400),
        ] {
            assert_eq!(find(method, uri), Err(status), "{uri}");
        }
    }
}
