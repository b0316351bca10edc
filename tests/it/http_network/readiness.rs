//! `wait_until_ready`.

use super::*;

#[test]
fn wait_until_ready_retries_until_ready() {
    const READY: &str = r#"{"exitCode":0,"stdout":"ready\n","stderr":"","durationMs":1}"#;
    let server = Scripted::sequence(vec![
        (503, "starting"),
        (404, "no pod yet"),
        (
            200,
            r#"{"exitCode":1,"stdout":"","stderr":"","durationMs":1}"#,
        ),
        (500, "no container"),
        (200, READY),
    ]);
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    sandbox
        .wait_until_ready(Duration::from_secs(20), None)
        .unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    for request in requests {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["cmd"], serde_json::json!(["echo", "ready"]));
        assert!(body["timeoutSeconds"].as_u64().unwrap() <= 5);
    }
}

#[test]
fn wait_until_ready_reports_last_reason() {
    let server = Scripted::always(503, "no node has room");
    let sandbox = sandbox(builder(&server));
    let error = fails_soon(|| sandbox.wait_until_ready(Duration::from_secs(10), None));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(format!("{error:#}").contains("no node has room"), "{error}");
    assert!(
        format!("{error:#}").contains("wait for sandbox \"s\""),
        "{error}"
    );
    assert!(server.requests().len() > 2);

    let server = Scripted::always(200, r#"{"exitCode":0,"stdout":"almost"}"#);
    let sandbox = self::sandbox(builder(&server));
    let error = fails_soon(|| sandbox.wait_until_ready(Duration::from_secs(10), None));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(format!("{error:#}").contains("almost"), "{error}");
}

#[test]
fn wait_until_ready_fails_at_once_on_401() {
    let server = Scripted::always(401, "who are you?");
    let error =
        fails_soon(|| sandbox(builder(&server)).wait_until_ready(Duration::from_secs(60), None));
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn wait_until_ready_times_out_on_silent_server() {
    at_once(silent_servers(), |(what, server)| {
        let error = fails_soon(|| sandbox(builder(&server)).wait_until_ready(SHORT, None));
        assert_eq!(error.kind(), ErrorKind::NotReady, "{what}: {error}");
    });
    let error = fails_soon(|| {
        let client = Client::builder("http://127.0.0.1:1");
        sandbox(client).wait_until_ready(Duration::from_secs(10), None)
    });
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
}

#[test]
fn wait_until_ready_is_not_delayed_by_retry_after() {
    let server = Scripted::each_request(|_: &Request, conn| {
        conn.respond_with(503, &[("Retry-After", "6")], "starting");
    });
    let error =
        fails_soon(|| sandbox(builder(&server)).wait_until_ready(Duration::from_secs(1), None));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
}
