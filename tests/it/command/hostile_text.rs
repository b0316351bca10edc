//! Text from outside that tries to control the terminal.

use super::*;
use crate::support::scripted::Scripted;

const HOSTILE: [char; 3] = ['\u{1b}', '\u{9b}', '\u{202e}'];

/// A server whose names and errors hold escape sequences.
fn hostile_server() -> Scripted {
    Scripted::start(|mut conn| {
        let text = "x\\u001b[31m\\n✓ forged \u{9b}2J\u{202e}";
        let Some(request) = conn.read_request() else {
            return;
        };
        let (status, body) = if request.path.contains("refused") {
            ("500 Oops", format!("{{\"error\": \"{text}\"}}"))
        } else {
            let time = "2026-01-02T12:34:56Z";
            let body = format!("{{\"podName\": \"{text}\", \"expiresAt\": \"{time}\"}}");
            ("200 OK", body)
        };
        let length = body.len();
        conn.write(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ));
    })
}

#[test]
fn server_text_is_escaped() {
    let server = hostile_server();
    let user = User::new();
    for id in ["a", "refused"] {
        for flags in [&[][..], &["--json"], &["--verbose"]] {
            let fixed = ["--base-url", &server.url(), "create", id];
            let out = user.run(&[flags, &fixed].concat());
            let all = format!("{}{}", out.stdout, out.stderr);
            assert!(all.contains("2J"), "{all}");
            assert!(!all.contains(HOSTILE), "{all:?}");
            let is_forged = all.lines().any(|line| line.starts_with("✓ forged"));
            assert!(!is_forged, "{all}");
            if flags == ["--json"] && id == "a" {
                let value: Value = serde_json::from_str(&out.stdout).unwrap();
                assert!(value.to_string().contains('\u{202e}'), "{value}");
            }
        }
    }
}

#[test]
fn paths_in_the_server_log_are_escaped() {
    let user = User::new();
    let serving = serve::ServeProcess::start(&user, &["--listen", "127.0.0.1:0"]);
    // Anyone can send a path, without a token.
    let request = "GET /\u{9b}2J\u{202e}x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut stream = serving.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    let log = serving.stop();
    assert!(log.contains("2J"), "{log:?}");
    assert!(!log.contains(HOSTILE), "{log:?}");
}
