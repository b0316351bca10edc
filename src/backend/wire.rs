//! The JSON of NoxRunner v1, for the client, the server and the conformance checker. The response to
//! `PUT /v1/sandboxes/{id}` is a [`SandboxInfo`](crate::SandboxInfo).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::command::Command;
use crate::lenient_json::{self, known, optional_whole, rounded, text, whole};
use crate::os::time::whole_seconds;
use crate::output::{KilledBy, Output, Success, Usage};
use crate::spec::SandboxSpec;

/// Media types of request and response bodies.
pub(crate) const JSON: &str = "application/json";
pub(crate) const ARCHIVE: &str = "application/x-tar";
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// `Accept` of a client that prefers live output, which is an extension, to JSON.
pub(crate) const ACCEPT_LIVE: &str = "text/event-stream, application/json;q=0.5";

/// Header of a 404 response, with the value `sandbox` if the sandbox itself is missing. An extension.
pub(crate) const MISSING: &str = "x-noxrunner-missing";
/// The header of a token for proxies that remove `Authorization`, as the Kubernetes API server does.
#[cfg(any(feature = "server", feature = "kubernetes"))]
pub(crate) const TOKEN: &str = "x-noxrunner-token";
pub(crate) const MISSING_SANDBOX: &str = "sandbox";

/// Body of `PUT /v1/sandboxes/{id}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateRequest<'a> {
    #[serde(default, deserialize_with = "optional_whole")]
    ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_limit: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral_storage_limit: Option<Cow<'a, str>>,
}

impl<'a> From<&'a SandboxSpec> for CreateRequest<'a> {
    fn from(spec: &'a SandboxSpec) -> CreateRequest<'a> {
        CreateRequest {
            ttl_seconds: Some(whole_seconds(spec.get_ttl())),
            image: spec.get_image().map(Cow::from),
            cpu_limit: spec.get_cpu().map(Cow::from),
            memory_limit: spec.get_memory().map(Cow::from),
            ephemeral_storage_limit: spec.get_storage().map(Cow::from),
        }
    }
}

impl From<CreateRequest<'_>> for SandboxSpec {
    fn from(request: CreateRequest<'_>) -> SandboxSpec {
        SandboxSpec {
            ttl: request.ttl_seconds.map(Duration::from_secs),
            image: request.image.map(Cow::into_owned),
            cpu: request.cpu_limit.map(Cow::into_owned),
            memory: request.memory_limit.map(Cow::into_owned),
            storage: request.ephemeral_storage_limit.map(Cow::into_owned),
        }
    }
}

/// Body of `POST /v1/sandboxes/{id}/exec`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecRequest<'a> {
    cmd: Cow<'a, [String]>,
    workdir: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Cow<'a, BTreeMap<String, String>>>,
    #[serde(default, deserialize_with = "optional_whole")]
    timeout_seconds: Option<u64>,
}

impl<'a> From<&'a Command> for ExecRequest<'a> {
    fn from(command: &'a Command) -> ExecRequest<'a> {
        let env = command.get_envs();
        ExecRequest {
            cmd: command.get_args().into(),
            workdir: Some(command.get_workdir().into()),
            env: (!env.is_empty()).then_some(Cow::Borrowed(env)),
            timeout_seconds: Some(whole_seconds(command.get_timeout())),
        }
    }
}

impl From<ExecRequest<'_>> for Command {
    fn from(request: ExecRequest<'_>) -> Command {
        let mut command = Command::from(&*request.cmd);
        if let Some(workdir) = request.workdir {
            command = command.workdir(&*workdir);
        }
        if let Some(env) = request.env {
            command = command.envs(env.into_owned());
        }
        if let Some(seconds) = request.timeout_seconds {
            command = command.timeout(Duration::from_secs(seconds));
        }
        command
    }
}

/// Response to `POST /v1/sandboxes/{id}/exec`. What is optional is an extension.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecResponse<'a> {
    #[serde(deserialize_with = "whole")]
    exit_code: i32,
    // Some backends omit empty streams.
    #[serde(default, deserialize_with = "text")]
    stdout: Cow<'a, str>,
    #[serde(default, deserialize_with = "text")]
    stderr: Cow<'a, str>,
    #[serde(default, deserialize_with = "rounded")]
    duration_ms: Option<u64>,
    #[serde(default, deserialize_with = "known")]
    timed_out: Option<bool>,
    #[serde(default, deserialize_with = "known")]
    truncated: Option<bool>,
    #[serde(
        default,
        deserialize_with = "rounded",
        skip_serializing_if = "Option::is_none"
    )]
    cpu_millis: Option<u64>,
    #[serde(
        default,
        deserialize_with = "rounded",
        skip_serializing_if = "Option::is_none"
    )]
    peak_memory_bytes: Option<u64>,
    #[serde(
        default,
        deserialize_with = "known",
        skip_serializing_if = "Option::is_none"
    )]
    killed_by: Option<KilledBy>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl<'a> From<&'a Output> for ExecResponse<'a> {
    fn from(out: &'a Output) -> ExecResponse<'a> {
        ExecResponse {
            truncated: Some(out.truncated()),
            ..ExecResponse::cut(out, out.stdout(), out.stderr())
        }
    }
}

impl<'a> ExecResponse<'a> {
    /// The response with parts of the streams.
    pub(crate) fn cut(out: &Output, stdout: Cow<'a, str>, stderr: Cow<'a, str>) -> Self {
        ExecResponse {
            exit_code: out.exit_code(),
            stdout,
            stderr,
            duration_ms: Some(millis(out.duration())),
            timed_out: Some(out.timed_out()),
            truncated: Some(true),
            cpu_millis: out.usage().map(|usage| millis(usage.cpu_time())),
            peak_memory_bytes: out.usage().map(|usage| usage.peak_memory()),
            killed_by: out.killed_by(),
        }
    }

    /// Returns the JSON of the response without its streams, as the last event of a live exec has it.
    #[cfg(feature = "server")]
    pub(crate) fn without_streams(out: &Output) -> serde_json::Result<serde_json::Value> {
        let mut json = serde_json::to_value(ExecResponse::from(out))?;
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|name, _| !matches!(name.as_str(), "stdout" | "stderr"));
        }
        Ok(json)
    }
}

impl From<ExecResponse<'_>> for Output {
    fn from(response: ExecResponse<'_>) -> Output {
        let (stdout, stderr) = (response.stdout.into_owned(), response.stderr.into_owned());
        let duration = Duration::from_millis(response.duration_ms.unwrap_or(0));
        let mut out = Output::new(response.exit_code, stdout, stderr, duration);
        out.timed_out = response.timed_out;
        out.truncated = response.truncated;
        out.killed_by = response.killed_by;
        let usage = response.cpu_millis.zip(response.peak_memory_bytes);
        out.usage = usage.map(|(cpu, peak)| Usage::new(Duration::from_millis(cpu), peak));
        out
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ExecResponse::from(self).serialize(serializer)
    }
}

impl Serialize for Success {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Output::serialize(self, serializer)
    }
}

/// Body of an error response, as our server writes it.
#[cfg(feature = "server")]
#[derive(Serialize)]
pub(crate) struct ErrorResponse<'a> {
    pub(crate) error: &'a str,
    /// The code of another server's error, which this one passes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'a str>,
}

/// Data of the event `error` of a live exec: the body of an error response, with its status. An extension.
#[cfg(feature = "server")]
#[derive(Serialize)]
pub(crate) struct ErrorEvent<'a> {
    #[serde(flatten)]
    pub(crate) response: ErrorResponse<'a>,
    pub(crate) status: u16,
    #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<&'a str>,
}

/// Code of a 504 response to an exec that exceeded the server's maximum. Not part of v1.
pub(crate) const EXEC_TIMEOUT: &str = "EXEC_TIMEOUT";

/// Code of an error response to an exec whose sandbox ended while the command ran. Not part of v1.
pub(crate) const SANDBOX_ENDED: &str = "SANDBOX_ENDED";

/// Header of a response with the server's id for the request. Not part of v1.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// The error in an error response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) message: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) request_id: Option<String>,
    /// The status, if the error is an event.
    pub(crate) status: Option<u16>,
}

impl ServerError {
    /// Parses `{"error": "text"}`, also with a `code`, or `{"error": {"code", "message", "requestId"}}`.
    /// Returns `None` for anything else, which need not come from a NoxRunner server.
    pub(crate) fn parse(body: &[u8]) -> Option<ServerError> {
        let mut body: Value = lenient_json::from_slice(body).ok()?;
        let mut error = body.get_mut("error")?.take();
        let status = body.get("status").and_then(Value::as_u64);
        let beside = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let (code, request_id) = (beside("code"), beside("requestId"));
        let mut field = |name: &str| match error.get_mut(name)?.take() {
            Value::String(text) => Some(text),
            _ => None,
        };
        let mut parsed = ServerError {
            message: field("message"),
            code: field("code").or(code),
            request_id: field("requestId").or(request_id),
            status: status.and_then(|status| u16::try_from(status).ok()),
        };
        if let Value::String(text) = error {
            parsed.message = Some(text);
        }
        (parsed.message.is_some() || parsed.code.is_some()).then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SandboxInfo;

    #[test]
    fn specs_and_commands_survive_the_round_trip() {
        let spec = SandboxSpec::new()
            .ttl(Duration::from_secs(60))
            .image("python:3.12")
            .cpu("500m")
            .memory("1Gi")
            .storage("2Gi");
        let json = serde_json::to_string(&CreateRequest::from(&spec)).unwrap();
        let expected = r#"{"ttlSeconds":60,"image":"python:3.12","cpuLimit":"500m","memoryLimit":"1Gi","ephemeralStorageLimit":"2Gi"}"#;
        assert_eq!(json, expected);
        let request: CreateRequest<'_> = serde_json::from_str(&json).unwrap();
        assert_eq!(SandboxSpec::from(request), spec);

        let command = Command::from(["ls", "-l"]).workdir("src").env("A", "1");
        let json = serde_json::to_string(&ExecRequest::from(&command)).unwrap();
        let expected =
            r#"{"cmd":["ls","-l"],"workdir":"/workspace/src","env":{"A":"1"},"timeoutSeconds":30}"#;
        assert_eq!(json, expected);
        let request: ExecRequest<'_> = serde_json::from_str(&json).unwrap();
        assert_eq!(
            format!("{:?}", Command::from(request)),
            format!("{command:?}")
        );
    }

    #[test]
    fn numbers_of_requests_may_be_null_or_floats() {
        let ttl = |json: &str| {
            let request: CreateRequest<'_> = serde_json::from_str(json)?;
            Ok::<_, serde_json::Error>(request.ttl_seconds)
        };
        assert_eq!(ttl("{}").unwrap(), None);
        assert_eq!(ttl(r#"{"ttlSeconds":null}"#).unwrap(), None);
        assert_eq!(ttl(r#"{"ttlSeconds":60.0}"#).unwrap(), Some(60));
        for invalid in ["60.5", "-1", "true", "\"60\""] {
            let error = ttl(&format!("{{\"ttlSeconds\":{invalid}}}")).unwrap_err();
            assert!(error.to_string().contains("not a whole number"), "{error}");
        }
    }

    #[test]
    fn answers_serialize_as_the_protocol_has_them() {
        let out = Output::new(3, "a\n", b"\xff", Duration::from_millis(7)).with_timed_out(false);
        let json = serde_json::to_value(&out).unwrap();
        let expected = serde_json::json!({
            "exitCode": 3, "stdout": "a\n", "stderr": "\u{fffd}", "durationMs": 7,
            "timedOut": false, "truncated": false,
        });
        assert_eq!(json, expected);
        let info = SandboxInfo::new("pod-1", "2026-01-02T12:34:56Z");
        let json = serde_json::to_value(&info).unwrap();
        let expected = serde_json::json!({"podName": "pod-1", "expiresAt": "2026-01-02T12:34:56Z"});
        assert_eq!(json, expected);
    }
}
