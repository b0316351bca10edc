//! Network and server failures in every phase of a call.

/// The connection pool, and servers that close idle connections.
mod connections;
/// Proxies and IPv6.
pub(crate) mod proxies;
/// Servers that limit the number of requests per second.
mod rate_limits;
/// `wait_until_ready`.
mod readiness;
/// Which calls are retried, and when.
mod retries;
/// Request and response bodies that stall, trickle or break off.
mod transfers;
/// Unix sockets.
mod unix_sockets;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, ClientBuilder, Command, Error, ErrorKind, Retry, Sandbox};

use crate::support::processes::wait_for;
use crate::support::scripted::{Conn, EXEC_OK, Request, Scripted};

/// Breaks off a response.
type Breaker = fn(Conn);

const SHORT: Duration = Duration::from_secs(1);

/// Much more than any call here needs, and less than a hanging call would take.
const SOON: Duration = Duration::from_secs(20);

fn builder(server: &Scripted) -> ClientBuilder {
    Client::builder(server.url())
}

fn sandbox(builder: ClientBuilder) -> Sandbox {
    builder.build().unwrap().sandbox("s").unwrap()
}

/// Enough to compress and send a large upload in a debug build on a busy machine.
const UPLOAD_LIMIT: Duration = Duration::from_secs(30);

/// The error of a call that must fail soon.
#[track_caller]
fn fails_soon<T>(call: impl FnOnce() -> noxrunner::Result<T>) -> Error {
    fails_within(SOON, call)
}

#[track_caller]
fn fails_within<T>(limit: Duration, call: impl FnOnce() -> noxrunner::Result<T>) -> Error {
    let start = Instant::now();
    let error = call().err().expect("the call should have failed");
    let took = start.elapsed();
    assert!(took < limit, "{error} took {took:?}");
    error
}

/// Runs exec on a silent server, and cancels it from another thread soon after `is_in_progress`.
#[track_caller]
pub(crate) fn cancelled_exec(sandbox: &Sandbox, is_in_progress: impl Fn() -> bool + Send) -> Error {
    let cancel = Cancel::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("the call is in progress", is_in_progress);
            thread::sleep(Duration::from_millis(300));
            cancel.cancel();
        });
        fails_soon(|| sandbox.exec(Command::new("true").cancel_on(&cancel)))
    })
}

/// Runs a check for all items at the same time, because it mostly waits.
fn at_once<T: Send>(all: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    let check = &check;
    thread::scope(|scope| {
        for one in all {
            scope.spawn(move || check(one));
        }
    });
}

/// The number of requests whose path ends with this.
fn count(server: &Scripted, ending: &str) -> usize {
    let requests = server.requests();
    requests.iter().filter(|r| r.path.ends_with(ending)).count()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Incompressible bytes.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn refused_connection_names_the_address() {
    let address = "127.0.0.1:1";
    let client = Client::builder(format!("http://{address}"))
        .retry(Retry::none())
        .build()
        .unwrap();
    let sandbox = client.sandbox("s").unwrap();
    for error in [
        fails_soon(|| client.health()),
        fails_soon(|| sandbox.touch()),
        fails_soon(|| sandbox.exec(["true"])),
        fails_soon(|| sandbox.write("f", "x")),
        fails_soon(|| sandbox.download_archive("/workspace").map(|_| ())),
    ] {
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(format!("{error:#}").contains(address), "{error}");
        assert!(format!("{error:#}").contains("refused"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn retry_reaches_server_that_starts_late() {
    let port = free_port();
    let sandbox =
        sandbox(Client::builder(format!("http://127.0.0.1:{port}")).retry(Retry::attempts(8)));
    let server = thread::spawn(move || {
        thread::sleep(Duration::from_millis(120));
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
        while head.next().unwrap().unwrap() != "" {}
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{EXEC_OK}",
            EXEC_OK.len()
        )
        .unwrap();
    });
    // The failed attempts sent nothing, so that even exec may be retried.
    assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
    server.join().unwrap();
}

#[test]
fn unknown_host_is_a_connect_error() {
    let sandbox = sandbox(
        Client::builder("http://nosuchhost.invalid")
            .no_proxy()
            .retry(Retry::none())
            .connect_timeout(Duration::from_secs(4)),
    );
    let (touch, exec) = (
        fails_soon(|| sandbox.touch()),
        fails_soon(|| sandbox.exec(["true"])),
    );
    // Without a network, the resolver may use up its timeout.
    assert!(
        matches!(touch.kind(), ErrorKind::Connect | ErrorKind::Timeout),
        "{touch}"
    );
    assert_eq!(exec.kind(), ErrorKind::Connect, "{exec}");
    for error in [touch, exec] {
        assert!(
            format!("{error:#}").contains("nosuchhost.invalid:80"),
            "{error}"
        );
    }
}

/// Servers that fall silent, each after another part of the response.
fn silent_servers() -> Vec<(&'static str, Scripted)> {
    let silent_after = |answer: &'static str| {
        Scripted::start(move |mut conn| {
            conn.read_request();
            conn.write(answer);
            conn.stay_silent();
        })
    };
    vec![
        ("nothing", silent_after("")),
        ("part of the status line", silent_after("HTTP/1.")),
        (
            "part of the head",
            silent_after("HTTP/1.1 200 OK\r\nContent-Le"),
        ),
        (
            "part of the body",
            silent_after("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"exitCode\":0,"),
        ),
        (
            "part of a chunk",
            silent_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{\"exit"),
        ),
    ]
}

#[test]
fn silent_server_ends_at_timeout() {
    at_once(silent_servers(), |(what, server)| {
        let sandbox = sandbox(builder(&server).timeout(SHORT));
        let error = fails_soon(|| sandbox.touch());
        assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {error}");
        assert!(error.is_timeout());
        // The timeout covers all attempts. A busy machine may start the server later.
        wait_for("the request is received", || !server.requests().is_empty());
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
fn exec_on_silent_server_can_be_cancelled() {
    at_once(silent_servers(), |(what, server)| {
        let error = cancelled_exec(&sandbox(builder(&server)), || server.requests().len() == 1);
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{what}: {error}");
        assert!(error.is_outcome_unknown());
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
pub(crate) fn cancelled_exec_error_says_cancelled() {
    let (_, server) = silent_servers().remove(0);
    let error = cancelled_exec(&sandbox(builder(&server)), || server.requests().len() == 1);
    assert!(format!("{error:#}").contains("cancelled"), "{error}");
    assert!(format!("{error:#}").contains("may have run"), "{error}");
}

#[test]
fn exec_cancelled_before_start_is_not_sent() {
    let server = Scripted::always(200, EXEC_OK);
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    cancel.cancel();
    let error = fails_soon(|| sandbox.exec(Command::new("true").cancel_on(&cancel)));
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(format!("{error:#}").contains("cancelled"), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn client_works_after_cancelled_exec() {
    let server = Scripted::each_request(|request, conn| {
        if request.body_text().contains("silent") {
            conn.stay_silent();
        }
        conn.respond(200, EXEC_OK);
    });
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    let other = cancel.clone();
    sandbox.run(["first"]).unwrap();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        other.cancel();
    });
    fails_soon(|| sandbox.exec(Command::new("silent").cancel_on(&cancel)));
    canceller.join().unwrap();
    // Neither the cancellation nor the connection affects later calls.
    for _ in 0..3 {
        sandbox.run(["after"]).unwrap();
    }
}

#[test]
fn cancel_after_response_has_no_effect() {
    let server = Scripted::always(200, EXEC_OK);
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    sandbox
        .run(Command::new("first").cancel_on(&cancel))
        .unwrap();
    cancel.cancel();
    sandbox.run(["second"]).unwrap();
    // The cancellation did not shut down the idle connection.
    assert_eq!(server.connections(), 1);
}

#[test]
fn exec_may_exceed_the_client_timeout() {
    let server = Scripted::each_request(|_, conn| {
        thread::sleep(Duration::from_millis(500));
        conn.respond(200, EXEC_OK);
    });
    let sandbox = sandbox(builder(&server).timeout(Duration::from_millis(100)));
    sandbox.run(["make"]).unwrap();
    let error = fails_soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

/// A port whose accept queue is full.
struct FullQueue {
    port: u16,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl FullQueue {
    fn new() -> Option<FullQueue> {
        use std::os::fd::AsRawFd;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        #[allow(unsafe_code, reason = "std has no way to shorten the queue")]
        // SAFETY: the descriptor is open, and listening again only changes the queue's length.
        unsafe {
            libc::listen(listener.as_raw_fd(), 0);
        }
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..16 {
            match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                Ok(stream) => waiting.push(stream),
                Err(_) => {
                    return Some(FullQueue {
                        port: address.port(),
                        _listener: listener,
                        _waiting: waiting,
                    });
                }
            }
        }
        None
    }
}

#[test]
fn full_backlog_ends_at_connect_timeout() {
    let Some(full) = FullQueue::new() else {
        eprintln!("skipped: the accept queue does not fill up on this system");
        return;
    };
    let url = format!("http://127.0.0.1:{}", full.port);
    let sandbox = sandbox(
        Client::builder(&url)
            .connect_timeout(SHORT)
            .retry(Retry::none()),
    );
    let error = fails_soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        format!("{error:#}").contains(&full.port.to_string()),
        "{error}"
    );
    // Nothing was sent, so the outcome is known.
    let error = fails_soon(|| sandbox.exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}

#[test]
fn unaccepted_connection_ends_at_timeout() {
    // The kernel accepts the connection and the request, but the server does not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sandbox = sandbox(Client::builder(url).timeout(SHORT));
    let error = fails_soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let error = cancelled_exec(&sandbox, || true);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

#[test]
fn cancel_ends_connecting() {
    let Some(full) = FullQueue::new() else {
        eprintln!("skipped: the accept queue does not fill up on this system");
        return;
    };
    let url = format!("http://127.0.0.1:{}", full.port);
    let sandbox = sandbox(Client::builder(&url).connect_timeout(Duration::from_secs(6)));
    let error = cancelled_exec(&sandbox, || true);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

#[test]
fn create_has_a_timeout_of_its_own() {
    let silent = || Scripted::start(|mut conn| conn.stay_silent());
    let server = silent();
    let quick = builder(&server).timeout(Duration::from_secs(600));
    let quick = quick.create_timeout(Duration::from_secs(1));
    let client = quick.build().unwrap();
    let spec = noxrunner::SandboxSpec::new;
    let error = fails_soon(|| client.create("s", spec()));
    assert!(error.is_outcome_unknown() || error.is_timeout(), "{error}");
    // A timeout for all calls is one for create too.
    let server = silent();
    let quick = builder(&server).timeout(Duration::from_secs(1));
    let client = quick.build().unwrap();
    fails_soon(|| client.create("s", spec()));
}
