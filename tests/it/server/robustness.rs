//! Mistakes that small HTTP servers often make, one test for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::fake_backend::fake_server;
use super::{RunningServer, read_response};
use crate::support::processes::wait_for;

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n";
const UPLOAD: &str = "POST /v1/sandboxes/a/files/upload HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Type: application/x-tar\r\n";

fn server() -> RunningServer {
    RunningServer::start(fake_server().0)
}

#[test]
fn ambiguous_framing_is_refused() {
    let server = server();
    for framing in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 3,4\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x3\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: identity\r\n",
    ] {
        let response = server.send(&format!("{UPLOAD}{framing}\r\nabc{HEALTH}\r\n"));
        assert_eq!(response.status, 400, "{framing}: {}", response.head);
        assert!(
            !response.body.contains("HTTP/1.1"),
            "{framing}: {}",
            response.body
        );
    }
}

#[test]
fn content_length_with_chunked_body_is_not_two_requests() {
    let server = server();
    let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    let response = server.send(&format!("{UPLOAD}{both}\r\n0\r\n\r\n{HEALTH}\r\n"));
    assert!([200, 400].contains(&response.status), "{}", response.head);
    // The bytes after the body are not taken for another request.
    assert!(!response.body.contains("HTTP/1.1"), "{}", response.body);
}

#[test]
fn request_needs_exactly_one_host() {
    let server = server();
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n"] {
        let request = format!("GET /healthz HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        assert_eq!(server.send(&request).status, 400, "{hosts}");
    }
    let old = "GET /healthz HTTP/1.0\r\n\r\n";
    assert_eq!(server.send(old).status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = server();
    let touch = "POST /v1/sandboxes/missing/touch HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n";
    let mut stream = server.connect();
    let requests = format!("{HEALTH}\r\n{touch}{HEALTH}Connection: close\r\n\r\n");
    stream.write_all(requests.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|response| &response[..3])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[test]
fn expect_continue_over_limit_gets_413() {
    let server = RunningServer::start(fake_server().0.max_upload(1000));
    let expect = format!("{UPLOAD}Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n");
    let response = server.send(&expect);
    assert_eq!(response.status, 413);
    // An upload within the limit gets 100 Continue.
    let mut stream = server.connect();
    let expect =
        format!("{UPLOAD}Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n");
    stream.write_all(expect.as_bytes()).unwrap();
    let mut line = [0; 25];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").unwrap();
    assert_eq!(read_response(&mut stream).status, 200);
}

#[test]
fn oversized_upload_gets_413_after_sending_everything() {
    const LENGTH: usize = 200_000_000;
    let server = RunningServer::start(fake_server().0.max_upload(1_000_000));
    for chunked in [false, true] {
        let mut stream = server.connect();
        let framing = match chunked {
            true => "Transfer-Encoding: chunked\r\n".to_owned(),
            false => format!("Content-Length: {LENGTH}\r\n"),
        };
        let head = format!("{UPLOAD}{framing}Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let piece = vec![b'x'; 1 << 20];
        let mut sent = 0;
        while sent < LENGTH {
            let part = &piece[..piece.len().min(LENGTH - sent)];
            if chunked {
                write!(stream, "{:x}\r\n", part.len()).unwrap();
            }
            stream.write_all(part).unwrap();
            if chunked {
                stream.write_all(b"\r\n").unwrap();
            }
            sent += part.len();
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
        assert_eq!(read_response(&mut stream).status, 413, "chunked: {chunked}");
    }
}

#[test]
fn endless_request_head_is_refused() {
    let server = server();
    for start in ["GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", "GET /"] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).unwrap();
        let piece = [b'a'; 16 * 1024];
        let mut sent = 0;
        // Refused soon after the size limit of a head, plus what the socket buffers hold.
        while sent < 64 << 20 && stream.write_all(&piece).is_ok() {
            sent += piece.len();
        }
        assert!(sent < 64 << 20, "the server accepted {sent} bytes");
        assert!([0, 400, 414, 431].contains(&read_response(&mut stream).status));
    }
}

#[test]
fn slow_request_head_times_out() {
    let server = server();
    let mut stream = server.connect();
    let started = Instant::now();
    let mut head = HEALTH.bytes().cycle();
    loop {
        let byte = [head.next().unwrap()];
        if stream.write_all(&byte).is_err() {
            break;
        }
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        match stream.read(&mut [0; 512]) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "the server still waits"
        );
    }
}

#[test]
fn stalled_body_gets_408() {
    let server = RunningServer::start(fake_server().0.body_idle(Duration::from_millis(300)));
    let json = "POST /v1/sandboxes/a/exec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n";
    for (head, start) in [(UPLOAD, "x"), (json, "{\"cmd\"")] {
        let mut stream = server.connect();
        let request = format!("{head}Content-Length: 1000\r\n\r\n{start}");
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_response(&mut stream).status, 408, "{head}");
    }
}

#[test]
fn trickled_body_gets_408() {
    let server = RunningServer::start(fake_server().0.body_idle(Duration::from_secs(1)));
    let json = "POST /v1/sandboxes/a/exec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n";
    for head in [UPLOAD, json] {
        let mut stream = server.connect();
        let request = format!("{head}Content-Length: 100000\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let started = Instant::now();
        // No pause is as long as the server waits.
        while stream.write_all(b"x").is_ok() {
            assert!(started.elapsed() < Duration::from_secs(60), "{head}");
            stream
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            if stream.peek(&mut [0]).is_ok() {
                break;
            }
        }
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        assert_eq!(read_response(&mut stream).status, 408, "{head}");
    }
}

#[test]
fn connection_without_a_valid_request_is_closed() {
    let server = server();
    for start in ["", "\r\n"] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(50)))
            .unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
}

#[test]
fn stalled_download_of_a_deleted_sandbox_frees_its_call() {
    let (builder, _dir) = super::local();
    let builder = builder.tcp("127.0.0.1:0").token("secret").max_calls(2);
    let server = RunningServer::start(builder.body_idle(Duration::from_secs(600)));
    let client = server.client();
    let sandbox = client.create("a", noxrunner::SandboxSpec::new()).unwrap();
    sandbox.run(["truncate", "-s", "1T", "f"]).unwrap();
    let download = "GET /v1/sandboxes/a/files/download HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n";
    let mut stalled = server.connect();
    stalled.write_all(download.as_bytes()).unwrap();
    stalled.read_exact(&mut [0; 1000]).unwrap();
    sandbox.delete().unwrap();
    client.create("b", noxrunner::SandboxSpec::new()).unwrap();
    // Without retries: each of them needs a call of its own.
    let body = r#"{"cmd": ["sleep", "1"]}"#;
    let exec = || {
        let path = "/v1/sandboxes/b/exec";
        server.request("POST", path, super::JSON, body).status == 200
    };
    let run = || {
        std::thread::scope(|scope| {
            let two = [(); 2].map(|()| scope.spawn(exec));
            two.into_iter().all(|one| one.join().unwrap())
        })
    };
    let started = Instant::now();
    while !run() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "the call is still taken"
        );
    }
}

#[test]
fn health_does_not_wait_for_calls() {
    let (builder, fake) = fake_server();
    let server = RunningServer::start(builder.max_calls(1));
    let mut busy = server.connect();
    busy.write_all(super::exec_for(60).as_bytes()).unwrap();
    wait_for("the command runs", || {
        fake.running.load(Ordering::SeqCst) == 1
    });
    let health = server.send(&format!("{HEALTH}Connection: close\r\n\r\n"));
    assert_eq!(health.status, 200);
}

#[test]
fn truncated_upload_is_not_200() {
    let server = server();
    for framing in [
        "Content-Length: 1000\r\n\r\nx",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ] {
        let mut stream = server.connect();
        stream
            .write_all(format!("{UPLOAD}{framing}").as_bytes())
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_ne!(read_response(&mut stream).status, 200);
    }
    let broken = format!("{UPLOAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n");
    assert_ne!(server.send(&broken).status, 200);
}

#[test]
fn download_to_stalled_client_is_ended() {
    let (builder, fake) = fake_server();
    let server = RunningServer::start(builder.body_idle(Duration::from_millis(300)));
    let mut stream = server.connect();
    let request = "GET /v1/sandboxes/endless/files/download HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    wait_for("the download is ended", || {
        fake.endless_ended.load(Ordering::SeqCst)
    });
}

#[test]
fn failed_download_has_no_end_chunk() {
    let server = server();
    let request = "GET /v1/sandboxes/broken/files/download HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\r\n";
    let response = server.send(request);
    assert_eq!(response.status, 200);
    assert!(response.head.contains("transfer-encoding: chunked"));
    assert!(!response.body.ends_with("0\r\n\r\n"), "{}", response.body);
}

#[test]
fn idle_connections_do_not_block_others() {
    let server = RunningServer::start(fake_server().0.max_connections(80));
    let idle: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    let request = format!("{HEALTH}Connection: close\r\n\r\n");
    let started = Instant::now();
    assert_eq!(server.send(&request).status, 200);
    println!(
        "answered after {:?} beside {} others",
        started.elapsed(),
        idle.len()
    );
}
