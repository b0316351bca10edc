//! Networks and servers that fail in every phase.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Cancel, Client, ClientBuilder, Command, Error, ErrorKind, Retry, Sandbox};

use crate::support::scripted::{Conn, EXEC_OK, Request, Scripted};

const SHORT: Duration = Duration::from_millis(300);

/// Far more than any call here needs, and less than what a call that hangs would take.
const SOON: Duration = Duration::from_secs(5);

fn builder(server: &Scripted) -> ClientBuilder {
    Client::builder(server.url())
}

fn sandbox(builder: ClientBuilder) -> Sandbox {
    builder.build().unwrap().sandbox("s").unwrap()
}

/// The error of a call that must not take long.
#[track_caller]
fn soon<T>(call: impl FnOnce() -> noxrunner::Result<T>) -> Error {
    let start = Instant::now();
    let error = call().err().expect("the call should have failed");
    let took = start.elapsed();
    assert!(took < SOON, "{error} took {took:?}");
    error
}

/// Runs exec on a server that does not answer, and cancels it from another thread.
#[track_caller]
fn cancelled_exec(sandbox: &Sandbox) -> Error {
    let cancel = Cancel::new();
    let other = cancel.clone();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        other.cancel();
    });
    let error = soon(|| sandbox.exec(Command::new("true").cancel_on(&cancel)));
    canceller.join().unwrap();
    error
}

/// Checks all of them at the same time, since they are mostly waiting.
fn at_once<T: Send>(all: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    let check = &check;
    thread::scope(|scope| {
        for one in all {
            scope.spawn(move || check(one));
        }
    });
}

/// How often a path with this ending was asked for.
fn count(server: &Scripted, ending: &str) -> usize {
    let requests = server.requests();
    requests.iter().filter(|r| r.path.ends_with(ending)).count()
}

/// A port that nobody listens on: it was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Bytes that no compression makes smaller.
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
fn a_refused_connection_names_the_address() {
    let address = format!("127.0.0.1:{}", free_port());
    let client = Client::builder(format!("http://{address}"))
        .retry(Retry::none())
        .build()
        .unwrap();
    let sandbox = client.sandbox("s").unwrap();
    for error in [
        soon(|| client.health()),
        soon(|| sandbox.touch()),
        soon(|| sandbox.exec(["true"])),
        soon(|| sandbox.write("f", "x")),
        soon(|| sandbox.download_archive("/workspace").map(|_| ())),
    ] {
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(error.to_string().contains(&address), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_server_that_comes_up_late_is_found_by_another_try() {
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
    // Nothing was sent by the tries that failed, so that exec may be tried again, too.
    assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
    server.join().unwrap();
}

#[test]
fn an_unknown_host_is_a_connect_error_that_names_it() {
    let sandbox = sandbox(
        Client::builder("http://nosuchhost.invalid")
            .no_proxy()
            .retry(Retry::none())
            .connect_timeout(Duration::from_secs(4)),
    );
    let (touch, exec) = (soon(|| sandbox.touch()), soon(|| sandbox.exec(["true"])));
    // A resolver without a network may take all of its time.
    assert!(
        matches!(touch.kind(), ErrorKind::Connect | ErrorKind::Timeout),
        "{touch}"
    );
    assert_eq!(exec.kind(), ErrorKind::Connect, "{exec}");
    for error in [touch, exec] {
        assert!(
            error.to_string().contains("nosuchhost.invalid:80"),
            "{error}"
        );
    }
}

/// Servers that fall silent, by how far they get.
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
fn a_server_that_falls_silent_is_left_when_the_time_is_over() {
    at_once(silent_servers(), |(what, server)| {
        let sandbox = sandbox(builder(&server).timeout(SHORT));
        let error = soon(|| sandbox.touch());
        assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {error}");
        assert!(error.is_timeout());
        // The time was for all tries.
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
fn an_exec_on_a_silent_server_can_be_cancelled() {
    at_once(silent_servers(), |(what, server)| {
        let error = cancelled_exec(&sandbox(builder(&server)));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert!(error.is_outcome_unknown());
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
fn a_cancelled_exec_says_so() {
    let (_, server) = silent_servers().remove(0);
    let error = cancelled_exec(&sandbox(builder(&server)));
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert!(error.to_string().contains("may have run"), "{error}");
}

#[test]
fn what_was_cancelled_before_is_not_sent() {
    let server = Scripted::always(200, EXEC_OK);
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    cancel.cancel();
    let error = soon(|| sandbox.exec(Command::new("true").cancel_on(&cancel)));
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn the_client_goes_on_after_a_cancelled_exec() {
    let server = Scripted::each_request(|request, conn| {
        if request.body_text().contains("silent") {
            conn.stay_silent();
        }
        conn.answer(200, EXEC_OK);
    });
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    let other = cancel.clone();
    sandbox.exec(["first"]).unwrap();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        other.cancel();
    });
    soon(|| sandbox.exec(Command::new("silent").cancel_on(&cancel)));
    canceller.join().unwrap();
    // Neither the cancellation nor the connection is left over.
    for _ in 0..3 {
        sandbox.exec(["after"]).unwrap();
    }
}

#[test]
fn a_cancellation_that_comes_after_the_answer_harms_nobody() {
    let server = Scripted::always(200, EXEC_OK);
    let sandbox = sandbox(builder(&server));
    let cancel = Cancel::new();
    sandbox
        .exec(Command::new("first").cancel_on(&cancel))
        .unwrap();
    cancel.cancel();
    sandbox.exec(["second"]).unwrap();
    // The idle connection was not shut down by it.
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_command_may_take_longer_than_the_timeout_of_the_client() {
    let server = Scripted::each_request(|_, conn| {
        thread::sleep(Duration::from_millis(500));
        conn.answer(200, EXEC_OK);
    });
    let sandbox = sandbox(builder(&server).timeout(Duration::from_millis(100)));
    sandbox.exec(["make"]).unwrap();
    let error = soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

/// A port whose queue of connections is full and stays so.
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
fn a_connection_that_nobody_accepts_ends_by_the_connect_timeout() {
    let Some(full) = FullQueue::new() else {
        eprintln!("skipped: this system's queues of connections do not fill up");
        return;
    };
    let url = format!("http://127.0.0.1:{}", full.port);
    let sandbox = sandbox(
        Client::builder(&url)
            .connect_timeout(SHORT)
            .retry(Retry::none()),
    );
    let error = soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        error.to_string().contains(&full.port.to_string()),
        "{error}"
    );
    // Nothing was sent, and exec knows it.
    let error = soon(|| sandbox.exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}

#[test]
fn a_connection_that_is_never_accepted_by_the_program_ends_by_the_timeout() {
    // The kernel takes the connection and the request, the server does not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sandbox = sandbox(Client::builder(url).timeout(SHORT));
    let error = soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let error = cancelled_exec(&sandbox);
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

#[test]
fn a_cancelled_exec_does_not_wait_for_its_connection() {
    let Some(full) = FullQueue::new() else {
        eprintln!("skipped: this system's queues of connections do not fill up");
        return;
    };
    let url = format!("http://127.0.0.1:{}", full.port);
    let sandbox = sandbox(Client::builder(&url).connect_timeout(Duration::from_secs(6)));
    let error = cancelled_exec(&sandbox);
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

/// What the server does instead of a whole answer.
type Breaker = fn(Conn);

const BREAKERS: [(&str, Breaker); 6] = [
    ("reset before the head", |conn| conn.reset()),
    ("reset in the head", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-");
        thread::sleep(Duration::from_millis(20));
        conn.reset();
    }),
    ("reset in the body", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"exitCode\":0,");
        thread::sleep(Duration::from_millis(20));
        conn.reset();
    }),
    ("closed before the head", drop),
    ("closed in the head", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-");
    }),
    ("closed in the body", |mut conn| {
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"exitCode\":0,");
    }),
];

/// Breaks off every answer after the request was read.
fn breaking(breaker: Breaker) -> Scripted {
    Scripted::start(move |mut conn| {
        // A reader that wakes the server only to let it go is no request.
        if conn.read_request().is_some() {
            breaker(conn);
        }
    })
}

#[test]
fn an_exec_whose_answer_breaks_off_is_never_sent_again() {
    for (what, breaker) in BREAKERS {
        let server = breaking(breaker);
        let error = soon(|| sandbox(builder(&server)).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 1, "{what}");
    }
}

#[test]
fn what_may_be_done_twice_is_sent_again_when_there_was_no_answer() {
    at_once(BREAKERS, |(what, breaker)| {
        let server = breaking(breaker);
        let client = builder(&server).build().unwrap();
        let error = soon(|| client.health());
        assert_eq!(error.kind(), ErrorKind::Connect, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = soon(|| sandbox(builder(&server)).touch());
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = soon(|| sandbox(builder(&server)).write("f", "x"));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 3, "{what}");

        let server = breaking(breaker);
        let error = soon(|| sandbox(builder(&server).retry(Retry::none())).touch());
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{what}: {error}");
        assert_eq!(server.requests().len(), 1, "{what}");
    });
}

#[test]
fn another_try_after_a_reset_succeeds() {
    let seen = AtomicUsize::new(0);
    let server = Scripted::start(move |mut conn| {
        while let Some(request) = conn.read_request() {
            if seen.fetch_add(1, Ordering::SeqCst) < 2 {
                return conn.reset();
            }
            conn.answer(200, request.body);
        }
    });
    let sandbox = sandbox(builder(&server));
    sandbox.write("f", noise(100_000)).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    // All of the archive goes again, from its start.
    assert!(requests.iter().all(|r| r.body == requests[0].body));
    assert!(requests[0].body.len() > 100_000);
}

/// Answers by status, and how many requests each call then makes.
#[test]
fn statuses_are_worth_another_try_by_operation() {
    for (status, touches, execs) in [
        (503, 2, 2),
        (429, 2, 2),
        (502, 2, 1),
        (504, 2, 1),
        (500, 1, 1),
        (400, 1, 1),
        (404, 1, 1),
    ] {
        let server = Scripted::in_turn(vec![(status, "not now"), (200, EXEC_OK)]);
        let result = sandbox(builder(&server)).touch();
        assert_eq!(server.requests().len(), touches, "touch {status}");
        assert_eq!(result.is_ok(), touches == 2, "touch {status}");

        let server = Scripted::in_turn(vec![(status, "not now"), (200, EXEC_OK)]);
        let result = sandbox(builder(&server)).exec(["true"]);
        assert_eq!(server.requests().len(), execs, "exec {status}");
        assert_eq!(result.is_ok(), execs == 2, "exec {status}");
        // The answer was read to its end before the next try.
        assert_eq!(server.connections(), 1, "exec {status}");

        let server = Scripted::in_turn(vec![(status, "not now"), (200, EXEC_OK)]);
        let error = soon(|| sandbox(builder(&server).retry(Retry::none())).touch());
        assert_eq!(error.status(), Some(status));
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[test]
fn tries_end_with_the_last_answer() {
    let server = Scripted::in_turn(vec![
        (503, "one"),
        (503, "two"),
        (503, "three"),
        (200, "OK"),
    ]);
    let error = soon(|| builder(&server).build().unwrap().health());
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(error.to_string().contains("three"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn retry_after_is_waited_for() {
    let server = Scripted::each_request({
        let seen = AtomicUsize::new(0);
        move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) {
            0 => conn.answer_with(429, &[("Retry-After", "1")], ""),
            _ => conn.answer(200, EXEC_OK),
        }
    });
    let start = Instant::now();
    sandbox(builder(&server)).exec(["true"]).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_long_retry_after_is_an_error_at_once() {
    let server = Scripted::each_request(|_, conn| {
        conn.answer_with(429, &[("Retry-After", "60")], "slow down");
    });
    // The call itself would have the time.
    let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(120)));
    for error in [soon(|| sandbox.touch()), soon(|| sandbox.exec(["true"]))] {
        assert_eq!(error.kind(), ErrorKind::Status, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    }
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_retry_after_that_is_longer_than_the_call_is_an_error_at_once() {
    let server = Scripted::each_request(|_, conn| {
        conn.answer_with(503, &[("Retry-After", "15")], "starting");
    });
    let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(2)));
    // Exec ends the tries 10 s after its start.
    for error in [soon(|| sandbox.touch()), soon(|| sandbox.exec(["true"]))] {
        assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(15)));
    }
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_cancellation_ends_the_pause_before_another_try() {
    let server = Scripted::each_request(|_, conn| {
        conn.answer_with(503, &[("Retry-After", "8")], "starting");
    });
    let error = cancelled_exec(&sandbox(builder(&server)));
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

/// Calls on a server that closes each connection this long after its answer, silently: how many
/// outcomes are unknown in the end. No other error is let through, and no exec may arrive twice.
fn unknown_outcomes(calls: usize, after: Duration) -> usize {
    let server = Scripted::start(move |mut conn| {
        if let Some(request) = conn.read_request() {
            let body = match request.path.ends_with("/exec") {
                true => EXEC_OK,
                false => "",
            };
            conn.answer(200, body);
            if !after.is_zero() {
                thread::sleep(after);
            }
        }
    });
    let sandbox = sandbox(builder(&server).retry(Retry::attempts(10)));
    let mut unknown = 0;
    for at in 0..calls {
        match at % 2 {
            0 => sandbox.touch().unwrap(),
            _ => match sandbox.exec(["echo".to_owned(), at.to_string()]) {
                Ok(_) => {}
                Err(e) if e.is_outcome_unknown() => unknown += 1,
                Err(e) => panic!("{after:?}, call {at}: {e}"),
            },
        }
    }
    let mut received: HashMap<String, usize> = HashMap::new();
    for request in server.requests() {
        if request.path.ends_with("/exec") {
            *received.entry(request.body_text()).or_default() += 1;
        }
    }
    assert!(
        received.values().all(|&n| n == 1),
        "{after:?}: {received:?}"
    );
    assert!(
        received.len() >= calls / 2 - unknown,
        "{after:?}: {received:?}"
    );
    unknown
}

#[test]
fn a_server_that_closes_idle_connections_at_once_fails_no_call() {
    let unknown = unknown_outcomes(200, Duration::ZERO);
    assert_eq!(unknown, 0, "of 100 outcomes");
}

#[test]
fn a_server_that_closes_idle_connections_a_bit_later_fails_no_call() {
    // At the same time, since they are mostly pauses.
    let counts = thread::scope(|scope| {
        let runs = [50, 300, 1000, 3000].map(|micros| {
            scope.spawn(move || (micros, unknown_outcomes(100, Duration::from_micros(micros))))
        });
        runs.map(|run| run.join().unwrap())
    });
    assert!(
        counts.iter().all(|(_, unknown)| *unknown == 0),
        "unknown outcomes of 50, by microseconds before the close: {counts:?}"
    );
}

#[test]
fn a_server_that_closes_after_a_few_requests_fails_no_call() {
    let server = Scripted::start(|mut conn| {
        for _ in 0..3 {
            let Some(_) = conn.read_request() else { return };
            conn.answer(200, EXEC_OK);
        }
    });
    let sandbox = sandbox(builder(&server));
    for at in 0..60 {
        sandbox.exec(["echo".to_owned(), at.to_string()]).unwrap();
        // Time for the close to arrive, so that the next call sees it.
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(count(&server, "/exec"), 60);
    assert_eq!(server.connections(), 20);
}

#[test]
fn a_server_that_announces_the_close_fails_no_call() {
    let server = Scripted::start(|mut conn| {
        if conn.read_request().is_some() {
            conn.answer_with(200, &[("Connection", "close")], EXEC_OK);
        }
    });
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    for _ in 0..50 {
        sandbox.exec(["true"]).unwrap();
    }
    assert_eq!(server.requests().len(), 50);
}

#[test]
fn a_thousand_calls_use_one_connection() {
    let server = Scripted::always(200, "");
    let sandbox = sandbox(builder(&server));
    for _ in 0..1000 {
        sandbox.touch().unwrap();
    }
    assert_eq!(server.requests().len(), 1000);
    assert_eq!(server.connections(), 1);
}

#[test]
fn every_call_leaves_its_connection_to_the_next() {
    let server = Scripted::each_request(|request, conn| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "PUT" => conn.answer(200, crate::support::scripted::CREATE_OK),
            "DELETE" => conn.answer(404, "no such sandbox"),
            _ if path.ends_with("/exec") => conn.answer(200, EXEC_OK),
            _ => conn.answer(200, "OK"),
        }
    });
    let client = builder(&server).build().unwrap();
    for _ in 0..3 {
        client.health().unwrap();
        let sandbox = client.create("s", noxrunner::SandboxSpec::new()).unwrap();
        sandbox.exec(["true"]).unwrap();
        sandbox.write("f", noise(300_000)).unwrap();
        let mut archive = sandbox.download_archive("/workspace").unwrap();
        io::copy(&mut archive, &mut io::sink()).unwrap();
        assert!(!sandbox.delete().unwrap());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn eight_threads_share_a_client() {
    let server = Scripted::each_request(|request, conn| {
        // The answer is the request's own, so that mixed up ones are seen.
        let json: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let out = serde_json::json!({"exitCode": 0, "stdout": json["cmd"][1]});
        conn.answer(200, out.to_string());
    });
    let client = builder(&server).build().unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                let sandbox = client.sandbox(format!("s{thread}")).unwrap();
                for at in 0..50 {
                    let word = format!("{thread}-{at}");
                    let out = sandbox.exec(["echo", &word]).unwrap();
                    assert_eq!(out.stdout(), word);
                }
            });
        }
    });
    assert_eq!(server.requests().len(), 400);
    assert!(server.connections() <= 8, "{}", server.connections());
}

/// Sends one byte every 50 ms for as long as the client listens.
fn drip(conn: &mut Conn, head: &str) {
    conn.write(head);
    for _ in 0..200 {
        thread::sleep(Duration::from_millis(50));
        if conn.stream().write_all(b"x").is_err() {
            return;
        }
    }
}

#[test]
fn an_answer_that_drips_ends_by_the_deadline() {
    for head in [
        "HTTP/1.1 200 OK\r\nX-Slow: ",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let server = Scripted::start(move |mut conn| {
            conn.read_request();
            drip(&mut conn, head);
        });
        let error = soon(|| sandbox(builder(&server).timeout(SHORT)).touch());
        assert_eq!(error.kind(), ErrorKind::Timeout, "{head:?}: {error}");
        assert_eq!(server.requests().len(), 1, "{head:?}");
    }
}

#[test]
fn an_error_answer_that_stops_is_still_told() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nas far");
        conn.stay_silent();
    });
    let error = soon(|| sandbox(builder(&server).timeout(SHORT)).touch());
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
    assert_eq!(error.response_body(), Some("as far"));
}

const REFUSED_UPLOAD: &str =
    "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 15\r\n\r\nat most 1 MB, p";

#[test]
fn an_answer_that_comes_before_the_upload_ended_is_told() {
    // Larger than what the sockets take in, so that the client can't finish.
    let bytes = noise(20 << 20);
    type Closer = fn(&mut Conn);
    let closers: [(&str, Closer); 2] = [
        // Bytes that nobody read make the kernel send a reset after the answer.
        ("close", |_| {}),
        // What a careful server does: it says that it is done, and reads on for a while.
        ("linger", |conn| {
            let _ = conn.stream().shutdown(Shutdown::Write);
            thread::sleep(Duration::from_millis(300));
        }),
    ];
    for (what, closer) in closers {
        let server = Scripted::start(move |mut conn| {
            if let Some(head) = conn.read_head() {
                conn.keep(&head);
                conn.write(REFUSED_UPLOAD);
                closer(&mut conn);
            }
        });
        let error = soon(|| sandbox(builder(&server)).write("f", &bytes[..]));
        assert_eq!(error.kind(), ErrorKind::Status, "{what}: {error}");
        assert_eq!(error.status(), Some(413), "{what}");
        assert!(
            error.to_string().contains("at most 1 MB"),
            "{what}: {error}"
        );
        assert_eq!(server.requests().len(), 1, "{what}");
    }
}

#[test]
fn a_connection_with_half_an_upload_is_not_used_again() {
    let server = Scripted::start(|mut conn| {
        while let Some(head) = conn.read_head() {
            conn.keep(&head);
            if head.path.contains("upload") {
                // Answered too early, and the connection stays.
                conn.answer(413, "at most 1 MB");
                thread::sleep(Duration::from_millis(200));
                return;
            }
            conn.answer(200, "");
        }
    });
    let sandbox = sandbox(builder(&server));
    let bytes = noise(12 << 20);
    for _ in 0..2 {
        let error = soon(|| sandbox.write("f", &bytes[..]));
        assert_eq!(error.status(), Some(413), "{error}");
        sandbox.touch().unwrap();
    }
    assert_eq!(count(&server, "/touch"), 2);
}

#[test]
fn an_upload_that_nobody_reads_ends_after_the_stall() {
    let server = Scripted::start(|mut conn| {
        if let Some(head) = conn.read_head() {
            conn.keep(&head);
            thread::sleep(SOON);
        }
    });
    let error = soon(|| sandbox(builder(&server).timeout(SHORT)).write("f", noise(12 << 20)));
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("takes no data"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn an_upload_may_take_longer_than_the_timeout_while_bytes_move() {
    let server = Scripted::start(|mut conn| {
        let Some(head) = conn.read_head() else { return };
        let mut body = Vec::new();
        {
            let mut reader = conn.body_reader(&head);
            // Slow, and never still for as long as the timeout.
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(100));
                let mut part = (&mut reader).take(2 << 20);
                part.read_to_end(&mut body).unwrap();
            }
            reader.read_to_end(&mut body).unwrap();
        }
        conn.answer(200, "");
    });
    sandbox(builder(&server).timeout(Duration::from_millis(600)))
        .write("f", noise(20 << 20))
        .unwrap();
}

#[test]
fn the_transfer_timeout_ends_a_download_that_drips() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        drip(
            &mut conn,
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        );
    });
    let sandbox = sandbox(builder(&server).transfer_timeout(SHORT));
    let error = soon(|| {
        let mut reader = sandbox.download_archive("/workspace")?;
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(own_error(&error).kind(), ErrorKind::Timeout, "{error}");
        sandbox.download_dir("/workspace", tempfile::tempdir().unwrap().path().join("d"))
    });
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn the_transfer_timeout_ends_an_upload_that_drips() {
    let server = Scripted::start(|mut conn| {
        let Some(head) = conn.read_head() else { return };
        let mut reader = conn.body_reader(&head);
        let mut part = vec![0; 64 << 10];
        // Until the client goes away.
        while reader.read(&mut part).is_ok_and(|got| got > 0) {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let sandbox = sandbox(builder(&server).transfer_timeout(SHORT));
    let error = soon(|| sandbox.write("f", noise(12 << 20)));
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn a_download_goes_on_as_long_as_bytes_move() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n");
        for _ in 0..16 {
            thread::sleep(Duration::from_millis(50));
            conn.write("x");
        }
    });
    // All of it takes longer than the timeout, no part of it does.
    let sandbox = sandbox(builder(&server).timeout(Duration::from_millis(500)));
    let mut reader = sandbox.download_archive("/workspace").unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [b'x'; 16]);
}

fn own_error(error: &io::Error) -> &Error {
    let inner = error.get_ref().expect("an inner error");
    inner.downcast_ref().expect("an error of this crate")
}

/// A tar.gz with one file of noise.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    let bytes = noise(100_000);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "f", &bytes[..]).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

/// Sends the first half of an archive, and then does as told.
fn half_an_archive(then: fn(Conn)) -> Scripted {
    let archive = archive();
    Scripted::start(move |mut conn| {
        if conn.read_request().is_none() {
            return;
        }
        conn.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            archive.len()
        ));
        conn.write(&archive[..archive.len() / 2]);
        then(conn);
    })
}

#[test]
fn a_network_that_fails_is_not_taken_for_a_damaged_archive() {
    let ends: [(&str, Breaker, ErrorKind); 3] = [
        ("silence", |mut conn| conn.stay_silent(), ErrorKind::Timeout),
        ("close", drop, ErrorKind::Connect),
        (
            "reset",
            |conn| {
                // What was sent must arrive first.
                thread::sleep(Duration::from_millis(50));
                conn.reset();
            },
            ErrorKind::Connect,
        ),
    ];
    at_once(ends, |(what, then, kind)| {
        let server = half_an_archive(then);
        let sandbox = sandbox(builder(&server).timeout(SHORT));
        let dir = tempfile::tempdir().unwrap();
        let error = soon(|| sandbox.download_dir("/workspace", dir.path().join("d")));
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains("cut off"), "{what}: {error}");

        let error = soon(|| sandbox.read("/workspace/f"));
        assert_eq!(error.kind(), kind, "{what}: {error}");

        let mut reader = sandbox.download_archive("/workspace").unwrap();
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(own_error(&error).kind(), kind, "{what}: {error}");
        assert!(!bytes.is_empty());
    });
}

#[test]
fn a_download_without_a_length_that_is_reset_is_not_taken_for_a_whole_one() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\n\r\npart of it");
        // What was sent must arrive first.
        thread::sleep(Duration::from_millis(50));
        conn.reset();
    });
    let mut reader = sandbox(builder(&server))
        .download_archive("/workspace")
        .unwrap();
    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(own_error(&error).kind(), ErrorKind::Connect, "{error}");
    assert_eq!(bytes, b"part of it");
}

#[test]
fn a_download_that_is_dropped_in_the_middle_harms_no_later_call() {
    let whole = archive();
    let server = Scripted::each_request(move |request, conn| match request.method.as_str() {
        "GET" => conn.answer(200, &whole),
        _ => conn.answer(200, EXEC_OK),
    });
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    for _ in 0..5 {
        let mut reader = sandbox.download_archive("/workspace").unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        drop(reader);
        assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
    }
}

#[test]
fn a_download_is_read_on_another_thread() {
    let whole = archive();
    let length = whole.len();
    let server = Scripted::each_request(move |_, conn| conn.answer(200, &whole));
    let sandbox = sandbox(builder(&server));
    let mut reader = sandbox.download_archive("/workspace").unwrap();
    // This thread's own call, meanwhile, has other bounds.
    sandbox.touch().unwrap();
    let read = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    assert_eq!(read.join().unwrap().unwrap(), length);
}

/// An HTTP proxy: tunnels to `target` whatever was asked for, unless it refuses.
pub(crate) struct Proxy {
    pub(crate) url: String,
    heads: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Proxy {
    pub(crate) fn start(target: Option<std::net::SocketAddr>, answer: &'static str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let log = Arc::clone(&heads);
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    let mut reader = BufReader::new(client.try_clone().unwrap());
                    let mut head = Vec::new();
                    loop {
                        let mut line = String::new();
                        reader.read_line(&mut line).unwrap();
                        match line.trim_end() {
                            "" => break,
                            line => head.push(line.to_owned()),
                        }
                    }
                    log.lock().unwrap().push(head);
                    client.write_all(answer.as_bytes()).unwrap();
                    let Some(target) = target else { return };
                    let mut server = TcpStream::connect(target).unwrap();
                    let mut back = (server.try_clone().unwrap(), client);
                    thread::spawn(move || {
                        let _ = io::copy(&mut back.0, &mut back.1);
                        let _ = back.1.shutdown(Shutdown::Both);
                    });
                    let _ = io::copy(&mut reader, &mut server);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        Proxy { url, heads }
    }

    pub(crate) fn heads(&self) -> Vec<Vec<String>> {
        self.heads.lock().unwrap().clone()
    }
}

pub(crate) const TUNNEL: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[test]
fn a_proxy_is_gone_through_by_a_tunnel() {
    let server = Scripted::always(200, EXEC_OK);
    let proxy = Proxy::start(Some(server.address()), TUNNEL);
    let url = proxy.url.replace("http://", "http://me:p%40ss@");
    // The name is the proxy's to look up, and loopback is no exception from what was asked for.
    for host in ["sandboxes.invalid:8080", "127.0.0.1:1"] {
        let builder = Client::builder(format!("http://{host}")).proxy(&url);
        let sandbox = sandbox(builder.token("t0ken"));
        for _ in 0..3 {
            assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
        }
        let head = proxy.heads().pop().unwrap();
        assert_eq!(head[0], format!("CONNECT {host} HTTP/1.1"));
        let basic = "proxy-authorization: Basic bWU6cEBzcw==";
        assert!(
            head.iter().any(|l| l.eq_ignore_ascii_case(basic)),
            "{head:?}"
        );
        // The token is for the server alone.
        assert!(!head.iter().any(|l| l.contains("t0ken")), "{head:?}");
        let request = server.requests().pop().unwrap();
        assert_eq!(request.path, "/v1/sandboxes/s/exec");
        assert_eq!(request.header("host"), Some(host));
        assert_eq!(request.header("proxy-authorization"), None);
    }
    // One tunnel for the three calls of each.
    assert_eq!(proxy.heads().len(), 2);
}

#[test]
fn a_proxy_that_refuses_is_a_connect_error() {
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno!",
        "this is no proxy\r\n\r\n",
        "",
    ] {
        let proxy = Proxy::start(None, answer);
        let builder = Client::builder("http://sandboxes.invalid").proxy(&proxy.url);
        let error = soon(|| sandbox(builder).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::Connect, "{answer:?}: {error}");
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let port = free_port();
    let builder = Client::builder("http://sandboxes.invalid")
        .proxy(format!("http://me:s3cret@127.0.0.1:{port}"));
    let error = soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(
        error.to_string().contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[test]
fn a_proxy_that_falls_silent_ends_by_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let builder = Client::builder("http://sandboxes.invalid")
        .proxy(proxy)
        .connect_timeout(SHORT);
    let error = soon(|| sandbox(builder).exec(["true"]));
    // The request has not been sent, whatever went to the proxy.
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}

#[test]
fn a_proxy_of_another_protocol_is_refused() {
    for proxy in ["socks5://127.0.0.1:1080", "ftp://127.0.0.1", "http://"] {
        let builder = Client::builder("http://127.0.0.1:1").proxy(proxy);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{proxy}: {error}");
        assert!(error.to_string().contains("proxy"), "{error}");
    }
}

#[test]
fn ipv6_loopback_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this machine has no ::1");
        return;
    };
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut host = None;
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("host: ") {
                host = Some(value.to_owned());
            }
            if line.is_empty() {
                break;
            }
        }
        sender.send(host).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            .unwrap();
    });
    let client = Client::new(format!("http://{address}/")).unwrap();
    client.health().unwrap();
    assert_eq!(receiver.recv().unwrap(), Some(address.to_string()));
    server.join().unwrap();
}

#[test]
fn readiness_is_waited_for() {
    const READY: &str = r#"{"exitCode":0,"stdout":"ready\n","stderr":"","durationMs":1}"#;
    let server = Scripted::in_turn(vec![
        (503, "starting"),
        (404, "no pod yet"),
        (
            200,
            r#"{"exitCode":1,"stdout":"","stderr":"","durationMs":1}"#,
        ),
        (500, "no container"),
        (200, READY),
    ]);
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    sandbox.wait_until_ready(Duration::from_secs(20)).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    for request in requests {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["cmd"], serde_json::json!(["echo", "ready"]));
        assert!(body["timeoutSeconds"].as_u64().unwrap() <= 5);
    }
}

#[test]
fn a_sandbox_that_is_never_ready_is_told_with_the_last_reason() {
    let server = Scripted::always(503, "no node has room");
    let sandbox = sandbox(builder(&server));
    let error = soon(|| sandbox.wait_until_ready(Duration::from_secs(1)));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(error.to_string().contains("no node has room"), "{error}");
    assert!(
        error.to_string().contains("readiness of sandbox \"s\""),
        "{error}"
    );
    assert!(server.requests().len() > 2);

    let server = Scripted::always(200, r#"{"exitCode":0,"stdout":"almost"}"#);
    let sandbox = self::sandbox(builder(&server));
    let error = soon(|| sandbox.wait_until_ready(SHORT));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(error.to_string().contains("almost"), "{error}");
}

#[test]
fn a_refused_token_is_not_waited_for() {
    let server = Scripted::always(401, "who are you?");
    let error = soon(|| sandbox(builder(&server)).wait_until_ready(Duration::from_secs(60)));
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn readiness_of_a_silent_server_ends_by_its_timeout() {
    at_once(silent_servers(), |(what, server)| {
        let error = soon(|| sandbox(builder(&server)).wait_until_ready(SHORT));
        assert_eq!(error.kind(), ErrorKind::NotReady, "{what}: {error}");
    });
    let error = soon(|| {
        let client = Client::builder(format!("http://127.0.0.1:{}", free_port()));
        sandbox(client).wait_until_ready(SHORT)
    });
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_long_retry_after_does_not_make_readiness_late() {
    let server = Scripted::each_request(|_: &Request, conn| {
        conn.answer_with(503, &[("Retry-After", "6")], "starting");
    });
    let error = soon(|| sandbox(builder(&server)).wait_until_ready(Duration::from_secs(1)));
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
}
