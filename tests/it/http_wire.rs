//! What goes over the wire.

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

/// A sandbox on this server whose calls are sent once, so that every answer is seen as it is.
fn sandbox(server: &Scripted) -> Sandbox {
    once(server).build().unwrap().sandbox("s").unwrap()
}

fn once(server: &Scripted) -> ClientBuilder {
    Client::builder(server.url()).retry(Retry::none())
}

/// The one request that was made.
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

/// Keeps the records of those threads that asked for it; other tests run at the same time.
struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        RECORDS.try_with(|r| r.borrow().is_some()).unwrap_or(false)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Formatted before the cell is borrowed: an argument's own words may be logged too.
        let record = Record {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
        };
        RECORDS.with_borrow_mut(|all| all.as_mut().unwrap().push(record));
    }

    fn flush(&self) {}
}

/// What `call` logs on this thread, at every level and by every crate.
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
fn health_is_a_get_without_a_body() {
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
fn touch_is_a_post_with_an_empty_body() {
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
fn touch_takes_any_text_for_an_answer() {
    for (status, body) in [(200, ""), (200, "touched"), (200, "{\"a\":1}"), (204, "")] {
        let server = Scripted::each_request(move |_, conn| match status {
            // It has no length, and must not be waited for.
            204 => conn.write("HTTP/1.1 204 No Content\r\n\r\n"),
            _ => conn.answer(status, body),
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
fn create_is_a_put_with_all_that_was_set() {
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
fn create_leaves_out_what_was_not_set() {
    let server = Scripted::always(200, CREATE_OK);
    let client = Client::new(server.url()).unwrap();
    client.create("demo", SandboxSpec::new()).unwrap();
    // Not null: absent.
    assert_eq!(body_json(&only(&server)), json!({"ttlSeconds": 900}));
}

#[test]
fn a_time_to_live_is_rounded_up_to_whole_seconds() {
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
fn exec_sends_the_arguments_and_the_defaults() {
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
fn exec_sends_workdir_environment_and_timeout() {
    let server = Scripted::always(200, EXEC_OK);
    let command = Command::shell("echo $A")
        .workdir("src/a b")
        .env("A", "1=2")
        .env("B", "")
        // Less than a second must not become none.
        .timeout(Duration::from_millis(200));
    sandbox(&server).exec(command).unwrap();
    assert_eq!(
        body_json(&only(&server)),
        json!({"cmd": ["sh", "-c", "echo $A"], "workdir": "/workspace/src/a b",
            "env": {"A": "1=2", "B": ""}, "timeoutSeconds": 1})
    );
}

#[test]
fn exec_keeps_an_absolute_workdir() {
    let server = Scripted::always(200, EXEC_OK);
    let command = Command::new("ls")
        .workdir("/tmp")
        .timeout(Duration::from_millis(1200));
    sandbox(&server).exec(command).unwrap();
    let body = body_json(&only(&server));
    assert_eq!(body["workdir"], "/tmp");
    assert_eq!(body["timeoutSeconds"], 2);
}

#[test]
fn upload_posts_a_gzip_archive_with_its_length() {
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
    // It is the archive that is compressed, not the transfer of it.
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
fn a_large_upload_has_its_length_too() {
    let server = Scripted::always(200, "");
    // Larger than what is kept in memory, so it comes out of a file.
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

/// Bytes that no compression makes smaller.
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
fn download_gets_the_bytes_as_they_are() {
    let archive = b"\x1f\x8b not really an archive".to_vec();
    let body = archive.clone();
    let server = Scripted::each_request(move |_, conn| {
        // The label some servers put on a tar.gz: it is the archive's, and stays.
        conn.answer_with(
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
        // Nobody is to compress the archive once more on the way.
        assert!(
            request
                .header("accept-encoding")
                .is_none_or(|v| v.is_empty() || v == "identity"),
            "{request:?}"
        );
    }
}

#[test]
fn delete_says_whether_there_was_a_sandbox() {
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
fn any_id_is_one_percent_encoded_segment() {
    let server = Scripted::each_request(|request, conn| match request.method.as_str() {
        "PUT" => conn.answer(200, CREATE_OK),
        _ => conn.answer(200, ""),
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
fn a_base_url_may_have_a_prefix_and_a_slash() {
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
fn every_call_carries_user_agent_token_and_headers() {
    let server = Scripted::each_request(|request, conn| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "PUT" => conn.answer(200, CREATE_OK),
            _ if path.ends_with("/exec") => conn.answer(200, EXEC_OK),
            _ => conn.answer(200, "OK"),
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
    sandbox.exec(["true"]).unwrap();
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
fn without_a_token_there_is_no_authorization() {
    let server = Scripted::always(200, "OK");
    let builder = Client::builder(server.url()).user_agent("mine/1");
    builder.build().unwrap().health().unwrap();
    let request = only(&server);
    assert_eq!(request.header("authorization"), None);
    assert_eq!(request.header("user-agent"), Some("mine/1"));
}

#[test]
fn headers_that_can_not_be_are_refused_by_name_and_not_by_value() {
    for (name, value) in [("X Team", "s3cret"), ("X-Team", "s3cret\r\nEvil: 1")] {
        let builder = Client::builder("http://127.0.0.1:1").header(name, value);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(name), "{error}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
    for (token, why) in [("", "empty"), ("s3cret\n", "authorization")] {
        let builder = Client::builder("http://127.0.0.1:1").token(token);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(why), "{error}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
}

/// Everything that an error says about itself, causes included.
fn all_words(error: &Error) -> String {
    let mut words = format!("{error}\n{error:?}\n{error:#?}\n");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(&format!("{error}\n{error:?}\n"));
        cause = error.source();
    }
    words
}

#[test]
fn secrets_are_never_shown_or_logged() {
    const SECRETS: [&str; 3] = ["t0ken-s3cret", "header-s3cret", "proxy-s3cret"];
    let refusing = Scripted::always(401, r#"{"error":"who are you?"}"#);
    let accepting = Scripted::always(200, EXEC_OK);
    // It reads the request and goes away.
    let broken = Scripted::start(|mut conn| drop(conn.read_request()));
    let proxy = Scripted::always(407, "");
    let with_secrets = |url: String| {
        Client::builder(url)
            .retry(Retry::none())
            .token(SECRETS[0])
            .header("X-Api-Key", SECRETS[1])
    };
    let unreachable = || with_secrets("http://127.0.0.1:1".to_owned());
    let builders = [
        with_secrets(refusing.url()),
        with_secrets(accepting.url()),
        with_secrets(broken.url()),
        unreachable(),
        unreachable().proxy(format!("http://me:{}@{}", SECRETS[2], proxy.address())),
        unreachable().proxy(format!("http://me:{}@127.0.0.1:1", SECRETS[2])),
    ];
    let mut words = String::new();
    let records = logged(|| {
        for builder in builders {
            words.push_str(&format!("{builder:?}\n{builder:#?}\n"));
            let backend = builder.clone().build_backend().unwrap();
            words.push_str(&format!("{backend:?}\n"));
            let client = builder.build().unwrap();
            let sandbox = client.sandbox("secrets").unwrap();
            words.push_str(&format!("{client:?} {sandbox:?}\n"));
            for result in [
                client.health(),
                sandbox.touch(),
                sandbox.exec(["true"]).map(|_| ()),
                sandbox.write("f", "x"),
            ] {
                if let Err(error) = result {
                    words.push_str(&all_words(&error));
                }
            }
        }
    });
    assert_eq!(
        refusing.requests()[0].header("authorization"),
        Some("Bearer t0ken-s3cret")
    );
    assert!(!proxy.requests().is_empty());
    assert!(words.contains("who are you?") && words.contains("X-Api-Key"));
    // The log is captured at all, and not only ours.
    assert!(!own(&records).is_empty() && own(&records).len() < records.len());
    let encoded = base64_of(b"me:proxy-s3cret");
    for secret in SECRETS.into_iter().chain([encoded.as_str()]) {
        assert!(!words.contains(secret), "{secret} in:\n{words}");
        // The traces of other crates have a test of their own.
        let told = |r: &&Record| r.level < log::Level::Trace || r.target.starts_with("noxrunner");
        for record in records.iter().filter(told) {
            assert!(!record.text.contains(secret), "{record:?}");
        }
    }
}

#[test]
fn secrets_are_not_in_the_traces_of_the_http_library_either() {
    let server = Scripted::always(200, "OK");
    let client = Client::builder(server.url())
        .token("t0ken-s3cret")
        .header("X-Api-Key", "header-s3cret")
        .build()
        .unwrap();
    let records = logged(|| client.health().unwrap());
    // A dump of bytes is one record per 16 of them, with the text at its end.
    let dumped: String = records
        .iter()
        .map(|r| match r.text.char_indices().rev().nth(15) {
            Some((at, _)) => &r.text[at..],
            None => &r.text,
        })
        .collect();
    for secret in ["t0ken-s3cret", "header-s3cret"] {
        assert!(!dumped.contains(secret), "{dumped}");
    }
}

/// As in `Proxy-Authorization: Basic`.
fn base64_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .chain([&0; 3])
            .take(3)
            .fold(0, |bits, b| bits << 8 | usize::from(*b));
        for at in 0..4 {
            text.push(match at <= group.len() {
                true => DIGITS[bits >> (18 - 6 * at) & 63].into(),
                false => '=',
            });
        }
    }
    text
}

#[test]
fn each_request_is_one_debug_record() {
    let server = Scripted::each_request(|request, conn| match request.path.as_str() {
        "/p/healthz" => conn.answer(503, ""),
        _ => conn.answer(404, ""),
    });
    let client = Client::builder(format!("{}/p/", server.url()))
        .retry(Retry::attempts(2))
        .build()
        .unwrap();
    let records = logged(|| {
        let _ = client.health();
        let _ = client.sandbox("a/b").unwrap().exec(["secret argument"]);
    });
    let own = own(&records);
    let texts: Vec<&str> = own.iter().map(|r| r.text.as_str()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(own.iter().all(|r| r.level == log::Level::Debug), "{own:?}");
    assert!(texts[0].starts_with("GET /healthz 503 "), "{texts:?}");
    assert!(texts[0].ends_with("attempt 1"), "{texts:?}");
    assert!(texts[1].starts_with("GET /healthz 503 "), "{texts:?}");
    assert!(texts[1].ends_with("attempt 2"), "{texts:?}");
    assert!(
        texts[2].starts_with("POST /v1/sandboxes/a%2Fb/exec 404 "),
        "{texts:?}"
    );
    assert!(!texts[2].contains("secret argument"), "{texts:?}");
}

#[test]
fn a_request_without_an_answer_is_one_debug_record_too() {
    let client = Client::builder("http://127.0.0.1:1")
        .retry(Retry::none())
        .build()
        .unwrap();
    let records = logged(|| drop(client.health()));
    let own = own(&records);
    assert_eq!(own.len(), 1, "{own:?}");
    let text = &own[0].text;
    assert!(text.starts_with("GET /healthz - "), "{text}");
    assert!(
        text.contains("attempt 1: cannot connect to 127.0.0.1:1"),
        "{text}"
    );
}

#[test]
fn an_answer_without_a_required_field_is_a_protocol_error_that_names_it() {
    for (body, field) in [
        (r#"{"expiresAt":"2026-01-02T12:34:56Z"}"#, "podName"),
        (r#"{"podName":"p"}"#, "expiresAt"),
        (r#"{"podName":null,"expiresAt":"x"}"#, "null"),
    ] {
        let server = Scripted::always(200, body);
        let client = Client::new(server.url()).unwrap();
        let error = client.create("s", SandboxSpec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains(field), "{error}");
        assert_eq!(error.response_body(), Some(body));
        assert_eq!(error.status(), Some(200));
    }
    let server = Scripted::always(200, r#"{"stdout":"","stderr":"","durationMs":1}"#);
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("exitCode"), "{error}");
    assert!(
        error.to_string().contains("exec in sandbox \"s\""),
        "{error}"
    );
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let body = r#"{"exitCode":3,"stdout":"o","stderr":"e","durationMs":1500,
        "new":{"deep":[1,null]},"exit_code":9}"#;
    let server = Scripted::always(200, body);
    let out = sandbox(&server).exec(["true"]).unwrap();
    assert_eq!(
        (out.exit_code(), &*out.stdout(), &*out.stderr()),
        (3, "o", "e")
    );
    assert_eq!(out.duration(), Duration::from_millis(1500));

    let server = Scripted::always(200, r#"{"podName":"p","expiresAt":"soon","zone":"eu"}"#);
    let client = Client::new(server.url()).unwrap();
    let sandbox = client.create("s", SandboxSpec::new()).unwrap();
    assert_eq!(sandbox.info().unwrap().expires_at(), "soon");
    assert_eq!(sandbox.info().unwrap().expires_at_time(), None);
}

#[test]
fn an_exec_answer_needs_no_more_than_the_exit_code() {
    let server = Scripted::always(200, r#"{"exitCode":-1}"#);
    let out = sandbox(&server).exec(["true"]).unwrap();
    assert_eq!(out.exit_code(), -1);
    assert_eq!(
        (out.stdout_bytes(), out.stderr_bytes()),
        (&b""[..], &b""[..])
    );
    assert_eq!(out.duration(), Duration::ZERO);
}

#[test]
fn json_of_another_shape_is_a_protocol_error() {
    for body in [
        "null",
        "[]",
        "[0,\"\",\"\",5]x",
        "\"done\"",
        r#"{"exitCode":"0"}"#,
        r#"{"exitCode":1.5}"#,
        r#"{"exitCode":3000000000}"#,
        r#"{"exitCode":0,"stdout":["a"]}"#,
        r#"{"exitCode":0,"durationMs":-1}"#,
        r#"{"exitCode":0} and more"#,
        "<html><body>It works!</body></html>",
        "OK",
    ] {
        let server = Scripted::always(200, body);
        let error = sandbox(&server).exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{body}: {error}");
        assert!(
            error.to_string().contains("not the JSON of NoxRunner v1"),
            "{error}"
        );
        assert_eq!(error.response_body(), Some(body));
    }
    let server = Scripted::always(200, *b"{\"exitCode\":0,\"stdout\":\"\xff\"}");
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[test]
fn an_exec_answer_that_ends_early_says_nothing_about_the_command() {
    // It has no length, so its end looks like any other.
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\n\r\n{\"exitCode\":0,\"std");
    });
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let error = once(&server)
        .build()
        .unwrap()
        .create("s", SandboxSpec::new())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[test]
fn what_the_backend_says_about_limits_goes_before_what_is_inferred() {
    let run = |extra: &str| {
        let body = format!(r#"{{"exitCode":124,"durationMs":30000{extra}}}"#);
        sandbox(&Scripted::always(200, body))
            .exec(["true"])
            .unwrap()
    };
    assert!(run("").timed_out(), "inferred");
    assert!(!run(r#","timedOut":false"#).timed_out());
    assert!(run(r#","timedOut":null"#).timed_out(), "inferred");
    assert!(!run("").truncated());
    assert!(run(r#","truncated":true"#).truncated());
    let early = r#"{"exitCode":1,"durationMs":1,"timedOut":true}"#;
    assert!(
        sandbox(&Scripted::always(200, early))
            .exec(["true"])
            .unwrap()
            .timed_out()
    );
}

#[test]
fn an_answer_in_any_framing_is_read() {
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n5;ext=1\r\n{}\r\n{:x}\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
        &EXEC_OK[..5],
        EXEC_OK.len() - 5,
        &EXEC_OK[5..]
    );
    let length = EXEC_OK.len();
    for (what, answer) in [
        ("chunked", chunked),
        ("until the end", format!("HTTP/1.1 200 OK\r\n\r\n{EXEC_OK}")),
        ("1.0", format!("HTTP/1.0 200 OK\r\n\r\n{EXEC_OK}")),
        (
            "no reason",
            format!("HTTP/1.1 200\r\ncontent-length: {length}\r\n\r\n{EXEC_OK}"),
        ),
        (
            "100 first",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{EXEC_OK}"
            ),
        ),
        (
            "close",
            format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{EXEC_OK}"
            ),
        ),
    ] {
        let server = Scripted::start(move |mut conn| {
            conn.read_request();
            conn.write(&answer);
        });
        let out = sandbox(&server).exec(["true"]);
        assert!(out.is_ok_and(|out| out.stdout() == "hi\n"), "{what}");
    }
}

#[test]
fn an_answer_without_end_is_given_up_at_the_cap() {
    const WHOLE: usize = 200 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let server = Scripted::start(move |mut conn| {
        conn.read_request();
        conn.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n"
        ));
        conn.write("{\"exitCode\":0,\"podName\":\"");
        let part = vec![b'x'; 256 << 10];
        while counter.load(Ordering::SeqCst) < WHOLE && conn.stream().write_all(&part).is_ok() {
            counter.fetch_add(part.len(), Ordering::SeqCst);
        }
    });
    let start = Instant::now();
    let client = once(&server).build().unwrap();
    let created = client.create("s", SandboxSpec::new()).map(|_| ());
    let run = client.sandbox("s").unwrap().exec(["true"]).map(|_| ());
    for error in [created.unwrap_err(), run.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(
            error.to_string().contains("larger than 16777216 bytes"),
            "{error}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    // Both, with what fits into the buffers of the sockets.
    assert!(sent.load(Ordering::SeqCst) < 100 << 20);
}

/// What touch makes of this answer.
fn touch_error(status: u16, headers: &'static [(&str, &str)], body: impl Into<Vec<u8>>) -> Error {
    let body = body.into();
    let server = Scripted::each_request(move |_, conn| conn.answer_with(status, headers, &body));
    let error = sandbox(&server).touch().unwrap_err();
    assert_eq!(server.requests().len(), 1, "{error}");
    assert_eq!(error.status(), Some(status), "{error}");
    assert!(
        error.to_string().starts_with("touch of sandbox \"s\": "),
        "{error}"
    );
    error
}

#[test]
fn statuses_have_their_kinds() {
    for (status, kind) in [
        (400, ErrorKind::Status),
        (401, ErrorKind::Unauthorized),
        (403, ErrorKind::Unauthorized),
        (404, ErrorKind::NotFound),
        (409, ErrorKind::Status),
        (413, ErrorKind::Status),
        (429, ErrorKind::Status),
        (500, ErrorKind::Status),
        (502, ErrorKind::Status),
        (503, ErrorKind::NotReady),
        (504, ErrorKind::Status),
        (599, ErrorKind::Status),
    ] {
        let error = touch_error(status, &[], "some words");
        assert_eq!(error.kind(), kind, "{status}");
        let text = format!("server answered {status}: some words");
        assert!(error.to_string().contains(&text), "{error}");
        assert_eq!(error.response_body(), Some("some words"));
        assert_eq!(error.retry_after(), None);
    }
    assert!(touch_error(401, &[], "").to_string().contains("token()"));
}

#[test]
fn the_wait_a_server_asks_for_is_told() {
    let error = touch_error(429, &[("Retry-After", "7")], "slow down");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    let error = touch_error(503, &[("Retry-After", "0")], "");
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    let error = touch_error(429, &[("Retry-After", "Fri, 02 Jan 2099 12:34:56 GMT")], "");
    assert!(error.retry_after().unwrap() > Duration::from_secs(86_400));
    assert_eq!(
        touch_error(429, &[("Retry-After", "soon")], "").retry_after(),
        None
    );
}

#[test]
fn error_bodies_of_any_sort_are_told_in_one_line() {
    let error = touch_error(500, &[], r#"{"error":"no disk left","code":7}"#);
    assert!(
        error
            .to_string()
            .ends_with("server answered 500: no disk left"),
        "{error}"
    );
    assert_eq!(
        error.response_body(),
        Some(r#"{"error":"no disk left","code":7}"#)
    );

    // An "error" that is no text: all of it is shown.
    let error = touch_error(500, &[], r#"{"error":{"code":7}}"#);
    assert!(
        error.to_string().ends_with(r#"500: {"error":{"code":7}}"#),
        "{error}"
    );

    let html = "<html>\r\n<h1>502 Bad Gateway</h1>\n</html>\n";
    let error = touch_error(502, &[("Content-Type", "text/html")], html);
    assert!(
        error.to_string().contains("<h1>502 Bad Gateway</h1>"),
        "{error}"
    );
    assert!(!error.to_string().contains(['\r', '\n']), "{error}");
    assert_eq!(error.response_body(), Some(html));

    // A terminal must not be led astray.
    let error = touch_error(500, &[], "{\"error\":\"a\\u001b[31mb\\u0007\\nc\"}");
    assert!(!error.to_string().chars().any(char::is_control), "{error}");

    let error = touch_error(500, &[], *b"caf\xe9 \xff");
    assert!(error.to_string().contains("caf\u{fffd}"), "{error}");
    assert_eq!(error.response_body(), Some("caf\u{fffd} \u{fffd}"));

    let error = touch_error(500, &[], "");
    assert!(
        error.to_string().ends_with("server answered 500"),
        "{error}"
    );
    assert_eq!(error.response_body(), Some(""));
}

#[test]
fn a_huge_error_body_is_cut() {
    let error = touch_error(500, &[], vec![b'x'; 1 << 20]);
    assert_eq!(error.response_body().unwrap().len(), MAX_ERROR_BODY);
    assert!(error.to_string().len() < 1000);
}

#[test]
fn an_error_body_that_is_cut_off_is_told_as_far_as_it_came() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nas far");
    });
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    // The server has answered, so the outcome is known.
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
    assert_eq!(error.response_body(), Some("as far"));
}

#[test]
fn redirects_are_named_and_not_followed() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let target = Scripted::each_request(move |request, conn| {
        log.lock().unwrap().push(request.path.clone());
        conn.answer(200, "OK");
    });
    let location: &'static str = format!("{}/elsewhere", target.url()).leak();
    for status in [301, 302, 303, 307, 308] {
        let server = Scripted::each_request(move |_, conn| {
            conn.answer_with(status, &[("Location", location)], "moved");
        });
        let client = once(&server).build().unwrap();
        let sandbox = client.sandbox("s").unwrap();
        for error in [
            client.health().unwrap_err(),
            sandbox.touch().unwrap_err(),
            sandbox.exec(["true"]).unwrap_err(),
            sandbox
                .download_archive("/workspace")
                .map(|_| ())
                .unwrap_err(),
            sandbox.write("f", "x").unwrap_err(),
            sandbox.delete().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Status, "{error}");
            assert_eq!(error.status(), Some(status), "{error}");
            assert!(error.to_string().contains(location), "{error}");
            assert!(error.to_string().contains("not followed"), "{error}");
        }
        assert_eq!(server.requests().len(), 6);
    }
    assert_eq!(*asked.lock().unwrap(), [""; 0]);
    // One that does not say where to.
    let error = touch_error(301, &[], "");
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
}

#[test]
fn a_server_that_does_not_say_ok_is_no_noxrunner_server() {
    for body in ["", "It works!", "ok"] {
        let server = Scripted::always(200, body);
        let error = once(&server).build().unwrap().health().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains("not OK"), "{error}");
        assert_eq!(error.response_body(), Some(body));
    }
}

#[test]
fn not_ready_is_the_only_error_that_means_not_healthy() {
    let healthy = |status: u16, body: &'static str| {
        let server = Scripted::always(status, body);
        once(&server).build().unwrap().is_healthy()
    };
    assert!(healthy(200, "status: OK\n").unwrap());
    assert!(!healthy(503, "starting").unwrap());
    assert_eq!(healthy(500, "OK").unwrap_err().kind(), ErrorKind::Status);
    assert_eq!(
        healthy(401, "OK").unwrap_err().kind(),
        ErrorKind::Unauthorized
    );
    assert_eq!(healthy(200, "no").unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn an_endless_head_is_refused() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\n");
        let line = format!("X-More: {}\r\n", "x".repeat(1000));
        for _ in 0..10_000 {
            if conn.stream().write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    });
    let sandbox = sandbox(&server);
    let error = sandbox.touch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let error = sandbox.exec(["true"]).unwrap_err();
    // The command may have run, whatever the answer was.
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

#[test]
fn a_server_of_another_protocol_is_named() {
    let server = Scripted::start(|mut conn| {
        conn.write("220 mail.example.com ESMTP\r\n");
        conn.read_request();
    });
    let error = sandbox(&server).touch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("not an HTTP answer"), "{error}");
}
