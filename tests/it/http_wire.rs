//! Requests on the wire.

/// The interpretation of responses.
mod answers;
/// Text that tries to control a terminal or a log.
mod hostile_text;
/// Responses of servers that deviate from the protocol.
mod lenient;
/// Live output as server-sent events.
mod live;
/// The contents of logs and errors, and the secrets that they never show.
mod secrets;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noxrunner::{
    Client, ClientBuilder, Command, Error, ErrorKind, Files, MAX_ERROR_BODY, Retry, Sandbox,
    SandboxSpec,
};
use serde_json::{Value, json};

use crate::support::scripted::{CREATE_OK, EXEC_OK, Request, Scripted};

/// A sandbox on this server, without retries.
fn sandbox(server: &Scripted) -> Sandbox {
    once(server).build().unwrap().sandbox("s").unwrap()
}

fn once(server: &Scripted) -> ClientBuilder {
    Client::builder(server.url()).retry(Retry::none())
}

/// The only request that was made.
fn only(server: &Scripted) -> Request {
    let mut requests = server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.remove(0)
}

fn body_json(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[derive(Debug)]
struct Record {
    level: log::Level,
    target: String,
    text: String,
}

thread_local! {
    static RECORDS: RefCell<Option<Vec<Record>>> = const { RefCell::new(None) };
}

/// Records the log of the threads that ask for it, because other tests run at the same time.
struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        RECORDS.try_with(|r| r.borrow().is_some()).unwrap_or(false)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Formatted before the cell is borrowed, because formatting an argument may log, too.
        let record = Record {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
        };
        RECORDS.with_borrow_mut(|all| all.as_mut().unwrap().push(record));
    }

    fn flush(&self) {}
}

/// The records that `call` logs on this thread, at every level and from every crate.
fn logged(call: impl FnOnce()) -> Vec<Record> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&Capture).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
    RECORDS.set(Some(Vec::new()));
    call();
    RECORDS.take().unwrap()
}

fn own(records: &[Record]) -> Vec<&Record> {
    records
        .iter()
        .filter(|r| r.target.starts_with("noxrunner"))
        .collect()
}

#[test]
fn health_is_a_get_without_body() {
    let server = Scripted::always(200, "OK\n");
    Client::new(server.url()).unwrap().health().unwrap();
    let request = only(&server);
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("GET", "/healthz")
    );
    assert_eq!(request.header("content-length"), None);
    assert_eq!(request.header("transfer-encoding"), None);
    assert_eq!(request.header("content-type"), None);
    assert_eq!(
        request.header("host"),
        Some(server.address().to_string().as_str())
    );
}

#[test]
fn touch_is_a_post_with_empty_body() {
    let server = Scripted::always(200, "");
    let sandbox = Client::new(server.url()).unwrap().sandbox("a/b").unwrap();
    sandbox.touch().unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].method, "POST");
    assert_eq!(requests[0].path, "/v1/sandboxes/a%2Fb/touch");
    assert_eq!(requests[0].header("content-length"), Some("0"));
}

#[test]
fn touch_accepts_any_response_body() {
    for (status, body) in [(200, ""), (200, "touched"), (200, "{\"a\":1}"), (204, "")] {
        let server = Scripted::each_request(move |_, conn| match status {
            // The body has no length, and the call must not wait for its end.
            204 => conn.write("HTTP/1.1 204 No Content\r\n\r\n"),
            _ => conn.respond(status, body),
        });
        let sandbox = sandbox(&server);
        sandbox.touch().unwrap();
        sandbox.touch().unwrap();
        assert_eq!(
            server.connections(),
            1,
            "{status} {body:?} frees the connection"
        );
    }
}

#[test]
fn create_is_a_put_with_all_fields() {
    let server = Scripted::always(200, CREATE_OK);
    let spec = SandboxSpec::new()
        .ttl(Duration::from_secs(1800))
        .image("python:3.10")
        .cpu("500m")
        .memory("1Gi")
        .storage("2Gi");
    let client = Client::new(server.url()).unwrap();
    let sandbox = client.create("demo", spec).unwrap();
    let request = only(&server);
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("PUT", "/v1/sandboxes/demo")
    );
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(
        request.header("content-length"),
        Some(request.body.len().to_string().as_str())
    );
    assert_eq!(
        body_json(&request),
        json!({"ttlSeconds": 1800, "image": "python:3.10", "cpuLimit": "500m",
            "memoryLimit": "1Gi", "ephemeralStorageLimit": "2Gi"})
    );
    let info = sandbox.info().unwrap();
    assert_eq!(info.pod_name(), "pod-1");
    assert_eq!(info.expires_at(), "2026-01-02T12:34:56Z");
    assert!(info.expires_at_time().is_some());
}

#[test]
fn create_omits_unset_fields() {
    let server = Scripted::always(200, CREATE_OK);
    let client = Client::new(server.url()).unwrap();
    client.create("demo", SandboxSpec::new()).unwrap();
    // Absent, not null.
    assert_eq!(body_json(&only(&server)), json!({"ttlSeconds": 900}));
}

#[test]
fn ttl_is_rounded_up_to_seconds() {
    let server = Scripted::always(200, CREATE_OK);
    let client = Client::new(server.url()).unwrap();
    for (ttl, wanted) in [(1200, 2), (2000, 2), (1, 1)] {
        let spec = SandboxSpec::new().ttl(Duration::from_millis(ttl));
        client.create("demo", spec).unwrap();
        let last = server.requests().pop().unwrap();
        assert_eq!(body_json(&last), json!({"ttlSeconds": wanted}), "{ttl} ms");
    }
}

#[test]
fn exec_sends_arguments_and_defaults() {
    let server = Scripted::always(200, EXEC_OK);
    let out = sandbox(&server)
        .exec(["printf", "%s", "a b\n\"ä\u{1}"])
        .unwrap();
    let request = only(&server);
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("POST", "/v1/sandboxes/s/exec")
    );
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(
        body_json(&request),
        json!({"cmd": ["printf", "%s", "a b\n\"ä\u{1}"], "workdir": "/workspace",
            "timeoutSeconds": 30})
    );
    assert_eq!((out.exit_code(), &*out.stdout()), (0, "hi\n"));
    assert_eq!(out.duration(), Duration::from_millis(5));
}

#[test]
fn exec_sends_workdir_env_and_timeout() {
    let server = Scripted::always(200, EXEC_OK);
    let command = Command::shell("echo $A")
        .workdir("src/a b")
        .env("A", "1=2")
        .env("B", "")
        // A fraction of a second must not become zero.
        .timeout(Duration::from_millis(200));
    sandbox(&server).run(command).unwrap();
    assert_eq!(
        body_json(&only(&server)),
        json!({"cmd": ["/bin/sh", "-c", "echo $A"], "workdir": "/workspace/src/a b",
            "env": {"A": "1=2", "B": ""}, "timeoutSeconds": 1})
    );
}

#[test]
fn exec_keeps_an_absolute_workdir() {
    let server = Scripted::always(200, EXEC_OK);
    let command = Command::new("ls")
        .workdir("/tmp")
        .timeout(Duration::from_millis(1200));
    sandbox(&server).run(command).unwrap();
    let body = body_json(&only(&server));
    assert_eq!(body["workdir"], "/tmp");
    assert_eq!(body["timeoutSeconds"], 2);
}

#[test]
fn upload_is_a_post_of_a_gzip_archive() {
    let server = Scripted::always(200, "");
    let files = Files::new().add("dir/f.txt", "some text");
    sandbox(&server)
        .upload(files, "/workspace/a b&c=d/ä?#%")
        .unwrap();
    let request = only(&server);
    assert_eq!(request.method, "POST");
    assert_eq!(
        request.path,
        "/v1/sandboxes/s/files/upload?dest=/workspace/a%20b%26c%3Dd/%C3%A4%3F%23%25"
    );
    assert_eq!(request.header("content-type"), Some("application/x-tar"));
    assert_eq!(
        request.header("content-length"),
        Some(request.body.len().to_string().as_str())
    );
    assert_eq!(request.header("transfer-encoding"), None);
    // The archive is compressed, not the transfer.
    assert_eq!(request.header("content-encoding"), None);
    assert_eq!(request.body[..2], [0x1f, 0x8b]);

    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*request.body));
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), text));
        }
    }
    assert_eq!(found, [("dir/f.txt".to_owned(), "some text".to_owned())]);
}

#[test]
fn large_upload_has_a_content_length() {
    let server = Scripted::always(200, "");
    // Too large for memory, so it is sent from a temporary file.
    let bytes = noise(3 * 1024 * 1024);
    sandbox(&server).write("f", &bytes[..]).unwrap();
    let request = only(&server);
    assert_eq!(request.path, "/v1/sandboxes/s/files/upload?dest=/workspace");
    assert!(request.body.len() > bytes.len());
    assert_eq!(
        request.header("content-length"),
        Some(request.body.len().to_string().as_str())
    );
}

/// Incompressible bytes.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn download_returns_bytes_unchanged() {
    let archive = b"\x1f\x8b not really an archive".to_vec();
    let body = archive.clone();
    let server = Scripted::each_request(move |_, conn| {
        // Some servers label a tar.gz like this. The archive must not be decompressed.
        conn.respond_with(
            200,
            &[
                ("Content-Type", "application/x-tar"),
                ("Content-Encoding", "gzip"),
            ],
            &body,
        );
    });
    let sandbox = sandbox(&server);
    for (src, wanted) in [
        ("/tmp/x y&z", "src=/tmp/x%20y%26z"),
        ("src", "src=/workspace/src"),
        (".", "src=/workspace"),
    ] {
        let mut got = Vec::new();
        let mut reader = sandbox.download_archive(src).unwrap();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, archive);
        let request = server.requests().pop().unwrap();
        assert_eq!(request.method, "GET");
        assert_eq!(
            request.path,
            format!("/v1/sandboxes/s/files/download?{wanted}")
        );
        assert_eq!(request.header("content-length"), None);
        // Proxies must not compress the archive again.
        assert!(
            request
                .header("accept-encoding")
                .is_none_or(|v| v.is_empty() || v == "identity"),
            "{request:?}"
        );
    }
}

#[test]
fn delete_returns_whether_the_sandbox_existed() {
    for (status, there_was) in [(204, true), (200, true), (404, false)] {
        let server = Scripted::always(status, "");
        assert_eq!(sandbox(&server).delete().unwrap(), there_was, "{status}");
        let request = only(&server);
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("DELETE", "/v1/sandboxes/s")
        );
        assert_eq!(request.body, b"");
    }
    let server = Scripted::always(500, "");
    let error = sandbox(&server).delete().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Status);
}

#[test]
fn session_id_is_one_encoded_path_segment() {
    let server = Scripted::each_request(|request, conn| match request.method.as_str() {
        "PUT" => conn.respond(200, CREATE_OK),
        _ => conn.respond(200, ""),
    });
    let client = Client::new(server.url()).unwrap();
    let long = "x/".repeat(150);
    for (id, wanted) in [
        ("a/b", "a%2Fb".to_owned()),
        ("a?b", "a%3Fb".to_owned()),
        ("a#b", "a%23b".to_owned()),
        ("a%2Fb", "a%252Fb".to_owned()),
        ("100%", "100%25".to_owned()),
        (" a b ", "%20a%20b%20".to_owned()),
        ("ä\u{1f600}", "%C3%A4%F0%9F%98%80".to_owned()),
        ("../..", "..%2F..".to_owned()),
        ("a\r\nX: y", "a%0D%0AX%3A%20y".to_owned()),
        ("A-z_0.9~", "A-z_0.9~".to_owned()),
        (&long, "x%2F".repeat(150)),
    ] {
        let sandbox = client.create(id, SandboxSpec::new()).unwrap();
        sandbox.touch().unwrap();
        let requests = server.requests();
        let paths: Vec<&str> = requests.iter().rev().map(|r| r.path.as_str()).collect();
        assert_eq!(paths[0], format!("/v1/sandboxes/{wanted}/touch"));
        assert_eq!(paths[1], format!("/v1/sandboxes/{wanted}"));
        assert_eq!(sandbox.id(), id);
    }
}

#[test]
fn base_url_may_have_a_prefix_and_slash() {
    let server = Scripted::always(200, "OK");
    for (suffix, prefix) in [("", ""), ("/", ""), ("/nox", "/nox"), ("/a/b//", "/a/b")] {
        let client = Client::new(format!("{}{suffix}", server.url())).unwrap();
        client.health().unwrap();
        client.sandbox("s").unwrap().touch().unwrap();
        let requests = server.requests();
        let paths: Vec<&str> = requests.iter().rev().map(|r| r.path.as_str()).collect();
        assert_eq!(paths[1], format!("{prefix}/healthz"));
        assert_eq!(paths[0], format!("{prefix}/v1/sandboxes/s/touch"));
    }
}

#[test]
fn every_call_sends_user_agent_token_and_headers() {
    let server = Scripted::each_request(|request, conn| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "PUT" => conn.respond(200, CREATE_OK),
            _ if path.ends_with("/exec") => conn.respond(200, EXEC_OK),
            _ => conn.respond(200, "OK"),
        }
    });
    let client = Client::builder(server.url())
        .token("t0ken")
        .header("X-Team", "blue")
        .header("X-Team", "green")
        .build()
        .unwrap();
    client.health().unwrap();
    let sandbox = client.create("s", SandboxSpec::new()).unwrap();
    sandbox.touch().unwrap();
    sandbox.run(["true"]).unwrap();
    sandbox.write("f", "x").unwrap();
    drop(sandbox.download_archive("/workspace").unwrap());
    sandbox.delete().unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 7);
    for request in requests {
        let all = |name: &str| -> Vec<&str> {
            let same = request.headers.iter().filter(|h| h.0 == name);
            same.map(|h| h.1.as_str()).collect()
        };
        let agent = concat!("noxrunner/", env!("CARGO_PKG_VERSION"));
        assert_eq!(all("user-agent"), [agent], "{}", request.path);
        assert_eq!(all("authorization"), ["Bearer t0ken"], "{}", request.path);
        assert_eq!(all("x-team"), ["blue", "green"], "{}", request.path);
    }
}

#[test]
fn no_authorization_header_without_token() {
    let server = Scripted::always(200, "OK");
    let builder = Client::builder(server.url()).user_agent("mine/1");
    builder.build().unwrap().health().unwrap();
    let request = only(&server);
    assert_eq!(request.header("authorization"), None);
    assert_eq!(request.header("user-agent"), Some("mine/1"));
}

#[test]
fn invalid_header_error_hides_the_value() {
    for (name, value) in [
        ("X Team", "s3cret"),
        ("X-Team", "s3cret\r\nEvil: 1"),
        // The syntax that curl accepts.
        ("X-Team: s3cret", ""),
        ("Content-Length", "s3cret"),
    ] {
        let builder = Client::builder("http://127.0.0.1:1").header(name, value);
        assert!(!format!("{builder:?}").contains("s3cret"), "{builder:?}");
        let name = name.split([' ', ':']).next().unwrap();
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(format!("{error:#}").contains(name), "{error}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
    for (token, why) in [
        (" \n", "token is empty"),
        ("s3cret\nx", "the token has an invalid character"),
    ] {
        let builder = Client::builder("http://127.0.0.1:1").token(token);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(format!("{error:#}").contains(why), "{error}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
}

#[test]
fn invalid_settings_are_refused_at_build() {
    let refused = |builder: ClientBuilder, why: &str| {
        assert!(!format!("{builder:?}").contains("s3cret"), "{builder:?}");
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(format!("{error:#}").contains(why), "{error}");
        assert!(!format!("{error:#}").contains("s3cret"), "{error}");
    };
    let good = || Client::builder("http://127.0.0.1:1");
    refused(good().user_agent("mine/1\n"), "user agent");
    refused(
        good().token("a").header("Authorization", "b"),
        "both a token and a header",
    );
    refused(good().header("X", "x".repeat(40_000)), "the limit is");
    refused(good().timeout(Duration::ZERO), "the timeout is zero");
    refused(good().connect_timeout(Duration::MAX), "365 days");
    refused(
        good().transfer_timeout(Duration::ZERO),
        "transfer timeout is zero",
    );
    refused(good().proxy("socks5://me:s3cret@h:1"), "not socks5");
    refused(Client::builder("http://h/<team>"), "base URL");
    refused(
        Client::builder("http://h?key=s3cret"),
        "a query or a fragment",
    );
    refused(Client::builder("http://me:s3cret@h"), "credentials");
}

#[test]
fn direct_backend_calls_validate_arguments() {
    use noxrunner::{Backend, Command, SandboxSpec, SessionId};
    let server = Scripted::always(200, "");
    let client = once(&server).build().unwrap();
    let backend = client.backend();
    let id = SessionId::new("a").unwrap();
    let absurd = Command::new("true").timeout(Duration::MAX);
    assert_eq!(
        backend.exec(&id, &absurd).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let absurd = SandboxSpec::new().ttl(Duration::MAX);
    assert_eq!(
        backend.create(&id, &absurd).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(server.requests().is_empty());
}
