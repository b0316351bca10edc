//! Live output as server-sent events.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use noxrunner::server::Server;
use noxrunner::{
    Backend, Chunk, Command, Error, ErrorKind, Output, SandboxInfo, SandboxSpec, SessionId, Stream,
    Upload,
};

use super::{RunningServer, local};
use crate::support::processes::{sleeps, unique_sleep, wait_for};

const PATH: &str = "/v1/sandboxes/live/exec";
const HEADERS: &str =
    "Accept: text/event-stream, application/json;q=0.5\r\nContent-Type: application/json\r\n";

fn server() -> (RunningServer, tempfile::TempDir) {
    let (builder, dir) = local();
    let server = RunningServer::start(builder.tcp("127.0.0.1:0"));
    server.client().create("live", SandboxSpec::new()).unwrap();
    (server, dir)
}

#[test]
fn response_has_the_events_of_the_protocol() {
    let (server, _dir) = server();
    let body = r#"{"cmd": ["sh", "-c", "printf 'a\\377'; exit 3"]}"#;
    let response = server.request("POST", PATH, HEADERS, body);
    assert_eq!(response.status, 200, "{}", response.head);
    assert!(
        response
            .head
            .contains("\r\ncontent-type: text/event-stream\r\n"),
        "{}",
        response.head
    );
    assert!(
        response.body.contains("event: stdout\ndata: Yf8=\n\n"),
        "{}",
        response.body
    );
    let (_, exit) = response.body.split_once("event: exit\ndata: ").unwrap();
    let exit: serde_json::Value = serde_json::from_str(exit.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&exit["exitCode"], &exit["truncated"]),
        (&3.into(), &false.into())
    );
    assert!(exit.get("stdout").is_none() && exit.get("stderr").is_none());
}

#[test]
fn clients_without_the_extension_get_json() {
    let (server, _dir) = server();
    for headers in ["", "Accept: */*\r\n", "Accept: application/json\r\n"] {
        let headers = format!("{headers}Content-Type: application/json\r\n");
        let response = server.request("POST", PATH, &headers, r#"{"cmd": ["echo", "hi"]}"#);
        let json: serde_json::Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(json["stdout"], "hi\n");
    }
}

#[test]
fn error_before_the_output_is_an_error_response() {
    let (server, _dir) = server();
    let path = "/v1/sandboxes/unknown/exec";
    let response = server.request("POST", path, HEADERS, r#"{"cmd": ["true"]}"#);
    assert_eq!(response.status, 404, "{}", response.body);
    let response = server.request("POST", PATH, HEADERS, r#"{"cmd": []}"#);
    assert_eq!(response.status, 400, "{}", response.body);
}

/// A backend whose commands write what the test sends, and end with the channel.
struct Steps {
    steps: Mutex<Receiver<Step>>,
}

enum Step {
    Write(&'static str),
    Fail(ErrorKind),
    Panic,
}

impl Backend for Steps {
    fn health(&self) -> noxrunner::Result<()> {
        Ok(())
    }
    fn create(&self, _: &SessionId, _: &SandboxSpec) -> noxrunner::Result<SandboxInfo> {
        Ok(SandboxInfo::new("pod", "2026-01-02T12:34:56Z"))
    }
    fn touch(&self, _: &SessionId) -> noxrunner::Result<()> {
        Ok(())
    }
    fn exec(&self, _: &SessionId, _: &Command) -> noxrunner::Result<Output> {
        unreachable!("the tests run live execs only")
    }
    fn exec_live(
        &self,
        _: &SessionId,
        _: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> noxrunner::Result<()>,
    ) -> noxrunner::Result<Output> {
        for step in self.steps.lock().unwrap().iter() {
            match step {
                Step::Write(text) => sink(Chunk::new(Stream::Stdout, text.as_bytes()))?,
                Step::Fail(kind) => return Err(Error::new(kind, "as scripted")),
                Step::Panic => panic!("as scripted"),
            }
        }
        Ok(Output::new(0, "", "", Duration::ZERO))
    }
    fn upload(&self, _: &SessionId, _: &str, _: Upload<'_>) -> noxrunner::Result<()> {
        Ok(())
    }
    fn download(&self, _: &SessionId, _: &str) -> noxrunner::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(std::io::empty()))
    }
    fn delete(&self, _: &SessionId) -> noxrunner::Result<bool> {
        Ok(true)
    }
}

fn stepping() -> (RunningServer, Sender<Step>) {
    let (sender, steps) = channel();
    let steps = Mutex::new(steps);
    let builder = Server::builder(Steps { steps }).tcp("127.0.0.1:0");
    (RunningServer::start(builder), sender)
}

#[test]
fn error_after_output_keeps_its_kind() {
    for (step, kind, text) in [
        (
            Step::Fail(ErrorKind::NotFound),
            ErrorKind::NotFound,
            "404: as scripted",
        ),
        (
            Step::Fail(ErrorKind::OutcomeUnknown),
            ErrorKind::OutcomeUnknown,
            "502: as scripted",
        ),
        (
            Step::Fail(ErrorKind::Io),
            ErrorKind::Status,
            "500: as scripted",
        ),
        (
            Step::Panic,
            ErrorKind::Status,
            "500: the call ended without a result",
        ),
    ] {
        let (server, steps) = stepping();
        steps.send(Step::Write("one")).unwrap();
        let mut step = Some(step);
        let mut seen = String::new();
        let sandbox = server.client().sandbox("s").unwrap();
        let result = sandbox.exec_live(["x"], |chunk| {
            seen += &chunk.text();
            // The head of the response has been sent.
            steps.send(step.take().unwrap()).unwrap();
            Ok(())
        });
        let error = result.unwrap_err();
        assert_eq!((error.kind(), &*seen), (kind, "one"), "{error:#}");
        assert!(error.to_string().contains(text), "{error:#}");
    }
}

#[test]
fn panic_before_output_is_an_error_response() {
    let (server, steps) = stepping();
    steps.send(Step::Panic).unwrap();
    let sandbox = server.client().sandbox("s").unwrap();
    let error = sandbox.exec_live(["x"], |_| Ok(())).unwrap_err();
    assert_eq!(error.status(), Some(500), "{error:#}");
    assert!(
        error.to_string().contains("the backend panicked"),
        "{error:#}"
    );
}

/// Sends an exec that accepts events. Returns a reader of the response.
fn send(server: &RunningServer, body: &str) -> BufReader<TcpStream> {
    let mut stream = server.connect();
    let token = server.token.as_deref().unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{HEADERS}Content-Length: {}\r\n\r\n",
        body.len()
    );
    let request = format!("{head}{body}");
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream)
}

/// Reads up to the next line with data, and returns it.
fn data_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    while !line.contains("data:") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0);
    }
    line
}

#[test]
fn head_of_a_quiet_command_is_sent() {
    let (server, steps) = stepping();
    let mut reader = send(&server, r#"{"cmd": ["x"]}"#);
    // The command writes nothing before this line has arrived.
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    steps.send(Step::Fail(ErrorKind::NotReady)).unwrap();
    let line = data_line(&mut reader);
    assert_eq!(line, "data: {\"error\":\"as scripted\",\"status\":503}\n");
}

#[test]
fn command_ends_when_its_client_disconnects() {
    let (server, _dir) = server();
    let seconds = unique_sleep(100_017);
    let body = format!(
        r#"{{"cmd": ["sh", "-c", "sleep {seconds} & echo on; wait"], "timeoutSeconds": 600}}"#
    );
    let mut reader = send(&server, &body);
    data_line(&mut reader);
    wait_for("the command has started", || sleeps(&seconds));
    // Nothing is written any more, so only the closed connection shows it.
    drop(reader);
    wait_for("the command has ended", || !sleeps(&seconds));
}

#[test]
fn client_may_read_live_output_slowly() {
    const SIZE: usize = 48 << 20;
    const IDLE: Duration = Duration::from_millis(300);
    let (builder, _dir) = local();
    let server = RunningServer::start(builder.tcp("127.0.0.1:0").body_idle(IDLE));
    let sandbox = server.client().create("slow", SandboxSpec::new()).unwrap();
    let (mut got, mut pauses) = (0, 0);
    let command = Command::from(["head", "-c", &SIZE.to_string(), "/dev/zero"]);
    let out = sandbox.exec_live(command.timeout(Duration::from_secs(300)), |chunk| {
        got += chunk.bytes().len();
        // While the command writes, and when the rest is already on its way.
        if (pauses == 0) || (pauses == 1 && got > SIZE - (4 << 20)) {
            pauses += 1;
            std::thread::sleep(8 * IDLE);
        }
        Ok(())
    });
    assert!(out.unwrap().success());
    assert_eq!((got, pauses), (SIZE, 2));
    // The connection is usable, and is the only one.
    sandbox.touch().unwrap();
}

#[test]
fn live_output_needs_memory_of_the_budget() {
    let (builder, _dir) = local();
    let budget = 8 << 20;
    let server = RunningServer::start(builder.tcp("127.0.0.1:0").memory_budget(budget));
    let client = server.client();
    let sandbox = Arc::new(client.create("budget", SandboxSpec::new()).unwrap());
    let (entered, is_entered) = channel();
    let (leave, may_leave) = channel::<()>();
    let first = Arc::clone(&sandbox);
    let running = std::thread::spawn(move || {
        let line = "echo on; head -c 30000000 /dev/zero";
        let command = Command::shell(line).timeout(Duration::from_secs(300));
        let mut total = 0;
        let out = first.exec_live(command, |chunk| {
            if total == 0 {
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
            }
            total += chunk.bytes().len();
            Ok(())
        })?;
        assert!(out.success());
        Ok::<_, Error>(total)
    });
    is_entered.recv().unwrap();
    // Holds no more memory than any other exec, whatever the length of its output.
    assert!(sandbox.exec(["true"]).unwrap().success());
    leave.send(()).unwrap();
    assert_eq!(running.join().unwrap().unwrap(), 30_000_003);
}
