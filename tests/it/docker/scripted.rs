//! Answers of engines, from a scripted one.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use noxrunner::{Client, DockerBackend, DockerBackendBuilder, ErrorKind, Result, SandboxSpec};

use serde_json::json;

use crate::support::ErrorText as _;

/// Returns the status and the body of the response to a request, such as `POST /v1.41/containers/create`.
type Answer = fn(&str) -> (u16, String);

/// An engine that answers by a function, and records the requests.
struct ScriptedEngine {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ScriptedEngine {
    fn start(answer: Answer) -> ScriptedEngine {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let requests = Arc::clone(&requests);
                std::thread::spawn(move || serve(stream, answer, &requests));
            }
        });
        ScriptedEngine { dir, asked }
    }

    fn builder(&self) -> DockerBackendBuilder {
        let path = |name: &str| self.dir.path().join(name);
        DockerBackend::builder()
            .socket(path("engine.sock").to_str().unwrap())
            .socket_dir(path("sockets"))
            .agent(static_program(path("noxrc")))
            .image("example/app:1")
    }

    fn create(&self) -> Result<()> {
        let client = Client::with_backend(self.builder().build()?);
        client.create("demo", SandboxSpec::new()).map(drop)
    }
}

/// Writes the head of a static program, which is never run.
fn static_program(path: PathBuf) -> PathBuf {
    let mut elf = vec![0; 64 + 56];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[18] = if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };
    (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 1);
    fs::write(&path, elf).unwrap();
    path
}

/// Answers the requests of one connection.
fn serve(stream: UnixStream, answer: Answer, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(&stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head
            .to_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let request = head
            .lines()
            .next()
            .unwrap()
            .trim_end_matches(" HTTP/1.1")
            .to_owned();
        let (status, body) = answer(&request);
        asked.lock().unwrap().push(head);
        let response = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if (&stream).write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

/// Answers what all engines of these tests have in common.
fn common(request: &str) -> (u16, String) {
    let body = match request {
        "GET /version" => r#"{"Version": "28.0.1", "ApiVersion": "1.48", "MinAPIVersion": "1.24"}"#,
        _ if request.contains("/containers/json") => "[]",
        _ if request.contains("/containers/create") => {
            return (
                404,
                r#"{"message": "No such image: example/app:1"}"#.to_owned(),
            );
        }
        _ => return (404, r#"{"message": "no such thing"}"#.to_owned()),
    };
    (200, body.to_owned())
}

/// The container of a sandbox whose label names any directory.
fn with_directory(request: &str, dir: &str) -> (u16, String) {
    if !request.ends_with("/json") || request.contains("/containers/json") {
        return common(request);
    }
    let labels = json!({"noxrunner.session-id": "demo", "noxrunner.directory": dir});
    let container = json!({
        "Id": "c",
        "State": {"Status": "running", "Running": true},
        "Config": {"Labels": labels, "Image": "example/app:1"},
        "HostConfig": {},
        "NetworkSettings": {"Ports": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]}},
    });
    (200, container.to_string())
}

#[test]
fn only_directories_of_sandboxes_are_used() {
    let answers: [Answer; 2] = [
        |request| with_directory(request, "/var/run/secrets/kubernetes.io/serviceaccount"),
        |request| with_directory(request, ""),
    ];
    for answer in answers {
        let engine = ScriptedEngine::start(answer);
        let client = Client::with_backend(engine.builder().build().unwrap());
        let error = client.sandbox("demo").unwrap().exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error:#}");
        assert!(error.chain().contains("which no sandbox has"), "{error:#}");
    }
}

#[test]
fn pull_reports_its_progress_and_errors_in_its_stream() {
    let engine = ScriptedEngine::start(|request| {
        if !request.contains("/images/create") {
            return common(request);
        }
        let lines = [
            r#"{"status": "Pulling from example/app", "id": "1"}"#,
            r#"{"status": "Downloading", "progressDetail": {"current": 10, "total": 100}, "id": "a"}"#,
            r#"{"status": "Downloading", "progressDetail": {"current": 5, "total": 50}, "id": "b"}"#,
            r#"{"status": "Download complete", "progressDetail": {}, "id": "a"}"#,
            r#"{"errorDetail": {"message": "toomanyrequests"}, "error": "toomanyrequests: slow down"}"#,
        ];
        (200, lines.join("\r\n"))
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = Arc::clone(&seen);
    let builder = engine.builder().on_pull_progress(move |now| {
        assert_eq!(now.image(), "example/app:1");
        progress.lock().unwrap().push((now.received(), now.total()));
    });
    let client = Client::with_backend(builder.build().unwrap());
    let error = client.create("demo", SandboxSpec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text = error.chain();
    assert!(
        text.contains("cannot pull image \"example/app:1\": toomanyrequests: slow down"),
        "{text}"
    );
    assert_eq!(*seen.lock().unwrap(), [(10, 100), (15, 150), (105, 150)]);
    let asked = engine.asked.lock().unwrap();
    let pull = asked
        .iter()
        .find(|head| head.contains("/images/create"))
        .unwrap();
    assert!(
        pull.starts_with("POST /v1.47/images/create?fromImage=example%2Fapp&tag=1 "),
        "{pull}"
    );
}

#[test]
fn image_that_is_missing_after_a_pull_is_an_error() {
    let engine = ScriptedEngine::start(|request| match request {
        _ if request.contains("/images/create") => (200, String::new()),
        _ => common(request),
    });
    let error = engine.create().unwrap_err();
    assert!(
        error
            .chain()
            .contains("Docker 28.0.1 has no image \"example/app:1\""),
        "{error:#}"
    );
    let sockets = engine.dir.path().join("sockets");
    let left = fs::read_dir(sockets).unwrap().flatten();
    let left = left.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["lock"]);
}

#[test]
fn old_engines_are_refused() {
    let engine = ScriptedEngine::start(|_| {
        (
            200,
            r#"{"Version": "17.09", "ApiVersion": "1.32"}"#.to_owned(),
        )
    });
    let error = engine.create().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.chain().contains("1.40 or later is needed"),
        "{error:#}"
    );
}

#[test]
fn other_servers_are_not_taken_for_engines() {
    let engine = ScriptedEngine::start(|_| (200, "<html>".to_owned()));
    let error = engine.create().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(
        error
            .chain()
            .contains("is not the socket of a container engine"),
        "{error:#}"
    );
}

#[test]
fn refusals_are_quoted() {
    let engine = ScriptedEngine::start(|request| match request {
        _ if request.contains("/containers/create") => (
            400,
            r#"{"message": "Range of CPUs is from 0.01 to 2.00"}"#.to_owned(),
        ),
        _ => common(request),
    });
    let error = engine.create().unwrap_err();
    assert_eq!(
        (error.kind(), error.status()),
        (ErrorKind::InvalidInput, Some(400))
    );
    let text = error.chain();
    assert!(
        text.contains("cannot create the container: the engine answered 400: Range of CPUs"),
        "{text}"
    );
}
