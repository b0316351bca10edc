//! Errors of the API server.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, MAX_ERROR_BODY, one_line};
use crate::http::{RestResponse, RestStream};

/// Maximum time for reading the error of a watch.
const ERROR_TIMEOUT: Duration = Duration::from_secs(2);

/// An object of kind `Status`, with which the API server refuses a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ApiStatus {
    kind: String,
    reason: String,
    pub(super) message: String,
    pub(super) code: u16,
}

impl ApiStatus {
    /// Parses the body of an answer. Returns `None` for the answer of another server.
    pub(super) fn parse(body: &[u8]) -> Option<ApiStatus> {
        let status: ApiStatus = serde_json::from_slice(body).ok()?;
        (status.kind == "Status").then_some(status)
    }

    /// Returns true for this reason, such as `AlreadyExists`.
    pub(super) fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    /// Returns true if the proxy could not connect to the pod, so that it has sent nothing.
    pub(super) fn is_not_sent(&self) -> bool {
        let text = &self.message;
        let dial = text.contains("dial tcp") || text.contains("connection refused");
        let no_address =
            text.contains("address not allowed") || text.contains("does not have a host");
        matches!(self.code, 400 | 500 | 502 | 503) && (dial || no_address)
    }

    /// Returns the category of the error.
    pub(super) fn error_kind(&self) -> ErrorKind {
        match self.code {
            400 | 422 => ErrorKind::InvalidInput,
            401 => ErrorKind::Unauthorized,
            // Not allowed by a role. A quota or a rule for pods answers 403 as well.
            403 if self.message.contains(" cannot ") => ErrorKind::Unauthorized,
            403 if self.message.contains("exceeded quota") => ErrorKind::NotReady,
            403 => ErrorKind::InvalidInput,
            429 | 503 => ErrorKind::NotReady,
            _ => ErrorKind::Status,
        }
    }
}

/// Returns the error of a call that the API server refused.
pub(super) fn error(operation: &str, response: &RestResponse) -> Error {
    of_body(operation, response.status, &response.body)
}

/// Returns the error of a stream that the API server refused.
pub(super) fn stream_error(operation: &str, stream: RestStream) -> Error {
    let (status, mut body) = (stream.status, Vec::new());
    // The status alone says what matters.
    let _ = stream
        .within(ERROR_TIMEOUT)
        .take(MAX_ERROR_BODY as u64)
        .read_to_end(&mut body);
    of_body(operation, status, &body)
}

fn of_body(operation: &str, code: u16, body: &[u8]) -> Error {
    let status = ApiStatus::parse(body).unwrap_or_else(|| ApiStatus {
        message: String::from_utf8_lossy(body).into_owned(),
        ..ApiStatus::default()
    });
    let status = ApiStatus { code, ..status };
    let text = one_line(&status.message);
    let advice = match code {
        401 => " (the credentials are missing or have expired)",
        403 if status.error_kind() == ErrorKind::Unauthorized => {
            " (`noxrc kubernetes manifest` prints a role that suffices)"
        }
        404 => " (create the namespace, or choose another one)",
        _ => "",
    };
    let message = format!("{operation}: the API server answered {code}: {text}{advice}");
    Error::new(status.error_kind(), message)
        .with_status(code)
        .with_body(body)
}

/// Returns true for a failure after which the API server may be available again soon.
pub(super) fn is_temporary(error: &Error) -> bool {
    let is_server_error = matches!(error.status(), Some(429 | 500 | 502..=504));
    let is_lost = error.is_connect() || error.is_timeout() || error.is_outcome_unknown();
    is_lost || is_server_error
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(code: u16, message: &str) -> ApiStatus {
        let body = json!({"kind": "Status", "code": code, "message": message}).to_string();
        ApiStatus::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn refusals_have_kinds_by_their_words() {
        let role =
            "pods is forbidden: User \"a\" cannot create resource \"pods\" in API group \"\"";
        let quota =
            "pods \"nox-1\" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=5";
        let rule = "pods \"nox-1\" is forbidden: violates PodSecurity \"restricted:latest\"";
        for (code, text, kind) in [
            (403, role, ErrorKind::Unauthorized),
            (403, quota, ErrorKind::NotReady),
            (403, rule, ErrorKind::InvalidInput),
            (422, "Invalid value", ErrorKind::InvalidInput),
            (401, "Unauthorized", ErrorKind::Unauthorized),
            (404, "namespaces \"x\" not found", ErrorKind::Status),
        ] {
            assert_eq!(status(code, text).error_kind(), kind, "{text}");
        }
        let error = of_body(
            "create pod",
            403,
            json!({"kind": "Status", "message": role})
                .to_string()
                .as_bytes(),
        );
        let text = error.to_string();
        assert!(
            text.starts_with("create pod: the API server answered 403: pods is forbidden"),
            "{text}"
        );
        assert!(text.contains("noxrc kubernetes manifest"), "{text}");
        assert_eq!(error.status(), Some(403));
    }

    #[test]
    fn only_failed_dials_are_certainly_not_sent() {
        let refused =
            "error trying to reach service: dial tcp 10.251.0.5:8080: connect: connection refused";
        assert!(status(503, refused).is_not_sent() && status(500, refused).is_not_sent());
        for text in [
            "error trying to reach service: EOF",
            "read tcp 10.0.0.1:4: connection reset by peer",
        ] {
            assert!(!status(503, text).is_not_sent(), "{text}");
        }
        assert_eq!(ApiStatus::parse(b"{\"error\": \"no such sandbox\"}"), None);
    }
}
