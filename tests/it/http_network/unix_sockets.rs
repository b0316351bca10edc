//! Unix sockets.

use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

/// A server at a Unix socket that calls a handler with each connection, and its number from 0.
struct UnixServer {
    dir: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
}

impl UnixServer {
    fn start(handler: impl Fn(usize, UnixStream) + Send + Sync + 'static) -> UnixServer {
        let server = UnixServer {
            dir: tempfile::tempdir().unwrap(),
            connections: Arc::default(),
        };
        let listener = UnixListener::bind(server.dir.path().join("s.sock")).unwrap();
        let (connections, handler) = (Arc::clone(&server.connections), Arc::new(handler));
        // The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let handler = Arc::clone(&handler);
                thread::spawn(move || handler(number, stream.unwrap()));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("unix://{}/s.sock", self.dir.path().display())
    }

    fn sandbox(&self) -> Sandbox {
        sandbox(Client::builder(self.url()))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads a request with its body, and returns its head.
fn read_request(stream: &UnixStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = reader.take(length.unwrap_or(0));
    io::copy(&mut body, &mut io::sink()).ok()?;
    Some(head)
}

fn answer(mut stream: &UnixStream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

#[test]
fn calls_over_a_unix_socket_share_a_connection() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heads);
    let server = UnixServer::start(move |_, stream| {
        while let Some(head) = read_request(&stream) {
            log.lock().unwrap().push(head);
            answer(&stream, EXEC_OK);
        }
    });
    let sandbox = sandbox(Client::builder(server.url()).token("t0ken"));
    for _ in 0..3 {
        sandbox.run(["true"]).unwrap();
    }
    sandbox.write("f", noise(1_000_000)).unwrap();
    assert_eq!(server.connections(), 1);
    let head = heads.lock().unwrap()[0].to_ascii_lowercase();
    assert!(
        head.starts_with("post /v1/sandboxes/s/exec http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nhost: localhost\r\n"), "{head}");
    assert!(
        head.contains("\r\nauthorization: bearer t0ken\r\n"),
        "{head}"
    );
}

#[test]
fn unread_exec_is_sent_again() {
    // The kernel resets a Unix socket that is closed with unread bytes.
    let server = UnixServer::start(|number, stream| match number {
        0 => {
            let mut first = [0];
            (&stream).read_exact(&mut first).unwrap();
        }
        _ => {
            read_request(&stream);
            answer(&stream, EXEC_OK);
        }
    });
    server.sandbox().run(["true"]).unwrap();
    assert_eq!(server.connections(), 2);
}

#[test]
fn exec_without_an_answer_is_an_unknown_outcome() {
    let server = UnixServer::start(|_, stream| drop(read_request(&stream)));
    let error = fails_soon(|| server.sandbox().exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(server.connections(), 1);
}

#[test]
fn exec_survives_the_close_of_an_idle_connection() {
    let server = UnixServer::start(|_, stream| {
        read_request(&stream);
        answer(&stream, EXEC_OK);
    });
    let sandbox = server.sandbox();
    for _ in 0..20 {
        sandbox.run(["true"]).unwrap();
    }
}

#[test]
fn unix_socket_that_cannot_be_reached_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let url = format!("unix://{}", path.display());
    let error = fails_soon(|| sandbox(Client::builder(&url)).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    let text = format!("cannot connect to {url}: no such file or directory");
    assert!(format!("{error:#}").ends_with(&text), "{error:#}");
    drop(UnixListener::bind(&path).unwrap());
    // A process that another test starts may have the socket for a moment.
    let is_closed = || UnixStream::connect(&path).is_err();
    wait_for("the listener is closed", is_closed);
    let error = fails_soon(|| sandbox(Client::builder(&url)).exec(["true"]));
    assert!(
        format!("{error:#}").ends_with("connection refused"),
        "{error:#}"
    );
}

#[test]
fn silent_unix_server_ends_at_timeout_or_cancel() {
    let server = UnixServer::start(|_, stream| {
        let _ = io::copy(&mut &stream, &mut io::sink());
    });
    let error = fails_soon(|| sandbox(Client::builder(server.url()).timeout(SHORT)).touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let error = cancelled_exec(&server.sandbox(), || server.connections() == 2);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

#[test]
fn unix_socket_has_no_proxy() {
    let builder = Client::builder("unix:///run/x.sock").proxy("http://127.0.0.1:1");
    let error = builder.build().unwrap_err();
    assert!(error.to_string().contains("proxy"), "{error}");
}
