//! A small v1 server for any backend, for tests of the client.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use noxrunner::{Backend, Command, Error, ErrorKind, SandboxSpec, SessionId, Upload};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::rate_limit::RateLimit;
use super::scripted::{Conn, Request, Scripted};

pub(crate) fn serve(backend: impl Backend + 'static) -> Scripted {
    serve_if(backend, || true)
}

/// Refuses requests over the limit.
pub(crate) fn serve_limited(backend: impl Backend + 'static, limit: Arc<RateLimit>) -> Scripted {
    serve_if(backend, move || limit.admits())
}

fn serve_if(
    backend: impl Backend + 'static,
    admits: impl Fn() -> bool + Send + Sync + 'static,
) -> Scripted {
    let backend = Arc::new(backend);
    Scripted::start(move |mut conn| {
        while let Some(request) = conn.read_head() {
            conn.record(&request);
            if !admits() {
                let _ = std::io::copy(&mut conn.body_reader(&request), &mut std::io::sink());
                conn.respond(429, r#"{"error": "rate limited"}"#);
                continue;
            }
            match route(&*backend, &request, &mut conn) {
                Ok(Answer::Json(value)) => conn.respond_with(
                    200,
                    &[("Content-Type", "application/json")],
                    value.to_string(),
                ),
                Ok(Answer::Empty(status)) => conn.respond(status, ""),
                Ok(Answer::Text(text)) => conn.respond(200, text),
                Ok(Answer::Archive(archive)) => send_chunked(&mut conn, archive),
                Err(error) => {
                    conn.respond(
                        status_of(&error),
                        json!({"error": format!("{error:#}")}).to_string(),
                    );
                }
            }
        }
    })
}

enum Answer {
    Json(Value),
    Empty(u16),
    Text(&'static str),
    Archive(Box<dyn Read + Send>),
}

fn status_of(error: &Error) -> u16 {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Archive => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::NotReady => 503,
        _ => 500,
    }
}

fn route(backend: &dyn Backend, request: &Request, conn: &mut Conn) -> noxrunner::Result<Answer> {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let argument = query
        .split_once('=')
        .map_or(String::new(), |(_, value)| decode(value));
    let no_route = || Error::new(ErrorKind::NotFound, "no such route");
    let (id, call) = match parts.as_slice() {
        ["healthz"] => {
            backend.health()?;
            return Ok(Answer::Text("OK"));
        }
        ["v1", "sandboxes", id, rest @ ..] => (SessionId::new(decode(id))?, rest.join("/")),
        _ => return Err(no_route()),
    };
    let mut json = || {
        let mut body = Vec::new();
        conn.body_reader(request)
            .read_to_end(&mut body)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "no body"))?;
        serde_json::from_slice::<Value>(&body)
            .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("{e:#}")))
    };
    match (request.method.as_str(), call.as_str()) {
        ("PUT", "") => {
            let body = json()?;
            let info = backend.create(&id, &spec_of(&body))?;
            Ok(Answer::Json(
                json!({"podName": info.pod_name(), "expiresAt": info.expires_at()}),
            ))
        }
        ("POST", "touch") => backend.touch(&id).map(|()| Answer::Empty(200)),
        ("POST", "exec") => {
            let out = backend.exec(&id, &command_of(&json()?))?;
            Ok(Answer::Json(json!({
                "exitCode": out.exit_code(),
                "stdout": out.stdout(),
                "stderr": out.stderr(),
                "durationMs": out.duration().as_millis() as u64,
                "timedOut": out.timed_out(),
                "truncated": out.truncated(),
            })))
        }
        ("POST", "files/upload") => {
            let length = request
                .header("content-length")
                .and_then(|l| l.parse().ok());
            // The body must be read even if the backend refuses it.
            let mut body = Vec::new();
            conn.body_reader(request).read_to_end(&mut body).unwrap();
            let archive = Upload::from_reader(&mut &*body, length).content_length();
            assert!(archive.is_none_or(|length| length == body.len() as u64));
            backend.upload(&id, &argument, Upload::from_bytes(&body))?;
            Ok(Answer::Empty(200))
        }
        ("GET", "files/download") => backend.download(&id, &argument).map(Answer::Archive),
        ("DELETE", "") => match backend.delete(&id)? {
            true => Ok(Answer::Empty(204)),
            false => Err(Error::new(ErrorKind::NotFound, "no such sandbox")),
        },
        _ => Err(no_route()),
    }
}

pub(super) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

pub(super) fn spec_of(body: &Value) -> SandboxSpec {
    let mut spec = SandboxSpec::new();
    if let Some(seconds) = body["ttlSeconds"].as_u64() {
        spec = spec.ttl(Duration::from_secs(seconds));
    }
    if let Some(image) = body["image"].as_str() {
        spec = spec.image(image);
    }
    spec
}

pub(super) fn command_of(body: &Value) -> Command {
    let args = body["cmd"].as_array().into_iter().flatten();
    let mut command: Command = args.filter_map(|arg| arg.as_str()).collect();
    if let Some(workdir) = body["workdir"].as_str() {
        command = command.workdir(workdir);
    }
    if let Some(seconds) = body["timeoutSeconds"].as_u64() {
        command = command.timeout(Duration::from_secs(seconds));
    }
    let env = body["env"].as_object().into_iter().flatten();
    command.envs(env.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))))
}

fn send_chunked(conn: &mut Conn, mut archive: Box<dyn Read + Send>) {
    conn.write(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match archive.read(&mut buffer) {
            Ok(0) => return conn.write("0\r\n\r\n"),
            Ok(got) => {
                let mut chunk = format!("{got:x}\r\n").into_bytes();
                chunk.extend_from_slice(&buffer[..got]);
                chunk.extend_from_slice(b"\r\n");
                if conn.stream().write_all(&chunk).is_err() {
                    return;
                }
            }
            // Without its last chunk, the body is truncated.
            Err(_) => return,
        }
    }
}
