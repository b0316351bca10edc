//! This crate's server: contract, responses and authentication.

/// A backend whose behaviour depends on the session id.
mod fake_backend;
/// Live output as server-sent events.
mod live;
/// The operator's maxima.
mod maxima;
/// The published Python client.
mod python;
/// Slow, malicious and disconnected clients.
mod robustness;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use noxrunner::server::{Server, ServerBuilder, Stopper};
use noxrunner::{Client, ErrorKind, Isolation, SandboxInfo, SandboxSpec};
use serde_json::{Value, json};

use self::fake_backend::{FakeBackend, fake_server};
use crate::contract;
use crate::support::local_backend;
use crate::support::processes::wait_for;

pub(crate) struct RunningServer {
    addr: Option<SocketAddr>,
    token: Option<String>,
    stopper: Stopper,
    thread: Option<JoinHandle<noxrunner::Result<()>>>,
}

impl RunningServer {
    pub(crate) fn start(builder: ServerBuilder) -> RunningServer {
        let server = builder.bind().unwrap();
        RunningServer {
            addr: server.local_addr(),
            token: server.token().map(str::to_owned),
            stopper: server.stopper(),
            thread: Some(std::thread::spawn(move || server.run())),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr.unwrap()
    }

    pub(crate) fn client_at(&self, url: &str) -> Client {
        let mut builder = Client::builder(url);
        if let Some(token) = &self.token {
            builder = builder.token(token.clone());
        }
        builder.build().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.client_at(&format!("http://{}", self.addr()))
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// Sends one request, with the token, on a new connection.
    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        let token = self.token.as_ref();
        let token = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{token}{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    }

    fn send(&self, request: &str) -> Response {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_response(&mut stream)
    }

    fn stop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

/// Reads to the end of the connection. The status is 0 if there was no response.
fn read_response(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Response {
        status: status.unwrap_or(0),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

fn local() -> (ServerBuilder, tempfile::TempDir) {
    let (backend, dir) = local_backend(Isolation::None);
    (Server::builder(backend), dir)
}

#[test]
fn contract_holds_over_tcp() {
    let (builder, _dir) = local();
    let server = RunningServer::start(builder.tcp("127.0.0.1:0"));
    contract::run_streaming(&server.client());
}

#[test]
fn contract_holds_over_a_unix_socket() {
    let (builder, dir) = local();
    let path = dir.path().join("socket");
    let server = RunningServer::start(builder.unix(&path));
    assert_eq!(server.addr, None);
    contract::run_streaming(&server.client_at(&format!("unix://{}", path.display())));
}

#[test]
fn contract_holds_through_a_gateway() {
    let (builder, _dir) = local();
    let behind = RunningServer::start(builder.tcp("127.0.0.1:0"));
    let token = behind.token.clone().unwrap();
    let backend = noxrunner::HttpBackend::builder(format!("http://{}", behind.addr()));
    let backend = backend.token(token).build().unwrap();
    let gateway = RunningServer::start(Server::builder(backend).tcp("127.0.0.1:0"));
    contract::run_streaming(&gateway.client());
}

#[test]
fn contract_holds_through_a_gateway_to_a_unix_socket() {
    let (builder, dir) = local();
    let path = dir.path().join("socket");
    let behind = RunningServer::start(builder.unix(&path));
    let backend = noxrunner::HttpBackend::builder(format!("unix://{}", path.display()));
    let backend = backend
        .token(behind.token.clone().unwrap())
        .build()
        .unwrap();
    let gateway = RunningServer::start(Server::builder(backend).tcp("127.0.0.1:0"));
    contract::run_all(&gateway.client());
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn limits_that_are_too_small_are_a_bad_request() {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let server = RunningServer::start(Server::builder(backend).tcp("127.0.0.1:0").no_auth());
    let body = r#"{"memoryLimit": "512m"}"#;
    let create = server.request("PUT", "/v1/sandboxes/a", JSON, body);
    assert_eq!(create.status, 400);
    assert!(create.body.contains("did you mean"), "{}", create.body);
}

#[test]
fn download_reports_whether_the_sandbox_is_missing() {
    let (backend, _dir) = local_backend(Isolation::None);
    let server = RunningServer::start(Server::builder(backend).tcp("127.0.0.1:0").no_auth());
    let client = Client::new(format!("http://{}", server.addr())).unwrap();
    let gone = |id: &str| {
        let sandbox = client.sandbox(id).unwrap();
        let error = sandbox.download_archive("missing").err().unwrap();
        assert!(error.is_not_found(), "{error}");
        error.is_sandbox_gone()
    };
    client.create("there", SandboxSpec::new()).unwrap();
    assert_eq!((gone("there"), gone("not-there")), (false, true));
}

#[test]
fn responses_follow_v1() {
    let (builder, _) = fake_server();
    let server = RunningServer::start(builder);
    let health = server.send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((health.status, &*health.body), (200, "OK"));
    assert!(health.head.contains("content-type: text/plain"));

    let create = server.request("PUT", "/v1/sandboxes/a", JSON, "{}");
    let json_of = |response: &Response| serde_json::from_str::<Value>(&response.body).unwrap();
    assert_eq!(create.status, 200);
    assert_eq!(
        json_of(&create),
        json!({"podName": "pod", "expiresAt": "2026-01-02T12:34:56Z"})
    );
    let body = r#"{"ttlSeconds": 5.0, "image": "i", "cpuLimit": null, "other": 1}"#;
    let create = server.request("PUT", "/v1/sandboxes/a", JSON, body);
    assert_eq!(json_of(&create)["ignored"], json!(["i"]));

    let body = r#"{"cmd": ["x"], "timeoutSeconds": 1}"#;
    let exec = server.request("POST", "/v1/sandboxes/a/exec", JSON, body);
    assert_eq!(
        json_of(&exec),
        json!({"exitCode": 3, "stdout": "o\n", "stderr": "e\u{fffd}", "durationMs": 7, "timedOut": true, "truncated": false, "killedBy": "timeout"})
    );
    assert_eq!(
        server
            .request("POST", "/v1/sandboxes/a/touch", "", "")
            .status,
        200
    );
    // Like the Python client's request.
    let touch = "POST /v1/sandboxes/a/touch HTTP/1.1\r\nHost: a\r\nAuthorization: bearer secret\r\nConnection: close\r\n\r\n";
    assert_eq!(server.send(touch).status, 200);
    assert_eq!(
        server.request("DELETE", "/v1/sandboxes/a", "", "").status,
        204
    );
    assert_eq!(
        server
            .request("DELETE", "/v1/sandboxes/missing", "", "")
            .status,
        404
    );
}

const EXEC_PATH: &str = "/v1/sandboxes/a/exec";
const UPLOAD_PATH: &str = "/v1/sandboxes/a/files/upload";
const TAR: &str = "Content-Type: application/x-tar\r\n";
const TEXT: &str = "Content-Type: text/plain\r\n";

/// Stands for a body over the limit.
const TOO_LARGE: &str = "too large";

/// Method, path, header, body, and the status and text of the response.
#[rustfmt::skip]
const REFUSALS: &[(&str, &str, &str, &str, u16, &str)] = &[
    ("GET", "/v1/nothing", "", "", 404, "/v1/nothing"),
    ("GET", EXEC_PATH, "", "", 405, "use POST"),
    ("POST", EXEC_PATH, "", "{}", 415, "application/json"),
    ("POST", EXEC_PATH, TEXT, "{}", 415, "text/plain"),
    ("POST", EXEC_PATH, JSON, "{\"cmd\": [", 400, "line 1 column 9"),
    ("POST", EXEC_PATH, JSON, "{\"cmd\": []}", 400, "command is empty"),
    ("POST", EXEC_PATH, JSON, "{\"cmd\": \"ls\"}", 400, "expected a sequence"),
    ("POST", EXEC_PATH, JSON, "{\"cmd\": [\"x\"], \"timeoutSeconds\": 0}", 400, "timeout"),
    ("PUT", "/v1/sandboxes/a", JSON, "{\"ttlSeconds\": 0}", 400, "TTL is zero"),
    ("PUT", "/v1/sandboxes/a", JSON, "{\"ttlSeconds\": -1}", 400, "-1 is not a whole number"),
    ("PUT", "/v1/sandboxes/..", JSON, "{}", 400, ".."),
    ("PUT", "/v1/sandboxes/panic", JSON, "{}", 500, "panicked"),
    ("POST", UPLOAD_PATH, TEXT, "x", 415, "application/x-tar"),
    ("POST", UPLOAD_PATH, TAR, TOO_LARGE, 413, "too large"),
    ("POST", "/v1/sandboxes/refuses/files/upload", TAR, "x", 400, "not this one"),
    ("GET", "/v1/sandboxes/a/files/download", "", "", 404, "no such path"),
    ("POST", "/v1/sandboxes/missing/touch", "", "", 404, "as scripted"),
    ("POST", "/v1/sandboxes/not-ready/touch", "", "", 503, "as scripted"),
    ("POST", "/v1/sandboxes/unknown/touch", "", "", 502, "as scripted"),
    ("POST", "/v1/sandboxes/late/touch", "", "", 504, "as scripted"),
    ("POST", "/v1/sandboxes/disk/touch", "", "", 500, "as scripted"),
    ("POST", "/v1/sandboxes/cannot/touch", "", "", 501, "as scripted"),
];

#[test]
fn refusals_give_the_reason() {
    let (builder, _) = fake_server();
    let server = RunningServer::start(builder.max_upload(1000));
    let large = "x".repeat(1001);
    for (method, path, headers, body, status, says) in REFUSALS {
        let body = if *body == TOO_LARGE { &large } else { *body };
        let response = server.request(method, path, headers, body);
        assert_eq!(
            response.status, *status,
            "{method} {path} {body}: {}",
            response.body
        );
        assert!(response.body.contains(says), "{path}: {}", response.body);
        let is_json = response.head.contains("application/json");
        let speaks_json = [EXEC_PATH, "/v1/nothing"].contains(path) || *method == "PUT";
        assert!(!speaks_json || is_json, "{path}: {}", response.head);
        if is_json {
            let value: Value = serde_json::from_str(&response.body).unwrap();
            assert!(value["error"].is_string());
        }
    }
    let not_allowed = server.request("POST", "/v1/sandboxes/a", "", "");
    assert!(
        not_allowed.head.contains("allow: put, delete"),
        "{}",
        not_allowed.head
    );
    // The server still works.
    assert!(server.client().is_healthy().unwrap());
}

#[test]
fn requests_without_valid_token_get_401() {
    let (builder, _) = fake_server();
    let server = RunningServer::start(builder);
    let touch = |headers: &str| {
        server.send(&format!(
            "POST /v1/sandboxes/a/touch HTTP/1.1\r\nHost: a\r\n{headers}Connection: close\r\n\r\n"
        ))
    };
    assert_eq!(touch("Authorization: Bearer secret\r\n").status, 200);
    for wrong in [
        "",
        "Authorization: Bearer secre\r\n",
        "Authorization: Bearer secrets\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Basic secret\r\n",
        "Authorization: secret\r\n",
    ] {
        let response = touch(wrong);
        assert_eq!(response.status, 401, "{wrong}");
        assert!(response.head.contains("www-authenticate: bearer"));
    }
    assert!(touch("").body.contains("--no-auth"));
    let page = touch("Authorization: Bearer secret\r\nOrigin: http://evil.example\r\n");
    assert_eq!(page.status, 403);
}

#[test]
fn no_auth_serves_only_loopback() {
    for addr in ["0.0.0.0:0", "[::]:0"] {
        let error = fake_server().0.tcp(addr).no_auth().bind().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(format!("{error:#}").contains("no_auth_anywhere"), "{error}");
    }
    drop(
        fake_server()
            .0
            .tcp("0.0.0.0:0")
            .no_auth_anywhere()
            .bind()
            .unwrap(),
    );
    let server = RunningServer::start(fake_server().0.no_auth());
    let touch = |host: &str| {
        let head = format!("POST /v1/sandboxes/a/touch HTTP/1.1\r\nHost: {host}\r\n");
        server
            .send(&format!("{head}Connection: close\r\n\r\n"))
            .status
    };
    assert_eq!(touch("localhost:1"), 200);
    assert_eq!(touch("127.0.0.1"), 200);
    // A web page can make its own name resolve to this address.
    assert_eq!(touch("rebound.example"), 403);
}

#[test]
fn invalid_settings_are_refused() {
    let builder = || Server::builder(Arc::new(FakeBackend::default()));
    for (builder, says) in [
        (builder(), "no address to listen on"),
        (builder().tcp("127.0.0.1:0").token(""), "token is empty"),
        (builder().tcp("127.0.0.1:0").token("a b"), "visible ASCII"),
        (
            builder().tcp("not an address"),
            "invalid address to listen on",
        ),
        (builder().tcp("127.0.0.1:0").max_calls(0), "must not be 0"),
        (
            builder().tcp("127.0.0.1:0").max_memory("512MB"),
            "max_memory",
        ),
        (
            builder().tcp("127.0.0.1:0").memory_budget(1 << 20),
            "at least 8 MiB",
        ),
    ] {
        let error = builder.bind().unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = builder()
        .tcp(taken.local_addr().unwrap())
        .bind()
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("cannot listen on 127.0.0.1"),
        "{error}"
    );
}

#[test]
fn generated_tokens_are_long_and_differ() {
    let token = || {
        let server = Server::bind("127.0.0.1:0", Arc::new(FakeBackend::default())).unwrap();
        server.token().unwrap().to_owned()
    };
    let tokens = [token(), token()];
    assert_ne!(tokens[0], tokens[1]);
    assert!(tokens.iter().all(|token| token.len() == 32));
}

#[test]
fn unix_socket_is_private_and_removed_at_exit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // A stale socket, on which no one listens.
    drop(UnixListener::bind(&path).unwrap());
    // A process that another test starts may have the socket for a moment.
    let is_stale = || UnixStream::connect(&path).is_err();
    wait_for("the listener is closed", is_stale);
    let builder = || Server::builder(Arc::new(FakeBackend::default())).unix(&path);
    let mut server = RunningServer::start(builder());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = builder().bind().unwrap_err();
    assert!(format!("{error:#}").contains("another server"), "{error}");
    server.stop();
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    let error = builder().bind().unwrap_err();
    assert!(format!("{error:#}").contains("not a socket"), "{error}");
    assert!(path.exists());
}

const EXEC: &str = "POST /v1/sandboxes/a/exec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n";

fn exec_for(seconds: u32) -> String {
    let body = format!("{{\"cmd\": [\"x\"], \"timeoutSeconds\": {seconds}}}");
    format!("{EXEC}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn disconnected_client_cancels_its_command() {
    let (builder, fake) = fake_server();
    let server = RunningServer::start(builder);
    let mut stream = server.connect();
    stream.write_all(exec_for(60).as_bytes()).unwrap();
    wait_for("the command runs", || {
        fake.running.load(Ordering::SeqCst) == 1
    });
    drop(stream);
    wait_for("the command is cancelled", || {
        fake.running.load(Ordering::SeqCst) == 0
    });
    assert!(fake.cancelled.load(Ordering::SeqCst));
}

#[test]
fn stop_waits_for_running_calls() {
    let (builder, fake) = fake_server();
    let mut server = RunningServer::start(builder);
    let mut idle = server.connect();
    let mut stream = server.connect();
    stream.write_all(exec_for(5).as_bytes()).unwrap();
    wait_for("the command runs", || {
        fake.running.load(Ordering::SeqCst) == 1
    });
    server.stop();
    assert_eq!(read_response(&mut stream).status, 200);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    // A process that another test starts may have the socket for a moment.
    let is_closed = || TcpStream::connect(server.addr()).is_err();
    wait_for("the listener is closed", is_closed);
}

#[test]
fn stop_cancels_calls_after_the_grace_period() {
    let (builder, fake) = fake_server();
    let mut server = RunningServer::start(builder.grace(Duration::from_millis(100)));
    let mut stream = server.connect();
    stream.write_all(exec_for(60).as_bytes()).unwrap();
    wait_for("the command runs", || {
        fake.running.load(Ordering::SeqCst) == 1
    });
    let stopped = Instant::now();
    server.stop();
    assert!(stopped.elapsed() < Duration::from_secs(50));
    assert!(fake.cancelled.load(Ordering::SeqCst));
    assert_eq!(fake.running.load(Ordering::SeqCst), 0);
}

#[test]
fn too_many_calls_get_503() {
    let (builder, fake) = fake_server();
    let server = RunningServer::start(builder.max_calls(1));
    let mut first = server.connect();
    first.write_all(exec_for(60).as_bytes()).unwrap();
    wait_for("the command runs", || {
        fake.running.load(Ordering::SeqCst) == 1
    });
    let second = server.request("POST", "/v1/sandboxes/a/exec", JSON, r#"{"cmd": ["x"]}"#);
    assert_eq!(second.status, 503);
    assert!(second.head.contains("retry-after: 1"), "{}", second.head);
}

#[test]
fn too_many_connections_get_503() {
    let (builder, _) = fake_server();
    let server = RunningServer::start(builder.max_connections(2));
    let kept: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    let request = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    wait_for("all connections are taken", || {
        server.send(request).status == 503
    });
    assert!(server.send(request).head.contains("retry-after: 1"));
    drop(kept);
    wait_for("a connection is free again", || {
        server.send(request).status == 200
    });
}
