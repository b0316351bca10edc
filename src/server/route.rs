//! Finding the call of a request.

use hyper::{Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::reply::ErrorReply;
use crate::sandbox_path::WORKSPACE;
use crate::session_id::SessionId;

/// A call, with the arguments from its URL.
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
    /// Returns true for calls whose errors are JSON, as the protocol has them.
    pub(super) fn has_json_errors(&self) -> bool {
        matches!(self, Route::Create(_) | Route::Exec(_))
    }

    pub(super) fn find(method: &Method, uri: &Uri) -> Result<Route, ErrorReply> {
        if uri.path() == "/healthz" {
            return only(&Method::GET, method, || Ok(Route::Health));
        }
        // Split before decoding, because an id may contain slashes.
        let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
        let (id, call) = match parts.as_slice() {
            ["v1", "sandboxes", id, call @ ..] => (id, call.join("/")),
            _ => return Err(no_route(uri)),
        };
        let id = || {
            let id =
                decode(id).ok_or_else(|| ErrorReply::bad_request("the session id is not UTF-8"))?;
            SessionId::new(id).map_err(ErrorReply::from)
        };
        let query = |name| query(uri, name).map(|path| path.unwrap_or_else(|| WORKSPACE.into()));
        match call.as_str() {
            "" if parts.len() == 3 => match *method {
                Method::PUT => Ok(Route::Create(id()?)),
                Method::DELETE => Ok(Route::Delete(id()?)),
                _ => Err(ErrorReply::method_not_allowed("PUT, DELETE")),
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
    route: impl FnOnce() -> Result<Route, ErrorReply>,
) -> Result<Route, ErrorReply> {
    if method == allowed {
        route()
    } else {
        Err(ErrorReply::method_not_allowed(allowed.as_str()))
    }
}

fn no_route(uri: &Uri) -> ErrorReply {
    let text = format!("no such endpoint: {}", uri.path());
    ErrorReply::new(StatusCode::NOT_FOUND, text)
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Returns the first query parameter of that name. A plus is a space, as in forms.
fn query(uri: &Uri, name: &str) -> Result<Option<String>, ErrorReply> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.find(|(found, _)| *found == name) else {
        return Ok(None);
    };
    let value = decode(&value.replace('+', " "));
    value
        .map(Some)
        .ok_or_else(|| ErrorReply::bad_request(format!("{name} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: Method, uri: &str) -> Result<Route, u16> {
        Route::find(&method, &uri.parse().unwrap()).map_err(|refused| refused.status().as_u16())
    }

    fn id(text: &str) -> SessionId {
        SessionId::new(text).unwrap()
    }

    #[test]
    fn urls_map_to_calls() {
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
    fn other_requests_are_refused() {
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
