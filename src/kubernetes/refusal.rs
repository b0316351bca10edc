//! The meaning of an error of a call to an agent: who has answered, and whether the agent got the request.

use super::status::ApiStatus;
use crate::backend::wire::ServerError;
use crate::error::{Error, ErrorKind, one_line};

/// The origin of an error of a call to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The agent has answered, or the request is invalid.
    Agent,
    /// An agent has refused the token: its pod has replaced the one that the token is for.
    WrongToken,
    /// The API server has refused its own token. The agent has not got the request.
    ExpiredToken,
    /// The API server knows no such pod.
    NoPod,
    /// The API server has refused the request.
    ApiServer,
    /// The agent could not be reached. It has not got the request.
    NotSent,
    /// There was no answer. The agent may have got the request.
    Lost,
}

impl Refusal {
    /// Finds the origin of an error.
    pub(super) fn of(error: &Error) -> Refusal {
        let body = error.response_body().unwrap_or_default().as_bytes();
        if let Some(status) = ApiStatus::parse(body) {
            return Refusal::of_api_server(&status);
        }
        let is_agent = ServerError::parse(body).is_some();
        match (error.status(), error.kind()) {
            (Some(401), _) if is_agent => Refusal::WrongToken,
            // The sandbox ended while a command ran, and the pod may tell why.
            (Some(502), _) if is_agent => Refusal::Lost,
            (Some(_), _) if is_agent => Refusal::Agent,
            // The proxy answers with plain text.
            (Some(500 | 502..=504), _) if is_failed_dial(body) => Refusal::NotSent,
            (Some(500 | 502..=504), _) => Refusal::Lost,
            (None, ErrorKind::Connect) => Refusal::NotSent,
            (None, ErrorKind::Timeout | ErrorKind::OutcomeUnknown) => Refusal::Lost,
            _ => Refusal::Agent,
        }
    }

    fn of_api_server(status: &ApiStatus) -> Refusal {
        match status.code {
            401 => Refusal::ExpiredToken,
            404 => Refusal::NoPod,
            _ if status.is_not_sent() => Refusal::NotSent,
            500 | 502..=504 => Refusal::Lost,
            _ => Refusal::ApiServer,
        }
    }

    /// Returns the error with the words of the API server, if it is from there.
    pub(super) fn explain(error: Error) -> Error {
        let body = error.response_body().unwrap_or_default().as_bytes();
        let Some(status) = ApiStatus::parse(body) else {
            return error;
        };
        let kind = status.error_kind();
        let text = format!(
            "the API server answered {}: {}",
            status.code,
            one_line(&status.message)
        );
        Error::new(kind, text)
            .with_status(status.code)
            .with_body(body)
    }
}

fn is_failed_dial(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    text.contains("dial tcp") || text.contains("connection refused")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(code: u16, body: &str) -> Refusal {
        let error = Error::new(ErrorKind::Status, "x").with_status(code);
        Refusal::of(&error.with_body(body.as_bytes()))
    }

    #[test]
    fn answers_are_told_apart_by_their_bodies() {
        let status = |code: u16, message: &str| {
            let body = json!({"kind": "Status", "code": code, "message": message});
            answer(code, &body.to_string())
        };
        let refused =
            "error trying to reach service: dial tcp 10.0.0.1:8080: connect: connection refused";
        assert_eq!(status(401, "Unauthorized"), Refusal::ExpiredToken);
        assert_eq!(status(404, "pods \"nox-1\" not found"), Refusal::NoPod);
        assert_eq!(
            status(403, "pods \"nox-1\" is forbidden"),
            Refusal::ApiServer
        );
        assert_eq!(status(503, refused), Refusal::NotSent);
        assert_eq!(
            status(503, "error trying to reach service: EOF"),
            Refusal::Lost
        );
        assert_eq!(answer(502, refused), Refusal::NotSent);
        assert_eq!(answer(502, "bad gateway"), Refusal::Lost);
        let ended = "{\"error\": \"the sandbox ended while the command ran\"}";
        assert_eq!(answer(502, ended), Refusal::Lost);
        assert_eq!(
            answer(401, "{\"error\": \"invalid token\"}"),
            Refusal::WrongToken
        );
        assert_eq!(
            answer(404, "{\"error\": \"no such sandbox\"}"),
            Refusal::Agent
        );
        assert_eq!(
            Refusal::of(&Error::new(ErrorKind::Connect, "x")),
            Refusal::NotSent
        );
        assert_eq!(
            Refusal::of(&Error::new(ErrorKind::OutcomeUnknown, "x")),
            Refusal::Lost
        );
        assert_eq!(
            Refusal::of(&Error::new(ErrorKind::Cancelled, "x")),
            Refusal::Agent
        );
    }
}
