//! Leases, on every kind of backend.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use noxrunner::{
    Backend, Client, Command, Error, ErrorKind, HttpBackend, Lease, Retry, Sandbox, SandboxSpec,
    SessionId,
};

use crate::backends::{is_gone, on_each_backend};
use crate::support::exec_override::ExecOverride;
use crate::support::plain_server::PlainServer;
use crate::support::processes::wait_for;
use crate::support::scripted::{CREATE_OK, Scripted};

on_each_backend!(run_all);

/// At the same time, because the checks mostly wait.
fn run_all(client: &Client) {
    std::thread::scope(|scope| {
        for check in [
            outlives_its_ttl,
            ends_with_its_scope,
            is_left_to_others,
            says_that_it_is_lost,
        ] {
            scope.spawn(move || check(client));
        }
    });
}

fn short() -> SandboxSpec {
    SandboxSpec::new().ttl(Duration::from_secs(6))
}

fn outlives_its_ttl(client: &Client) {
    let lease = client.lease_with(short()).unwrap();
    lease.write("kept", "x").unwrap();
    std::thread::sleep(Duration::from_secs(9));
    assert!(lease.lost().is_none(), "{:?}", lease.lost());
    assert_eq!(lease.read("kept").unwrap(), b"x");
    let same = client.sandbox(lease.id()).unwrap();
    lease.close().unwrap();
    assert!(is_gone(&same, "kept"));
}

fn ends_with_its_scope(client: &Client) {
    let lease = client.lease().unwrap();
    let same = client.sandbox(lease.id()).unwrap();
    let job = lease.spawn(["sleep", "1000"]).unwrap();
    lease.write("kept", "x").unwrap();
    assert_eq!(job.try_wait().unwrap(), None);
    let worker = std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            let _lease = lease;
            panic!("the worker fails");
        });
        work.join()
    });
    assert!(worker.is_err());
    assert!(is_gone(&same, "kept"));
    assert_ne!(client.lease().unwrap().id(), client.lease().unwrap().id());
}

fn is_left_to_others(client: &Client) {
    let sandbox = client.lease_with(short()).unwrap().keep();
    sandbox.write("kept", "x").unwrap();
    // Exec and upload do not renew the TTL, as a touch would.
    wait_for("the sandbox expires", || is_gone(&sandbox, "kept"));
}

fn says_that_it_is_lost(client: &Client) {
    let lease = client.lease_with(short()).unwrap();
    wait_for("the sandbox is marked", || {
        lease.exists(".noxrunner/lease").unwrap()
    });
    client.sandbox(lease.id()).unwrap().delete().unwrap();
    wait_for("the loss is noticed", || lease.lost().is_some());
    assert!(lease.lost().unwrap().is_not_found());
    lease.close().unwrap();
}

#[test]
fn lease_works_without_touch() {
    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let client = server.client();
    let lease = client.lease_with(short()).unwrap();
    let mark = ["sh", "-c", ": >kept"];
    assert!(lease.exec(mark).unwrap().success());
    std::thread::sleep(Duration::from_secs(9));
    assert!(lease.lost().is_none(), "{:?}", lease.lost());
    assert!(lease.exec(["test", "-f", "kept"]).unwrap().success());
    let same = client.sandbox(lease.id()).unwrap();
    delete_until_lost(&same, &lease);
    assert!(lease.lost().unwrap().is_not_found());
    // A renewal may just have created an empty one.
    assert!(is_gone(&same, "kept"));
}

#[test]
fn create_with_unknown_outcome_is_deleted() {
    let server = Scripted::start(|mut conn| {
        while let Some(request) = conn.read_request() {
            match &*request.method {
                "DELETE" => conn.respond(204, ""),
                _ => return conn.reset(),
            }
        }
    });
    let client = Client::builder(server.url()).retry(Retry::none());
    let error = client.build().unwrap().lease().unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    let requests = server.requests();
    let methods: Vec<_> = requests.iter().map(|r| &*r.method).collect();
    assert_eq!(methods, ["PUT", "DELETE"]);
    assert_eq!(requests[0].path, requests[1].path);
}

#[test]
fn create_that_was_not_sent_is_not_deleted() {
    let error = Client::new("http://127.0.0.1:1")
        .unwrap()
        .lease()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(
        format!("{error:#}").starts_with("create sandbox"),
        "{error}"
    );
}

#[test]
fn lease_is_lost_after_a_ttl_of_failed_touches() {
    let server = Scripted::each_request(|request, conn| match &*request.method {
        "PUT" => conn.respond(200, CREATE_OK),
        "DELETE" => conn.respond(500, "no"),
        _ => conn.respond(500, "a bad day"),
    });
    let client = Client::new(server.url()).unwrap();
    let lease = client.lease_with(short()).unwrap();
    assert!(lease.lost().is_none());
    wait_for("the loss is noticed", || lease.lost().is_some());
    let lost = lease.lost().unwrap();
    assert_eq!(
        (lost.status(), lost.response_body()),
        (Some(500), Some("a bad day"))
    );
    let touches = server.requests();
    let touches = touches
        .iter()
        .filter(|r| r.path.ends_with("/touch"))
        .count();
    // One touch at once, one after a third of the TTL, then one every twelfth.
    assert!((3..=12).contains(&touches), "{touches}");
    let error = lease.close().unwrap_err();
    assert!(
        format!("{error:#}").starts_with("delete sandbox"),
        "{error}"
    );
}

#[test]
fn drop_on_silent_server_takes_at_most_two_calls() {
    let server = Scripted::start(|mut conn| {
        while let Some(request) = conn.read_request() {
            match &*request.method {
                "PUT" => conn.respond(200, CREATE_OK),
                _ => return conn.stay_silent(),
            }
        }
    });
    let builder = Client::builder(server.url()).timeout(Duration::from_secs(1));
    let client = builder.retry(Retry::none()).build().unwrap();
    let lease = client.lease_with(short()).unwrap();
    // By now a touch is in flight.
    std::thread::sleep(Duration::from_millis(900));
    let started = Instant::now();
    drop(lease);
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn one_failed_call_does_not_lose_a_lease_without_touch() {
    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let calls = AtomicUsize::new(0);
    let exec = move |backend: &HttpBackend, id: &SessionId, command: &Command| match calls
        .fetch_add(1, Ordering::SeqCst)
    {
        // The first two calls find out whether there is a touch, and mark the sandbox.
        2 => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "the connection broke",
        )),
        _ => backend.exec(id, command),
    };
    let backend = HttpBackend::new(&server.url).unwrap();
    let lease = Client::with_backend(ExecOverride { backend, exec });
    let lease = lease.lease_with(short()).unwrap();
    std::thread::sleep(Duration::from_secs(9));
    assert!(lease.lost().is_none(), "{:?}", lease.lost());
    lease.close().unwrap();
}

#[test]
fn recreated_sandbox_is_a_lost_lease() {
    let Some(server) = PlainServer::start(&["--recreate"]) else {
        return;
    };
    let client = server.client();
    let lease = client.lease_with(short()).unwrap();
    wait_for("the sandbox is marked", || {
        lease.exists(".noxrunner/lease").unwrap()
    });
    client.sandbox(lease.id()).unwrap().delete().unwrap();
    wait_for("the loss is noticed", || lease.lost().is_some());
    assert!(lease.lost().unwrap().is_not_found());
}

/// Deletes the sandbox of a lease on a backend without touch, and waits until the loss is noticed. A renewal
/// there is a probe and a create. If the delete comes between the two, the sandbox exists again.
fn delete_until_lost(sandbox: &Sandbox, lease: &Lease) {
    for _ in 0..5 {
        sandbox.delete().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if lease.lost().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    panic!("the loss was not noticed after five deletes");
}

#[test]
fn create_sent_once_is_deleted_after_failed_retries() {
    // The first attempt is received but not answered. Later ones are refused.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        std::io::Read::read(&mut first, &mut [0; 4096]).unwrap();
        drop((first, listener));
    });
    let error = Client::new(format!("http://{address}")).unwrap().lease();
    let error = error.unwrap_err();
    seen.join().unwrap();
    assert!(error.is_outcome_unknown(), "{error:?}");
}
