//! The connection pool, and servers that close idle connections.

use std::sync::atomic::AtomicBool;

use super::*;

/// The client expects a server that closes after each response to do so within this time.
const CLOSES_WITHIN: Duration = Duration::from_millis(8);

/// Makes calls on a server that closes each connection, silently, this long after its response. Returns the
/// number of unknown outcomes and the longest delay of a close. Asserts that there is no other error and
/// that no exec arrives twice.
fn unknown_outcomes(calls: usize, after: Duration) -> (usize, Duration) {
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let slowest = Arc::clone(&longest);
    let server = Scripted::start(move |mut conn| {
        if let Some(request) = conn.read_request() {
            let body = match request.path.ends_with("/exec") {
                true => EXEC_OK,
                false => "",
            };
            let answered = Instant::now();
            conn.respond(200, body);
            if !after.is_zero() {
                thread::sleep(after);
            }
            drop(conn);
            let mut slowest = slowest.lock().unwrap();
            *slowest = answered.elapsed().max(*slowest);
        }
    });
    let sandbox = sandbox(builder(&server).retry(Retry::attempts(10)));
    let mut unknown = 0;
    for at in 0..calls {
        if at % 2 == 0 {
            sandbox.touch().unwrap();
            continue;
        }
        match sandbox.exec(["echo".to_owned(), at.to_string()]) {
            Ok(_) => {}
            Err(e) if e.is_outcome_unknown() => unknown += 1,
            Err(e) => panic!("{after:?}, call {at}: {e}"),
        }
    }
    assert_no_exec_was_repeated(&server, calls / 2 - unknown);
    let longest = *longest.lock().unwrap();
    (unknown, longest)
}

fn assert_no_exec_was_repeated(server: &Scripted, at_least: usize) {
    let mut received: HashMap<String, usize> = HashMap::new();
    for request in server.requests() {
        if request.path.ends_with("/exec") {
            *received.entry(request.body_text()).or_default() += 1;
        }
    }
    assert!(received.values().all(|&n| n == 1), "{received:?}");
    assert!(received.len() >= at_least, "{received:?}");
}

/// Asserts that no outcome is unknown. On a busy machine the close may arrive later than the server means and
/// later than a client can expect. Such a run proves nothing and is repeated.
fn assert_outcomes_are_known(calls: usize, after: Duration) {
    for _ in 0..100 {
        let ((unknown, close), pause) = longest_pause(|| unknown_outcomes(calls, after));
        if unknown == 0 {
            return;
        }
        let times =
            format!("close after {close:?}, meant {after:?}; a thread paused for {pause:?}");
        assert!(
            close + pause > CLOSES_WITHIN,
            "{unknown} unknown outcomes: {times}"
        );
        println!("repeated on a busy machine: {times}");
    }
    panic!("{after:?}: the machine was too busy in every run");
}

/// Returns with the result of a call how long a thread that wants to sleep for 1 ms sleeps at most meanwhile.
fn longest_pause<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pauses = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::SeqCst) {
                let start = Instant::now();
                thread::sleep(Duration::from_millis(1));
                longest = longest.max(start.elapsed());
            }
            longest
        });
        let result = call();
        done.store(true, Ordering::SeqCst);
        (result, pauses.join().unwrap())
    })
}

#[test]
fn calls_survive_immediate_close_of_idle_connections() {
    assert_outcomes_are_known(200, Duration::ZERO);
}

#[test]
fn calls_survive_delayed_close_of_idle_connections() {
    at_once([50, 300, 1000, 3000], |micros| {
        assert_outcomes_are_known(100, Duration::from_micros(micros));
    });
}

#[test]
fn calls_survive_close_after_a_few_requests() {
    let server = Scripted::start(|mut conn| {
        for _ in 0..3 {
            let Some(_) = conn.read_request() else { return };
            conn.respond(200, EXEC_OK);
        }
    });
    let sandbox = sandbox(builder(&server));
    for at in 1..=60 {
        sandbox.run(["echo".to_owned(), at.to_string()]).unwrap();
        if at % 3 == 0 {
            // The next call must find the connection closed.
            server.wait_for_closes(at / 3);
        }
    }
    assert_eq!(count(&server, "/exec"), 60);
    assert_eq!(server.connections(), 20);
}

#[test]
fn calls_survive_announced_close() {
    let server = Scripted::start(|mut conn| {
        if conn.read_request().is_some() {
            conn.respond_with(200, &[("Connection", "close")], EXEC_OK);
        }
    });
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    for _ in 0..50 {
        sandbox.run(["true"]).unwrap();
    }
    assert_eq!(server.requests().len(), 50);
}

#[test]
fn thousand_calls_use_one_connection() {
    let server = Scripted::always(200, "");
    let sandbox = sandbox(builder(&server));
    for _ in 0..1000 {
        sandbox.touch().unwrap();
    }
    assert_eq!(server.requests().len(), 1000);
    assert_eq!(server.connections(), 1);
}

#[test]
fn every_call_returns_its_connection_to_the_pool() {
    let server = Scripted::each_request(|request, conn| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "PUT" => conn.respond(200, crate::support::scripted::CREATE_OK),
            "DELETE" => conn.respond(404, "no such sandbox"),
            _ if path.ends_with("/exec") => conn.respond(200, EXEC_OK),
            _ => conn.respond(200, "OK"),
        }
    });
    let client = builder(&server).build().unwrap();
    for _ in 0..3 {
        client.health().unwrap();
        let sandbox = client.create("s", noxrunner::SandboxSpec::new()).unwrap();
        sandbox.run(["true"]).unwrap();
        sandbox.write("f", noise(300_000)).unwrap();
        let mut archive = sandbox.download_archive("/workspace").unwrap();
        io::copy(&mut archive, &mut io::sink()).unwrap();
        assert!(!sandbox.delete().unwrap());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn threads_share_a_client() {
    let server = Scripted::each_request(|request, conn| {
        // The response repeats the request, so that a mix-up is noticed.
        let json: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let out = serde_json::json!({"exitCode": 0, "stdout": json["cmd"][1]});
        conn.respond(200, out.to_string());
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
