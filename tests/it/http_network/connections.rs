//! Kept connections, and servers that let go of them.

use super::*;

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
        sandbox.run(["echo".to_owned(), at.to_string()]).unwrap();
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
        sandbox.run(["true"]).unwrap();
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
        sandbox.run(["true"]).unwrap();
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
