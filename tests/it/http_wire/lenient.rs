//! Responses of servers that deviate from the protocol.

use super::*;

#[test]
fn bad_characters_do_not_cost_the_exit_code() {
    for (stdout, expected) in [
        (&br"caf\udce9 ok"[..], "caf\u{fffd} ok"),
        (br"a\ud83d", "a\u{fffd}"),
        (br"\ud83d\ude00", "\u{1f600}"),
        (b"caf\xe9", "caf\u{fffd}"),
        (b"a\nb\x1b", "a\nb\u{1b}"),
        (br"\x1b", r"\x1b"),
    ] {
        let body = [b"{\"exitCode\":3,\"stdout\":\"", stdout, b"\"}"].concat();
        let out = sandbox(&Scripted::always(200, body))
            .exec(["true"])
            .unwrap();
        assert_eq!((out.exit_code(), &*out.stdout()), (3, expected));
    }
}

#[test]
fn unusual_types_do_not_cost_the_exit_code() {
    let run = |body: &str| {
        sandbox(&Scripted::always(200, body))
            .exec(["true"])
            .unwrap()
    };
    let out = run(
        r#"{"exitCode":1.0,"stdout":null,"stderr":null,"durationMs":1.7,
        "timedOut":"no","truncated":0,"cpuMillis":0.6,"peakMemoryBytes":1e3,"killedBy":7}"#,
    );
    assert_eq!(
        (out.exit_code(), &*out.stdout(), &*out.stderr()),
        (1, "", "")
    );
    assert_eq!(out.duration(), Duration::from_millis(2));
    assert!(!out.timed_out() && !out.truncated());
    assert_eq!(out.usage().unwrap().peak_memory(), 1000);
    assert_eq!(out.killed_by(), None);
    for duration in ["-1", "null", "\"1s\"", "NaN"] {
        let out = run(&format!(r#"{{"exitCode":-1,"durationMs":{duration}}}"#));
        assert_eq!((out.exit_code(), out.duration()), (-1, Duration::ZERO));
    }
    assert_eq!(
        run(r#"{"exitCode":0,"stdout":["a",1]}"#).stdout(),
        r#"["a",1]"#
    );
}

#[test]
fn unusual_types_do_not_cost_a_created_sandbox() {
    for (body, pod_name, expires_at) in [
        (
            r#"{"podName":null,"expiresAt":"x","ignored":null}"#,
            "",
            "x",
        ),
        (
            r#"{"podName":"p\udce9","expiresAt":1767357296.5}"#,
            "p\u{fffd}",
            "1767357296.5",
        ),
    ] {
        let server = Scripted::always(200, body);
        let client = Client::new(server.url()).unwrap();
        let sandbox = client.create("s", SandboxSpec::new()).unwrap();
        let info = sandbox.info().unwrap();
        assert_eq!((info.pod_name(), info.expires_at()), (pod_name, expires_at));
    }
}

#[test]
fn health_is_ok_in_any_spelling() {
    for body in [
        "",
        "\n",
        "OK",
        "ok",
        "Ok.",
        "status: OK\n",
        r#"{"status":"ok"}"#,
        r#"{"ok":true}"#,
    ] {
        let server = Scripted::always(200, body);
        once(&server).build().unwrap().health().unwrap();
    }
}

fn exec_error(status: u16, headers: &'static [(&str, &str)], body: &'static str) -> Error {
    let server = Scripted::each_request(move |_, conn| conn.respond_with(status, headers, body));
    sandbox(&server).exec(["true"]).unwrap_err()
}

#[test]
fn both_error_shapes_are_read() {
    let error = exec_error(500, &[], r#"{"error":"no disk left"}"#);
    assert!(
        error
            .to_string()
            .ends_with("server answered 500: no disk left")
    );
    assert_eq!((error.code(), error.request_id()), (None, None));

    let body = r#"{"error":{"code":"POD_LOST","message":"gone\ud800","requestId":"r-1","x":[]}}"#;
    let error = exec_error(500, &[("X-Request-Id", "r-2")], body);
    let text = "server answered 500 (POD_LOST): gone\u{fffd}";
    assert!(error.to_string().ends_with(text), "{error}");
    assert_eq!(
        (error.code(), error.request_id()),
        (Some("POD_LOST"), Some("r-1"))
    );
    assert_eq!(error.response_body(), Some(body));

    let error = exec_error(404, &[("x-request-ID", "r-2")], "no such sandbox");
    assert_eq!((error.code(), error.request_id()), (None, Some("r-2")));
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let error = exec_error(422, &[], r#"{"error":{"code":"BAD\u001b[2J"}}"#);
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("422 (BAD [2J)"), "{error}");
}

#[test]
fn server_timeout_of_exec_is_a_timeout() {
    let body = r#"{"error":{"code":"EXEC_TIMEOUT","message":"command timed out"}}"#;
    let error = exec_error(504, &[], body);
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_timeout() && error.code() == Some("EXEC_TIMEOUT"));
    for part in ["command timed out", "300 s", "spawn()"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // A gateway's timeout says nothing about the command.
    let error = exec_error(504, &[], "upstream timeout");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}
