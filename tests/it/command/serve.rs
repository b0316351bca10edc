//! `noxrc serve`: the server, its gateway mode and its settings.

/// Attacks on the memory and the connections of the server.
mod attacks;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use super::*;

/// A running `noxrc serve`, which ends when this is dropped.
pub(super) struct ServeProcess {
    child: Child,
    url: String,
    token: Option<String>,
}

impl ServeProcess {
    pub(super) fn start(user: &User, args: &[&str]) -> ServeProcess {
        let all: Vec<&str> = ["--json", "serve"].iter().chain(args).copied().collect();
        let mut command = user.command(&all);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        ServeProcess {
            child,
            url: value["url"].as_str().unwrap_or_default().to_owned(),
            token: value["token"].as_str().map(str::to_owned),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    pub(super) fn connect(&self) -> TcpStream {
        let addr = self.url.strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(addr).unwrap();
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(Duration::from_secs(60))).unwrap();
        }
        stream
    }

    /// Interrupts the server as Ctrl-C does, and returns its output.
    pub(super) fn stop(mut self) -> String {
        interrupt(&self.child);
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_listens_on_names_ports_and_unix_sockets() {
    let user = User::new();
    let args = [
        "--listen",
        "localhost:0",
        "--listen",
        ":0",
        "--unix",
        "s.sock",
    ];
    let serving = ServeProcess::start(&user, &args);
    let socket = format!("unix://{}", user.path("s.sock").display());
    for url in [&serving.url, &socket] {
        assert_output(&user.run(&["--base-url", url, "health"]), 0, "", "✓");
    }
    let token = serving.token.clone().unwrap();
    let args = ["--token", &token, "conformance", "--only", "exec-exit-code"];
    let mut command = user.command(&args);
    let ran = run_command(command.env("NOXRUNNER_BASE_URL", &socket));
    assert_output(&ran, 0, &ran.stdout, "passed every MUST check");
    assert!(serving.stop().contains(&socket));
}

#[test]
fn serve_works_with_the_other_commands_and_stops() {
    let user = User::new();
    let serving = ServeProcess::start(&user, &["--listen", "127.0.0.1:0"]);
    let token = serving.token.clone().unwrap();
    let at = |args: &[&str]| {
        let mut command = user.command(args);
        run_command(
            command
                .env("NOXRUNNER_BASE_URL", &serving.url)
                .env("NOXRUNNER_TOKEN", &token),
        )
    };
    assert_output(&at(&["create", "a"]), 0, "", "✓ Sandbox created: local-a\n");
    assert_output(&at(&["exec", "a", "echo", "hi"]), 0, "hi\n", "");
    assert_output(&at(&["-v", "exec", "a", "true"]), 0, "", "POST");
    assert_output(&at(&["doctor"]), 0, "", "✓ The server accepts the token");
    let refused = user.run(&["--base-url", &serving.url, "exec", "a", "true"]);
    assert_output(&refused, 125, "", "NOXRUNNER_TOKEN");
    assert_output(
        &user.run(&["--base-url", &serving.url, "health"]),
        0,
        "",
        "✓",
    );

    let gateway = ServeProcess::start(
        &user,
        &[
            "--listen",
            "127.0.0.1:0",
            "--gateway",
            &serving.url,
            "--token",
            &token,
        ],
    );
    let through = gateway.token.clone().unwrap();
    let url = gateway.url.clone();
    assert_output(
        &user.run(&[
            "--base-url",
            &url,
            "--token",
            &through,
            "exec",
            "a",
            "echo",
            "far",
        ]),
        0,
        "far\n",
        "",
    );
    gateway.stop();

    let said = serving.stop();
    assert!(said.contains("POST /v1/sandboxes/a/exec 200 "), "{said}");
    assert!(said.contains("✓ Stopped"), "{said}");
    assert!(!said.contains("Authorization"), "{said}");
}

#[test]
fn serve_enforces_maxima() {
    let user = User::new();
    let maxima = [
        "--listen=127.0.0.1:0",
        "--isolation=none",
        "--max-ttl=900",
        "--max-mem=512Mi",
        "--max-storage=1Gi",
        "--max-cpu=1",
        "--max-sandboxes=1",
    ];
    let serving = ServeProcess::start(&user, &maxima);
    let token = serving.token.clone().unwrap();
    let create = |args: &[&str]| {
        let fixed = ["--base-url", &serving.url, "--token", &token, "create", "a"];
        user.run(&[&fixed, args].concat())
    };
    for (flag, value, max) in [
        ("--ttl", "901", "900 s"),
        ("--mem", "513Mi", "512Mi"),
        ("--storage", "2Gi", "1Gi"),
        ("--cpu", "2", "1"),
    ] {
        let says = format!("exceeds this server's maximum of {max}");
        assert_output(&create(&[flag, value]), 1, "", &says);
    }
    assert_output(&create(&[]), 0, "", "Sandbox created");
    let wrong = user.run(&["serve", "--listen=127.0.0.1:0", "--max-mem=much"]);
    assert_output(&wrong, 1, "", "max_memory");
    let zero = user.run(&["serve", "--memory-budget=1Mi", "--listen=127.0.0.1:0"]);
    assert_output(&zero, 1, "", "at least 8 MiB");
}

#[test]
fn serve_refuses_unsafe_settings() {
    let user = User::new();
    assert_output(
        &user.run(&["serve", "--listen", "0.0.0.0:0", "--no-auth"]),
        1,
        "",
        "--force",
    );
    fs::write(user.path("token"), "\n").unwrap();
    let empty = user.run(&["serve", "--listen", "127.0.0.1:0", "--token-file", "token"]);
    assert_output(&empty, 1, "", "token is empty");
    let all = user.run(&["serve", "--listen", ":0", "--no-auth"]);
    assert_output(&all, 1, "", "0.0.0.0:0");
    let bad = user.run(&["serve", "--listen", "nowhere"]);
    assert_output(&bad, 2, "", "must be HOST:PORT");
    let both = user.run(&["serve", "--no-auth", "--token-file", "token"]);
    assert_output(&both, 1, "", "exclude each other");
    assert_output(&user.run(&["serve", "--force"]), 2, "", "--no-auth");
    assert!(!Path::new("socket").exists());
}
