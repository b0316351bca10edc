//! Failures that a real cluster cannot produce quickly, on a scripted API server.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, ErrorKind, KubernetesBackend, Sandbox, SandboxSpec};
use serde_json::{Value, json};

use crate::support::kubernetes::KEY;
use crate::support::scripted::{CREATE_OK, Conn, EXEC_OK, Request, Scripted};

const DIAL_FAILED: &str =
    "error trying to reach service: dial tcp 10.0.0.1:8080: connect: connection refused";
const CUT_OFF: &str = "error trying to reach service: EOF";

fn client(server: &Scripted) -> Client {
    let backend = KubernetesBackend::builder()
        .api_server(server.url())
        .namespace("ns")
        .image("image:1")
        .agent_image("agent:1")
        .key(KEY)
        .timeout(Duration::from_secs(5))
        .create_timeout(Duration::from_secs(20));
    Client::with_backend(backend.build().unwrap())
}

fn status(code: u16, reason: &str, message: &str) -> String {
    json!({"kind": "Status", "code": code, "reason": reason, "message": message}).to_string()
}

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Get,
    Watch,
    List,
    Delete,
    /// A v1 call through the proxy.
    Agent,
}

fn kind(request: &Request) -> Kind {
    match request.method.as_str() {
        _ if request.path.contains("/proxy/") => Kind::Agent,
        "GET" if request.path.contains("watch=true") => Kind::Watch,
        "GET" if request.path.contains("labelSelector") => Kind::List,
        "GET" => Kind::Get,
        "DELETE" => Kind::Delete,
        _ => Kind::Create,
    }
}

/// A cluster with room for one pod, which gets the metadata that the client has sent.
#[derive(Default)]
struct Cluster {
    pod: Mutex<Option<Value>>,
    created: AtomicUsize,
}

impl Cluster {
    /// Stores a pod that the client creates, with this status.
    fn create(&self, request: &Request, status: Value) -> String {
        let mut pod: Value = serde_json::from_slice(&request.body).unwrap();
        let number = self.created.fetch_add(1, Ordering::SeqCst) + 1;
        pod["metadata"]["uid"] = json!(format!("uid-{number}"));
        pod["metadata"]["resourceVersion"] = json!(number.to_string());
        pod["status"] = status;
        *self.pod.lock().unwrap() = Some(pod.clone());
        pod.to_string()
    }

    fn set_status(&self, status: Value) {
        if let Some(pod) = self.pod.lock().unwrap().as_mut() {
            pod["status"] = status;
        }
    }

    fn event(&self, kind: &str) -> String {
        format!(
            "{}\n",
            json!({"type": kind, "object": *self.pod.lock().unwrap()})
        )
    }

    fn respond_get(&self, conn: &mut Conn) {
        match &*self.pod.lock().unwrap() {
            Some(pod) => conn.respond(200, pod.to_string()),
            None => conn.respond(404, status(404, "NotFound", "pods \"x\" not found")),
        }
    }

    /// Answers everything but calls to the agent as a cluster does whose pods run at once.
    fn respond(&self, request: &Request, conn: &mut Conn) {
        match kind(request) {
            Kind::Create if self.pod.lock().unwrap().is_some() => {
                conn.respond(
                    409,
                    status(409, "AlreadyExists", "pods \"x\" already exists"),
                );
            }
            Kind::Create => conn.respond(201, self.create(request, running())),
            Kind::Get => self.respond_get(conn),
            Kind::Watch => conn.stay_silent(),
            Kind::List => conn.respond(200, json!({"items": []}).to_string()),
            Kind::Delete => {
                *self.pod.lock().unwrap() = None;
                conn.respond(200, "{}");
            }
            Kind::Agent if request.path.ends_with("/exec") => conn.respond(200, EXEC_OK),
            Kind::Agent => conn.respond(200, CREATE_OK),
        }
    }
}

fn running() -> Value {
    json!({"phase": "Running", "podIP": "10.0.0.1"})
}

fn waiting(reason: &str) -> Value {
    let state = json!({"waiting": {"reason": reason, "message": "in its own words"}});
    json!({"phase": "Pending", "containerStatuses": [{"name": "sandbox", "state": state}]})
}

fn of_kind(server: &Scripted, wanted: Kind) -> Vec<Request> {
    let requests = server.requests().into_iter();
    requests.filter(|request| kind(request) == wanted).collect()
}

fn execs(server: &Scripted) -> Vec<Request> {
    let mut calls = of_kind(server, Kind::Agent);
    calls.retain(|request| request.path.ends_with("/exec"));
    calls
}

/// Returns a sandbox of a scripted server that answers execs with these errors first.
fn with_failing_execs(
    failures: Vec<(u16, String)>,
    after_exec: impl Fn(&Cluster) + Send + Sync + 'static,
) -> (Scripted, Sandbox) {
    let cluster = Cluster::default();
    let failures = Mutex::new(failures.into_iter());
    let server = Scripted::each_request(move |request, conn| {
        let is_exec = request.path.ends_with("/exec");
        let failure = is_exec.then(|| failures.lock().unwrap().next()).flatten();
        let Some((code, body)) = failure else {
            return cluster.respond(request, conn);
        };
        after_exec(&cluster);
        conn.respond(code, body);
    });
    let sandbox = client(&server).create("s", SandboxSpec::new()).unwrap();
    (server, sandbox)
}

#[test]
fn exec_that_may_have_reached_the_agent_is_not_repeated() {
    let failures = vec![(500, status(500, "", CUT_OFF))];
    let (server, sandbox) = with_failing_execs(failures, |cluster| {
        let state = json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}});
        let containers = json!([{"name": "sandbox", "state": state}]);
        cluster.set_status(json!({"phase": "Failed", "containerStatuses": containers}));
    });
    let error = sandbox.exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains("OOMKilled"), "{error}");
    assert!(error.is_sandbox_gone());
    assert_eq!(execs(&server).len(), 1);
    // The next call finds the pod in this state.
    let error = sandbox.exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("OOMKilled"), "{error}");
}

#[test]
fn exec_that_did_not_reach_the_agent_runs_in_the_pod_that_replaced_it() {
    let failures = vec![(503, status(503, "ServiceUnavailable", DIAL_FAILED))];
    let (server, sandbox) = with_failing_execs(failures, |cluster| {
        if let Some(pod) = cluster.pod.lock().unwrap().as_mut() {
            pod["metadata"]["uid"] = json!("another");
        }
    });
    assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
    assert_eq!(execs(&server).len(), 2);
}

#[test]
fn exec_that_did_not_reach_the_agent_of_a_deleted_pod_is_not_found() {
    let failures = vec![(500, status(500, "", DIAL_FAILED))];
    let (_server, sandbox) = with_failing_execs(failures, |cluster| {
        *cluster.pod.lock().unwrap() = None;
    });
    let error = sandbox.exec(["true"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.is_sandbox_gone());
}

#[test]
fn refusals_of_the_api_server_and_the_agent_are_told_apart() {
    let role = "pods \"x\" is forbidden: User \"u\" cannot create resource \"pods/proxy\"";
    let failures = vec![
        (403, status(403, "Forbidden", role)),
        (404, json!({"error": "no such sandbox"}).to_string()),
        (400, json!({"error": "invalid workdir"}).to_string()),
    ];
    let (_server, sandbox) = with_failing_execs(failures, |_| {});
    for (kind, text) in [
        (
            ErrorKind::Unauthorized,
            "cannot create resource \"pods/proxy\"",
        ),
        (ErrorKind::NotFound, "no such sandbox"),
        (ErrorKind::InvalidInput, "invalid workdir"),
    ] {
        let error = sandbox.exec(["true"]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// If the API server's proxy, which is written in Go, knows the length of a body, it may cut the response.
#[test]
fn exec_through_the_proxy_has_no_length() {
    let (server, sandbox) = with_failing_execs(Vec::new(), |_| {});
    let short = Command::new("true");
    let long = Command::new("true").timeout(Duration::from_secs(100));
    sandbox.run(short.clone()).unwrap();
    sandbox.run(long).unwrap();
    let live = sandbox.exec_live(short, |_| Ok(())).unwrap();
    assert_eq!(live.exit_code(), 0);
    let execs = execs(&server);
    assert_eq!(execs.len(), 3);
    for exec in execs {
        assert_eq!(exec.header("transfer-encoding"), Some("chunked"));
        assert_eq!(exec.header("content-length"), None);
        assert!(exec.body_text().contains("true"));
    }
}

#[test]
fn tokens_are_sent_to_agents_only() {
    let (server, sandbox) = with_failing_execs(Vec::new(), |_| {});
    sandbox.run(["true"]).unwrap();
    for request in server.requests() {
        let has_token = request.header("x-noxrunner-token").is_some();
        assert_eq!(has_token, kind(&request) == Kind::Agent, "{}", request.path);
    }
    let create = &of_kind(&server, Kind::Create)[0];
    let agent = &of_kind(&server, Kind::Agent)[0];
    let token = agent.header("x-noxrunner-token").unwrap();
    assert!(!create.body_text().contains(token));
}

#[test]
fn pod_that_cannot_start_is_deleted_by_its_uid() {
    let cluster = Cluster::default();
    let server = Scripted::each_request(move |request, conn| match kind(request) {
        Kind::Create => conn.respond(201, cluster.create(request, json!({"phase": "Pending"}))),
        Kind::Watch => {
            cluster.set_status(waiting("ImagePullBackOff"));
            conn.respond(200, cluster.event("MODIFIED"));
        }
        _ => cluster.respond(request, conn),
    });
    let error = client(&server).create("s", SandboxSpec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text = "container \"sandbox\": ImagePullBackOff: in its own words";
    assert!(error.to_string().contains(text), "{error}");
    let deletes = of_kind(&server, Kind::Delete);
    let options: Value = serde_json::from_slice(&deletes[0].body).unwrap();
    assert_eq!(options["preconditions"]["uid"], "uid-1");
    assert_eq!(options["gracePeriodSeconds"], 0);
}

#[test]
fn watch_that_breaks_off_or_is_too_old_is_started_again() {
    let cluster = Cluster::default();
    let watches = AtomicUsize::new(0);
    let server = Scripted::each_request(move |request, conn| match kind(request) {
        Kind::Create => conn.respond(201, cluster.create(request, json!({"phase": "Pending"}))),
        Kind::Watch => match watches.fetch_add(1, Ordering::SeqCst) {
            0 => conn.close(),
            1 => {
                let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}});
                conn.respond(200, gone.to_string());
            }
            _ => {
                cluster.set_status(running());
                conn.respond(200, cluster.event("MODIFIED"));
            }
        },
        _ => cluster.respond(request, conn),
    });
    let sandbox = client(&server).create("s", SandboxSpec::new()).unwrap();
    assert!(
        sandbox
            .info()
            .is_some_and(|info| info.pod_name().starts_with("nox-"))
    );
}

#[test]
fn pod_that_has_ended_is_replaced() {
    let cluster = Cluster::default();
    let server = Scripted::each_request(move |request, conn| cluster.respond(request, conn));
    let client = client(&server);
    client.create("s", SandboxSpec::new()).unwrap();
    let before = server.requests().len();
    client.create("s", SandboxSpec::new()).unwrap();
    let requests = server.requests();
    let kinds: Vec<Kind> = requests[before..].iter().map(kind).collect();
    assert!(
        !kinds.contains(&Kind::Delete),
        "a pod that runs is kept: {kinds:?}"
    );

    let ended = Cluster::default();
    let server = Scripted::each_request(move |request, conn| {
        if kind(request) == Kind::Create && ended.created.load(Ordering::SeqCst) == 0 {
            ended.create(request, json!({"phase": "Succeeded"}));
        }
        ended.respond(request, conn);
    });
    self::client(&server)
        .create("s", SandboxSpec::new())
        .unwrap();
    assert_eq!(of_kind(&server, Kind::Delete).len(), 1);
    assert_eq!(of_kind(&server, Kind::Create).len(), 2);
}

#[test]
fn api_server_that_is_silent_does_not_hold_calls() {
    let server = Scripted::each_request(|_, conn| conn.stay_silent());
    let client = client(&server);
    let started = Instant::now();
    for error in [
        client.health().unwrap_err(),
        client.sandbox("s").unwrap().touch().unwrap_err(),
        client.sandbox("s").unwrap().delete().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn overloaded_api_server_is_asked_again() {
    let cluster = Cluster::default();
    let refused = AtomicUsize::new(0);
    let server = Scripted::each_request(move |request, conn| {
        if kind(request) == Kind::Get && refused.fetch_add(1, Ordering::SeqCst) < 2 {
            return conn.respond(503, status(503, "ServiceUnavailable", "etcd has no leader"));
        }
        cluster.respond(request, conn);
    });
    let error = client(&server).sandbox("s").unwrap().touch().unwrap_err();
    assert!(error.is_sandbox_gone(), "{error}");
    assert_eq!(of_kind(&server, Kind::Get).len(), 3);
}
