//! Live output as server-sent events.

use std::io;

use noxrunner::Stream;

use super::*;

const EVENTS: &[(&str, &str)] = &[("Content-Type", "text/event-stream")];

/// A server that answers every exec with these events, and closes the connection after them if they
/// have no length.
fn serving(events: &'static str) -> Scripted {
    Scripted::each_request(move |_, conn| conn.respond_with(200, EVENTS, events))
}

/// Runs a command. Returns the result and what the sink got.
fn exec_live(server: &Scripted) -> (noxrunner::Result<noxrunner::Output>, Vec<(Stream, String)>) {
    let mut seen = Vec::new();
    let result = sandbox(server).exec_live(["true"], |chunk| {
        seen.push((chunk.stream(), chunk.text().into_owned()));
        Ok(())
    });
    (result, seen)
}

#[test]
fn live_exec_asks_for_events_and_reads_them() {
    let server = serving(
        "event: stdout\ndata: b25l\n\n: quiet\n\nevent: stderr\ndata: dHdv\n\n\
         event: exit\ndata: {\"exitCode\":3,\"durationMs\":7,\"timedOut\":false,\"truncated\":false}\n\n",
    );
    let (result, seen) = exec_live(&server);
    let out = result.unwrap();
    assert_eq!((out.exit_code(), out.duration().as_millis()), (3, 7));
    assert_eq!((&*out.stdout(), &*out.stderr()), ("one", "two"));
    let expected = [
        (Stream::Stdout, "one".to_owned()),
        (Stream::Stderr, "two".to_owned()),
    ];
    assert_eq!(seen, expected);
    let request = only(&server);
    assert_eq!(
        request.header("accept"),
        Some("text/event-stream, application/json;q=0.5")
    );
    assert_eq!(body_json(&request)["cmd"], json!(["true"]));
}

#[test]
fn json_response_becomes_one_chunk_per_stream() {
    let long = "x".repeat(1_000_000);
    let body = json!({"exitCode": 0, "stdout": long, "stderr": "e", "durationMs": 1}).to_string();
    let server = Scripted::always(200, body);
    let (result, seen) = exec_live(&server);
    let out = result.unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        (seen[0].1.len(), &seen[1]),
        (1_000_000, &(Stream::Stderr, "e".to_owned()))
    );
    // As long as the usual cap of 1 MB, so the server has cut it.
    assert!(out.truncated() && out.lost_output());
}

#[test]
fn connection_that_breaks_before_exit_is_an_unknown_outcome() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
    let events = "event: stdout\ndata: b25l\n\n";
    for (framing, events) in [
        // Without framing, the end of the connection is the end of the response.
        ("", events.to_owned()),
        (
            "",
            format!("{events}event: exit\ndata: {{\"exitCode\":0}}\n"),
        ),
        ("Content-Length: 1000\r\n", events.to_owned()),
        (
            "Transfer-Encoding: chunked\r\n",
            format!("1b\r\n{events}\r\n"),
        ),
    ] {
        let response = format!("{head}{framing}\r\n{events}");
        let server = Scripted::start(move |mut conn| {
            let request = conn.read_request().unwrap();
            conn.record(&request);
            conn.write(&response);
        });
        let (result, seen) = exec_live(&server);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:#}");
        assert!(
            error.to_string().ends_with("the command may have run"),
            "{error}"
        );
        assert_eq!(seen, [(Stream::Stdout, "one".to_owned())]);
    }
}

#[test]
fn error_event_is_the_error_of_the_call() {
    for (event, kind) in [
        (r#"{"error":"gone","status":404}"#, ErrorKind::NotFound),
        (
            r#"{"error":"lost","status":502}"#,
            ErrorKind::OutcomeUnknown,
        ),
        (r#"{"error":"bad"}"#, ErrorKind::Status),
    ] {
        let events = format!("event: stdout\ndata: b25l\n\nevent: error\ndata: {event}\n\n");
        let server = Scripted::each_request(move |_, conn| conn.respond_with(200, EVENTS, &events));
        let (result, seen) = exec_live(&server);
        let error = result.unwrap_err();
        assert_eq!((error.kind(), seen.len()), (kind, 1), "{error:#}");
        assert_eq!(error.is_sandbox_gone(), kind == ErrorKind::NotFound);
        let text = &event[10..13];
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn error_event_of_a_gateway_keeps_code_and_request_id() {
    let server = serving(concat!(
        "event: error\n",
        r#"data: {"error":"late","code":"EXEC_TIMEOUT","status":504,"requestId":"req-7"}"#,
        "\n\n"
    ));
    let error = exec_live(&server).0.unwrap_err();
    let seen = (error.kind(), error.code(), error.request_id());
    let expected = (ErrorKind::Timeout, Some("EXEC_TIMEOUT"), Some("req-7"));
    assert_eq!(seen, expected, "{error:#}");
}

#[test]
fn invalid_events_are_a_protocol_error() {
    for events in ["event: stdout\ndata: *\n\n", "event: exit\ndata: []\n\n"] {
        let error = exec_live(&serving(events)).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error:#}");
    }
}

#[test]
fn refusal_of_a_live_exec_is_an_ordinary_error() {
    let server = Scripted::always(404, r#"{"error":"no such sandbox"}"#);
    let error = exec_live(&server).0.unwrap_err();
    assert!(error.is_not_found() && error.is_sandbox_gone(), "{error:#}");
    let server = Scripted::sequence(vec![(429, ""), (200, r#"{"exitCode":5}"#)]);
    let client = Client::new(server.url()).unwrap();
    let out = client.sandbox("s").unwrap().exec_live(["true"], |_| Ok(()));
    assert_eq!(out.unwrap().exit_code(), 5);
}

#[test]
fn connection_is_reused_after_events() {
    let server = serving("event: exit\ndata: {\"exitCode\":0}\n\n");
    let sandbox = sandbox(&server);
    for _ in 0..3 {
        assert!(sandbox.exec_live(["true"], |_| Ok(())).unwrap().success());
    }
    assert_eq!((server.requests().len(), server.connections()), (3, 1));
}

#[test]
fn failing_sink_closes_the_connection() {
    let server = Scripted::start(|mut conn| {
        conn.read_request().unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        conn.write(format!("{head}event: stdout\ndata: b25l\n\n"));
        conn.stay_silent();
    });
    let result = sandbox(&server).exec_live(["true"], |_| Err(io::Error::other("enough")));
    assert!(format!("{:#}", result.unwrap_err()).ends_with("enough"));
    server.wait_for_closes(1);
}

#[test]
fn time_in_the_sink_extends_the_deadline() {
    let server = Scripted::start(|mut conn| {
        conn.read_request().unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        conn.write(format!("{head}event: stdout\ndata: b25l\n\n"));
        // Sent after the client's deadline of 1 s and 10 s of grace.
        std::thread::sleep(Duration::from_secs(12));
        conn.write("event: exit\ndata: {\"exitCode\":4}\n\n");
    });
    let command = Command::new("true").timeout(Duration::from_secs(1));
    let out = sandbox(&server).exec_live(command, |_| {
        std::thread::sleep(Duration::from_secs(11));
        Ok(())
    });
    assert_eq!(out.unwrap().exit_code(), 4);
}

#[test]
fn exec_with_a_long_timeout_uses_events() {
    let exit = "event: exit\ndata: {\"exitCode\":0,\"truncated\":false}\n\n";
    let stdout = "event: stdout\ndata: eHh4\n\n".repeat(400_000);
    let events = format!("event: stderr\ndata: /w==\n\n{stdout}{exit}");
    let server = Scripted::each_request(move |request, conn| match request.header("accept") {
        Some(_) => conn.respond_with(200, EVENTS, &events),
        None => conn.respond(200, EXEC_OK),
    });
    let sandbox = sandbox(&server);
    let exec = |seconds| {
        let command = Command::new("true").timeout(Duration::from_secs(seconds));
        sandbox.exec(command).unwrap()
    };
    let _ = exec(50);
    let out = exec(51);
    assert_eq!(out.stdout_bytes().len(), 1024 * 1024);
    assert!(out.truncated() && out.lost_output());
    assert_eq!(out.stderr_bytes(), b"\xff");
    let requests = server.requests();
    let accepts = requests.iter().map(|request| request.header("accept"));
    let expected = [None, Some("text/event-stream, application/json;q=0.5")];
    assert!(accepts.eq(expected));
}
