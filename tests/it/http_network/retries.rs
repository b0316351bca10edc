//! Which calls are retried, and when.

use super::*;

/// Ways in which a server can break off its response.
const BREAKERS: [(&str, Breaker); 6] = [
    ("reset before the head", |conn| conn.reset()),
    ("reset in the head", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-");
        thread::sleep(Duration::from_millis(20));
        conn.reset();
    }),
    ("reset in the body", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"exitCode\":0,");
        thread::sleep(Duration::from_millis(20));
        conn.reset();
    }),
    ("closed before the head", drop),
    ("closed in the head", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-");
    }),
    ("closed in the body", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"exitCode\":0,");
    }),
];

/// A server that reads each request and then breaks off its response.
fn breaking(breaker: Breaker) -> Scripted {
    Scripted::start(move |mut conn| {
        // The connection that ends the server carries no request.
        if conn.read_request().is_some() {
            breaker(conn);
        }
    })
}

#[test]
fn exec_is_not_retried_after_broken_response() {
    for (what, breaker) in BREAKERS {
        let server = breaking(breaker);
        let error = fails_soon(|| sandbox(builder(&server)).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 1, "{what}");
    }
}

#[test]
fn idempotent_calls_are_retried_after_broken_response() {
    at_once(BREAKERS, |(what, breaker)| {
        let server = breaking(breaker);
        let client = builder(&server).build().unwrap();
        let error = fails_soon(|| client.health());
        assert_eq!(error.kind(), ErrorKind::Connect, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = fails_soon(|| sandbox(builder(&server)).touch());
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = fails_soon(|| sandbox(builder(&server)).write("f", "x"));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = fails_soon(|| sandbox(builder(&server).retry(Retry::none())).touch());
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
fn upload_is_retried_if_its_body_can_be_read_again() {
    use std::io::Cursor;

    use noxrunner::{Backend, SessionId, Upload};
    let id = SessionId::new("a").unwrap();
    for (is_replayable, attempts) in [(false, 1), (true, 3)] {
        let server = breaking(drop);
        let client = builder(&server).build().unwrap();
        let mut archive = Cursor::new(vec![b'x'; 1000]);
        let upload = if is_replayable {
            Upload::from_seekable(&mut archive).unwrap()
        } else {
            Upload::from_reader(&mut archive, Some(1000))
        };
        let error = fails_soon(|| client.backend().upload(&id, "/workspace", upload));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        let requests = server.requests();
        assert_eq!(requests.len(), attempts);
        assert!(requests.iter().all(|request| request.body.len() == 1000));
    }
}

#[test]
fn transfer_is_not_retried_after_a_pause_as_long_as_its_timeout() {
    let server = breaking(drop);
    // The first pause is longer.
    let builder = builder(&server).timeout(Duration::from_millis(40));
    fails_soon(|| sandbox(builder).write("f", "x"));
    assert!(server.connections() <= 1);
}

#[test]
fn retry_after_reset_succeeds() {
    let seen = AtomicUsize::new(0);
    let server = Scripted::start(move |mut conn| {
        while let Some(request) = conn.read_request() {
            if seen.fetch_add(1, Ordering::SeqCst) < 2 {
                return conn.reset();
            }
            conn.respond(200, request.body);
        }
    });
    let sandbox = sandbox(builder(&server));
    sandbox.write("f", noise(100_000)).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    // The retry sends the archive from its start.
    assert!(requests.iter().all(|r| r.body == requests[0].body));
    assert!(requests[0].body.len() > 100_000);
}

/// The number of requests that each call makes for a status.
#[test]
fn retried_statuses_depend_on_the_operation() {
    for (status, touches, execs) in [
        (503, 2, 1),
        (429, 2, 2),
        (502, 2, 1),
        (504, 2, 1),
        (500, 1, 1),
        (400, 1, 1),
        (404, 1, 1),
    ] {
        let server = Scripted::sequence(vec![(status, "not now"), (200, EXEC_OK)]);
        let result = sandbox(builder(&server)).touch();
        assert_eq!(server.requests().len(), touches, "touch {status}");
        assert_eq!(result.is_ok(), touches == 2, "touch {status}");

        let server = Scripted::sequence(vec![(status, "not now"), (200, EXEC_OK)]);
        let result = sandbox(builder(&server)).exec(["true"]);
        assert_eq!(server.requests().len(), execs, "exec {status}");
        assert_eq!(result.is_ok(), execs == 2, "exec {status}");
        // The response was read to its end before the retry.
        assert_eq!(server.connections(), 1, "exec {status}");

        let server = Scripted::sequence(vec![(status, "not now"), (200, EXEC_OK)]);
        let error = fails_soon(|| sandbox(builder(&server).retry(Retry::none())).touch());
        assert_eq!(error.status(), Some(status));
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

/// Touches a sandbox on a server that gives this answer, and then no longer exists.
fn touch_on_a_server_that_ends(answer: &str) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(listener);
            // A process that another test starts may have the socket for a moment.
            wait_for("the listener is closed", || {
                TcpStream::connect(address).is_err()
            });
            let head = BufReader::new(&stream).lines();
            assert!(head.map_while(Result::ok).any(|line| line.is_empty()));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        fails_soon(|| sandbox(Client::builder(url)).touch())
    })
}

#[test]
fn outcome_is_unknown_if_an_earlier_attempt_may_have_had_an_effect() {
    let own_error = r#"{"error":"not ready"}"#;
    for (status, headers, body, kind) in [
        ("502 Bad Gateway", "", "", ErrorKind::OutcomeUnknown),
        ("504 Gateway Timeout", "", "", ErrorKind::OutcomeUnknown),
        ("503 Unavailable", "", "<html>", ErrorKind::OutcomeUnknown),
        ("503 Unavailable", "", own_error, ErrorKind::Connect),
        (
            "503 Unavailable",
            "Retry-After: 0\r\n",
            "",
            ErrorKind::Connect,
        ),
        ("429 Too Many Requests", "", "", ErrorKind::Connect),
    ] {
        let length = body.len();
        let error = touch_on_a_server_that_ends(&format!(
            "HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(error.kind(), kind, "{status} {body}: {error}");
        assert!(error.to_string().contains("cannot connect"), "{error}");
    }
    let error = touch_on_a_server_that_ends("");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains("cannot connect"), "{error}");
}

#[test]
fn exec_is_retried_after_the_servers_own_503_only() {
    let calls = |headers: &'static [(&str, &str)], body: &'static str| {
        let seen = AtomicUsize::new(0);
        let server =
            Scripted::each_request(move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) {
                0 => conn.respond_with(503, headers, body),
                _ => conn.respond(200, EXEC_OK),
            });
        let result = sandbox(builder(&server)).exec(["true"]);
        (server.requests().len(), result.map_err(|e| e.to_string()))
    };
    for (headers, body) in [
        (&[][..], r#"{"error":"not ready"}"#),
        (
            &[],
            r#"{"error":{"code":"NOT_READY","message":"starting"}}"#,
        ),
        (&[("Retry-After", "0")], "busy"),
    ] {
        let (requests, result) = calls(headers, body);
        assert!(requests == 2 && result.is_ok(), "{body}: {result:?}");
    }
    for body in [
        "",
        "no healthy upstream",
        r#"{"message":"unavailable"}"#,
        "<html>503</html>",
    ] {
        let (requests, result) = calls(&[], body);
        let error = result.unwrap_err();
        assert!(requests == 1 && error.contains("may have run"), "{error}");
    }
}

#[test]
fn exhausted_retries_return_the_last_response() {
    let server = Scripted::sequence(vec![
        (503, "one"),
        (503, "two"),
        (503, "three"),
        (200, "OK"),
    ]);
    let error = fails_soon(|| builder(&server).build().unwrap().health());
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(format!("{error:#}").contains("three"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn retry_after_header_is_respected() {
    let server = Scripted::each_request({
        let seen = AtomicUsize::new(0);
        move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) {
            0 => conn.respond_with(429, &[("Retry-After", "1")], ""),
            _ => conn.respond(200, EXEC_OK),
        }
    });
    let start = Instant::now();
    sandbox(builder(&server)).run(["true"]).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn long_retry_after_is_an_immediate_error() {
    let server = Scripted::each_request(|_, conn| {
        conn.respond_with(429, &[("Retry-After", "60")], "slow down");
    });
    let sandbox = sandbox(builder(&server));
    for error in [
        fails_soon(|| sandbox.touch()),
        fails_soon(|| sandbox.exec(["true"])),
    ] {
        assert_eq!(error.kind(), ErrorKind::Status, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    }
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn retry_after_past_deadline_is_an_immediate_error() {
    let server = Scripted::each_request(|_, conn| {
        conn.respond_with(503, &[("Retry-After", "60")], "starting");
    });
    let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(10)));
    let command = Command::new("true").timeout(Duration::from_secs(10));
    for error in [
        fails_soon(|| sandbox.touch()),
        fails_soon(|| sandbox.exec(command)),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    }
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn cancel_ends_retry_pause() {
    let server = Scripted::each_request(|_, conn| {
        conn.respond_with(503, &[("Retry-After", "8")], "starting");
    });
    let error = cancelled_exec(&sandbox(builder(&server)), || server.requests().len() == 1);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(format!("{error:#}").contains("cancelled"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn stalled_refusal_ends_at_deadline() {
    let server = Scripted::each_request(|_, conn| {
        conn.write("HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 10\r\n\r\n");
    });
    let started = Instant::now();
    let call = sandbox(builder(&server).timeout(Duration::from_secs(4)));
    let error = call.touch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn download_does_not_wait_for_long_retry_after() {
    let server = Scripted::each_request(|_, conn| {
        conn.respond_with(503, &[("Retry-After", "60")], "");
    });
    let started = Instant::now();
    let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(10)));
    let error = sandbox.download_archive("/workspace").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(started.elapsed() < SOON);
}
