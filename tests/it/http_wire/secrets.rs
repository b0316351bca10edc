//! The contents of logs and errors, and the secrets that they never show.

use super::*;

/// All text of an error, including its causes.
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
fn secrets_are_not_printed_or_logged() {
    const SECRETS: [&str; 3] = ["t0ken-s3cret", "header-s3cret", "proxy-s3cret"];
    let refusing = Scripted::always(401, r#"{"error":"who are you?"}"#);
    let accepting = Scripted::always(200, EXEC_OK);
    // The server reads the request and disconnects.
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
            let backend = builder.clone().build().unwrap();
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
    // The capture works, also for records of other crates.
    assert!(!own(&records).is_empty() && own(&records).len() < records.len());
    let encoded = base64_of(b"me:proxy-s3cret");
    for secret in SECRETS.into_iter().chain([encoded.as_str()]) {
        assert!(!words.contains(secret), "{secret} in:\n{words}");
        // Traces of other crates are checked by another test.
        let told = |r: &&Record| r.level < log::Level::Trace || r.target.starts_with("noxrunner");
        for record in records.iter().filter(told) {
            assert!(!record.text.contains(secret), "{record:?}");
        }
    }
}

#[test]
fn secrets_are_not_in_http_library_traces() {
    let server = Scripted::always(200, "OK");
    let client = Client::builder(server.url())
        .token("t0ken-s3cret")
        .header("X-Api-Key", "header-s3cret")
        .build()
        .unwrap();
    let records = logged(|| client.health().unwrap());
    // A hex dump has one record per 16 bytes, with the text at its end.
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

/// Base64, as in `Proxy-Authorization: Basic`.
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
fn each_request_logs_one_debug_record() {
    let server = Scripted::each_request(|request, conn| match request.path.as_str() {
        "/p/healthz" => conn.respond(503, ""),
        _ => conn.respond(404, ""),
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
fn failed_request_logs_one_debug_record() {
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
fn command_debug_hides_environment_values() {
    let command = noxrunner::Command::from(["deploy"]).env("API_KEY", "s3cret");
    let shown = format!("{command:?}");
    assert!(
        shown.contains("API_KEY") && !shown.contains("s3cret"),
        "{shown}"
    );
}
