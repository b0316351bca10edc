//! Attacks on the memory and the connections of `noxrc serve`, in a process of its own.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::*;

const MIB: usize = 1 << 20;
const BUDGET: usize = 48 * MIB;

/// Memory of the server besides its budget.
const REST: usize = 32 * MIB;

fn start(user: &User, args: &[&str]) -> ServeProcess {
    let budget = format!("{}Mi", BUDGET / MIB);
    let fixed = [
        "--isolation=none",
        "--listen=127.0.0.1:0",
        "--no-auth",
        "--memory-budget",
        &budget,
    ];
    ServeProcess::start(user, &[&fixed, args].concat())
}

impl ServeProcess {
    /// Sends a request, and returns the response.
    fn send(&self, request: &str) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(request.as_bytes());
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        String::from_utf8_lossy(&response).into_owned()
    }

    fn health(&self) -> String {
        self.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    }

    fn create(&self, id: &str) {
        let response = self.send(&request("PUT", id, "{}"));
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    /// Asserts the highest resident memory so far.
    #[track_caller]
    fn assert_memory(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let peak: usize = line
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        println!("peak: {} MiB", peak / 1024);
        assert!(peak * 1024 < BUDGET + REST, "{peak} KiB");
    }
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} /v1/sandboxes/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn exec(script: &str) -> String {
    let command = json!({"cmd": ["/bin/sh", "-c", script]});
    request("POST", "a/exec", &command.to_string())
}

#[test]
fn unfinished_json_bodies_stay_within_the_budget() {
    let user = User::new();
    let server = start(&user, &[]);
    server.create("a");
    let mut held = Vec::new();
    for _ in 0..150 {
        let mut stream = server.connect();
        let head = request("POST", "a/exec", "").replace("Length: 0", "Length: 8000000");
        let start = format!("{head}{{\"cmd\":[\"{}", "x".repeat(2 * MIB));
        let _ = stream.write_all(start.as_bytes());
        held.push(stream);
    }
    wait_for("the server is out of memory", || {
        let refused = server.send(&request("POST", "a/exec", &"x".repeat(6 * MIB)));
        refused.starts_with("HTTP/1.1 503")
            && refused.to_lowercase().contains("retry-after: 1")
            && refused.contains("{\"error\":\"the server's memory budget is used up")
    });
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.assert_memory();
    drop(held);
    wait_for("the memory is free again", || {
        server
            .send(&exec("echo hi"))
            .contains("\"stdout\":\"hi\\n\"")
    });
}

#[test]
fn small_values_of_a_large_body_stay_within_the_budget() {
    let user = User::new();
    let server = start(&user, &[]);
    server.create("a");
    for body in [
        format!("{{\"cmd\":[\"x\"{}]}}", ",\"\"".repeat(2_500_000)),
        format!(
            "{{\"env\":{{{}\"a\":\"\"}}}}",
            "\"a\":\"\",".repeat(1_000_000)
        ),
        "[".repeat(7_000_000),
    ] {
        let response = server.send(&request("POST", "a/exec", &body));
        let status = response.get(9..12).unwrap_or_default().to_owned();
        assert!(["400", "413"].contains(&&*status), "{response}");
    }
    server.assert_memory();
}

#[test]
fn unread_answers_stay_within_the_budget() {
    let user = User::new();
    let server = start(&user, &[]);
    server.create("a");
    let mut held = Vec::new();
    for _ in 0..60 {
        // Six times as long in JSON.
        let mut stream = server.connect();
        let noisy = exec("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; : >>ran");
        stream.write_all(noisy.as_bytes()).unwrap();
        held.push(stream);
    }
    assert!(server.health().starts_with("HTTP/1.1 200"));
    // All of them are answered: complete, cut, or not run at all.
    for mut stream in held {
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let body = response.split("\r\n\r\n").nth(1).unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        match &response[9..12] {
            "503" => assert!(body["error"].as_str().unwrap().contains("memory budget")),
            "200" => {
                let length = body["stdout"].as_str().unwrap().len();
                assert!(length == 1_000_000 || body["truncated"] == true, "{length}");
            }
            status => panic!("{status}: {body}"),
        }
    }
    server.assert_memory();
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let user = User::new();
    let server = start(&user, &[]);
    let partial = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ";
    let held: Vec<_> = (0..400)
        .map(|n| {
            let mut stream = server.connect();
            if n % 2 == 0 {
                let _ = stream.write_all(format!("{partial}{}", "x".repeat(50_000)).as_bytes());
            }
            stream
        })
        .collect();
    server.create("a");
    assert!(
        server
            .send(&exec("echo hi"))
            .contains("\"stdout\":\"hi\\n\"")
    );
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.assert_memory();
    drop(held);
}

#[test]
fn downloads_of_sparse_files_do_not_stop_health_checks() {
    let user = User::new();
    let server = start(&user, &["--max-calls=2"]);
    server.create("a");
    let script = "truncate -s 1T f; for n in 0 1 2 3; do dd if=/dev/urandom of=f bs=64k count=1 seek=$((n * 1000000)) conv=notrunc; done 2>/dev/null";
    assert!(server.send(&exec(script)).contains("\"exitCode\":0"));
    let download = request("GET", "a/files/download", "");
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect();
        stream.write_all(download.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 100_000]).unwrap();
        held.push(stream);
    }
    assert!(server.send(&exec("true")).starts_with("HTTP/1.1 503"));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    // Both calls end: one with its client, one with the sandbox.
    held[0].shutdown(Shutdown::Both).unwrap();
    wait_for("a call is free", || {
        server
            .send(&request("DELETE", "a", ""))
            .starts_with("HTTP/1.1 204")
    });
    let mut rest = held.pop().unwrap();
    let ended = std::io::copy(&mut rest, &mut std::io::sink());
    println!("the rest: {ended:?}");
    wait_for("the other call is free", || {
        let both: Vec<_> = (0..2)
            .map(|_| {
                let mut stream = server.connect();
                let missing = request("POST", "a/touch", "");
                stream.write_all(missing.as_bytes()).unwrap();
                let mut response = String::new();
                stream.read_to_string(&mut response).unwrap();
                response
            })
            .collect();
        both.iter()
            .all(|response| response.starts_with("HTTP/1.1 404"))
    });
    server.assert_memory();
}
