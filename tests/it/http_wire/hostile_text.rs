//! Text of a server that tries to control a terminal or a log.

use super::*;

#[test]
fn error_text_is_escaped() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        let body = "{\"error\": \"no\\u001b[31m \u{9b}2J \u{202e}txt\"}";
        let head = "HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length";
        conn.write(format!("{head}: {}\r\n\r\n{body}", body.len()));
    });
    let client = Client::new(server.url()).unwrap();
    let error = client.create("a", SandboxSpec::new()).unwrap_err();
    let text = format!("{error} {error:#} {error:?}");
    assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
    assert!(text.contains(r"\u{202e}txt"), "{text}");
    // The program gets what the server sent.
    assert!(error.response_body().unwrap().contains('\u{202e}'));
}
