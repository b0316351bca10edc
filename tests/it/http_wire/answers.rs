//! The interpretation of responses.

use super::*;

#[test]
fn missing_field_is_a_protocol_error() {
    for (body, field) in [
        (r#"{"expiresAt":"2026-01-02T12:34:56Z"}"#, "podName"),
        (r#"{"podName":"p"}"#, "expiresAt"),
    ] {
        let server = Scripted::always(200, body);
        let client = Client::new(server.url()).unwrap();
        let error = client.create("s", SandboxSpec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(format!("{error:#}").contains(field), "{error}");
        assert_eq!(error.response_body(), Some(body));
        assert_eq!(error.status(), Some(200));
    }
    let server = Scripted::always(200, r#"{"stdout":"","stderr":"","durationMs":1}"#);
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(format!("{error:#}").contains("exitCode"), "{error}");
    assert!(
        format!("{error:#}").contains("exec in sandbox \"s\""),
        "{error}"
    );
}

#[test]
fn unknown_fields_are_ignored() {
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
fn exec_response_needs_only_the_exit_code() {
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
fn json_of_wrong_type_is_a_protocol_error() {
    for body in [
        "null",
        "[]",
        "[0,\"\",\"\",5]x",
        "\"done\"",
        r#"{"exitCode":"0"}"#,
        r#"{"exitCode":1.5}"#,
        r#"{"exitCode":3000000000}"#,
        r#"{"exitCode":null}"#,
        r#"{"exitCode":0} and more"#,
        "<html><body>It works!</body></html>",
        "OK",
    ] {
        let server = Scripted::always(200, body);
        let error = sandbox(&server).exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{body}: {error}");
        assert!(
            format!("{error:#}").contains("not the JSON of NoxRunner v1"),
            "{error}"
        );
        assert_eq!(error.response_body(), Some(body));
    }
}

#[test]
fn truncated_exec_response_is_an_unknown_outcome() {
    // Without a length, the truncated body looks complete.
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
fn explicit_flags_override_inferred_ones() {
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
fn every_response_framing_is_read() {
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
fn endless_response_ends_at_the_cap() {
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
            format!("{error:#}").contains("larger than 16777216 bytes"),
            "{error}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(30));
    // Both limits plus what the socket buffers hold.
    assert!(sent.load(Ordering::SeqCst) < 100 << 20);
}

/// The error of a touch that gets this response.
fn touch_error(status: u16, headers: &'static [(&str, &str)], body: impl Into<Vec<u8>>) -> Error {
    let body = body.into();
    let server = Scripted::each_request(move |_, conn| conn.respond_with(status, headers, &body));
    let error = sandbox(&server).touch().unwrap_err();
    assert_eq!(server.requests().len(), 1, "{error}");
    assert_eq!(error.status(), Some(status), "{error}");
    assert!(
        format!("{error:#}").starts_with("touch sandbox \"s\": "),
        "{error}"
    );
    error
}

#[test]
fn statuses_map_to_error_kinds() {
    for (status, kind) in [
        (400, ErrorKind::InvalidInput),
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
        assert!(format!("{error:#}").contains(&text), "{error}");
        assert_eq!(error.response_body(), Some("some words"));
        assert_eq!(error.retry_after(), None);
    }
    let error = touch_error(401, &[], "").to_string();
    assert!(
        error.contains("token()") && error.contains("header()"),
        "{error}"
    );
}

#[test]
fn retry_after_is_part_of_the_error() {
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
fn error_body_is_shown_on_one_line() {
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

    // If "error" has none of the known fields, the whole body is shown.
    let error = touch_error(500, &[], r#"{"error":{"code":7}}"#);
    assert!(
        format!("{error:#}").ends_with(r#"500: {"error":{"code":7}}"#),
        "{error}"
    );

    let html = "<html>\r\n<h1>502 Bad Gateway</h1>\n</html>\n";
    let error = touch_error(502, &[("Content-Type", "text/html")], html);
    assert!(
        format!("{error:#}").contains("<h1>502 Bad Gateway</h1>"),
        "{error}"
    );
    assert!(!format!("{error:#}").contains(['\r', '\n']), "{error}");
    assert_eq!(error.response_body(), Some(html));

    // Control characters must not reach a terminal.
    let error = touch_error(500, &[], "{\"error\":\"a\\u001b[31mb\\u0007\\nc\"}");
    assert!(
        !format!("{error:#}").chars().any(char::is_control),
        "{error}"
    );

    let error = touch_error(500, &[], *b"caf\xe9 \xff");
    assert!(format!("{error:#}").contains("caf\u{fffd}"), "{error}");
    assert_eq!(error.response_body(), Some("caf\u{fffd} \u{fffd}"));

    let error = touch_error(500, &[], "");
    assert!(
        format!("{error:#}").ends_with("server answered 500"),
        "{error}"
    );
    assert_eq!(error.response_body(), Some(""));
}

#[test]
fn huge_error_body_is_truncated() {
    let error = touch_error(500, &[], vec![b'x'; 1 << 20]);
    assert_eq!(error.response_body().unwrap().len(), MAX_ERROR_BODY);
    assert!(format!("{error:#}").len() < 1000);
}

#[test]
fn incomplete_error_body_is_shown() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nas far");
    });
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    // The server has responded, so the outcome is known.
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
    assert_eq!(error.response_body(), Some("as far"));
}

#[test]
fn redirect_is_an_error() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let target = Scripted::each_request(move |request, conn| {
        log.lock().unwrap().push(request.path.clone());
        conn.respond(200, "OK");
    });
    let location: &'static str = format!("{}/elsewhere", target.url()).leak();
    for status in [301, 302, 303, 307, 308] {
        let server = Scripted::each_request(move |_, conn| {
            conn.respond_with(status, &[("Location", location)], "moved");
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
            assert!(format!("{error:#}").contains(location), "{error}");
            assert!(format!("{error:#}").contains("not followed"), "{error}");
        }
        assert_eq!(server.requests().len(), 6);
    }
    assert_eq!(*asked.lock().unwrap(), [""; 0]);
    for (location, base_url) in [
        (
            "https://s.example/team/v1/sandboxes/s/touch",
            "https://s.example/team",
        ),
        (
            "https://s.example/v1/sandboxes/s/touch",
            "https://s.example",
        ),
        ("/v2/v1/sandboxes/s/touch", "/v2"),
    ] {
        let headers = vec![("Location", location)].leak();
        let error = touch_error(308, headers, "moved");
        let text = format!("{base_url} as the base URL");
        assert!(error.to_string().ends_with(&text), "{error}");
    }
    // A redirect without a Location header.
    let error = touch_error(301, &[], "");
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
}

#[test]
fn health_response_other_than_ok_is_an_error() {
    for body in [
        "It works!",
        "broken",
        "not ok",
        r#"{"ok":false}"#,
        "<html><button>OK</button></html>",
    ] {
        let server = Scripted::always(200, body);
        let error = once(&server).build().unwrap().health().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(
            format!("{error:#}").contains("unexpected health response"),
            "{error}"
        );
        assert_eq!(error.response_body(), Some(body));
    }
}

#[test]
fn is_healthy_is_false_only_for_not_ready() {
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
fn endless_response_head_is_refused() {
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
    // The command may have run despite the response.
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

#[test]
fn response_of_another_protocol_is_an_error() {
    let server = Scripted::start(|mut conn| {
        conn.write("220 mail.example.com ESMTP\r\n");
        conn.read_request();
    });
    let error = sandbox(&server).touch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(
        format!("{error:#}").contains("not an HTTP response"),
        "{error}"
    );
}

#[test]
fn error_does_not_repeat_huge_response() {
    let body = format!(r#"{{"exitCode":"{}"}}"#, "x".repeat(1 << 20));
    let server = Scripted::always(200, body);
    let error = sandbox(&server).exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(format!("{error:#}").len() < 2000 && format!("{error:?}").len() < 4000);
}

#[test]
fn malformed_chunks_are_a_protocol_error() {
    let server = Scripted::each_request(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    });
    let error = Client::new(server.url()).unwrap().health().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn exec_502_and_504_are_unknown_outcomes() {
    for status in [502, 504] {
        let server = Scripted::always(status, "bad gateway");
        let error = sandbox(&server).exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(error.status(), Some(status));
        assert_eq!(server.requests().len(), 1);
    }
}
