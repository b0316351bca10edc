//! The checker of servers, on servers that keep the protocol and on those that break one rule each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use noxrunner::conformance::{Conformance, Finding, Level, Outcome, Report};
use noxrunner::{Cancel, ErrorKind, HttpBackend};

use crate::support::plain_server::PlainServer;
use crate::support::scripted::Scripted;

fn checks(url: &str) -> Conformance {
    Conformance::new(HttpBackend::new(url).unwrap())
}

fn shown(finding: &Finding) {
    let (name, level) = (finding.name(), finding.level());
    println!("{:?} {level} {name}: {}", finding.outcome(), finding.seen());
}

/// All but these.
#[track_caller]
fn assert_all_passed(report: &Report, but: &[(&str, Outcome)]) {
    let other = |finding: &&Finding| finding.outcome() != Outcome::Passed;
    let others = report.findings().iter().filter(other);
    let found: Vec<_> = others.clone().map(|f| (f.name(), f.outcome())).collect();
    assert_eq!(found, but, "{:#?}", others.collect::<Vec<_>>());
    assert!(report.findings().len() >= 50);
    assert_eq!(report.left_behind(), [""; 0]);
    assert!(report.abilities().iter().all(|(_, has)| *has));
}

#[cfg(feature = "server")]
#[test]
fn our_server_keeps_every_rule() {
    use noxrunner::server::Server;
    for isolation in [noxrunner::Isolation::Namespaces, noxrunner::Isolation::None] {
        let (backend, _dir) = crate::support::local_backend(isolation);
        let server = Server::builder(backend).tcp("127.0.0.1:0").no_auth();
        let server = crate::server::Running::start(server);
        let url = format!("http://{}", server.addr());
        let report = checks(&url).run(shown).unwrap();
        assert!(report.conforms());
        // Where they can be seen from outside, there is no isolation.
        let unseen = [("delete-ends-processes", Outcome::Skipped)];
        let isolated = isolation == noxrunner::Isolation::Namespaces;
        assert_all_passed(&report, if isolated { &unseen } else { &[] });
    }
}

#[test]
fn another_server_keeps_every_rule() {
    let Some(server) = PlainServer::start(&[]) else {
        return;
    };
    assert_all_passed(&checks(&server.url).run(shown).unwrap(), &[]);
}

#[test]
fn servers_that_are_odd_in_ways_that_are_allowed_pass() {
    let re_creates = [("exec-unknown", Outcome::Failed)];
    let servers = [
        (["--slow-start", "1.5"].as_slice(), [].as_slice()),
        (&["--close"], &[]),
        // The text does not allow that, but no other check may take it for something else.
        (&["--recreate"], &re_creates),
    ];
    std::thread::scope(|scope| {
        for (options, but) in servers {
            scope.spawn(move || {
                let root = tempfile::tempdir().unwrap();
                let at = ["--root", root.path().to_str().unwrap()];
                let Some(server) = PlainServer::start(&[options, &at].concat()) else {
                    return;
                };
                let report = checks(&server.url).run(|_| {}).unwrap();
                assert_all_passed(&report, but);
                assert_eq!(sandboxes(root.path()), 0, "{options:?}");
            });
        }
    });
}

#[test]
fn a_server_that_falls_silent_ends_the_run_soon() {
    let server = Scripted::each_request(|request, conn| match &*request.method {
        "GET" => conn.answer(200, "OK"),
        "POST" => conn.answer(404, "no such sandbox"),
        _ => conn.stay_silent(),
    });
    let builder = HttpBackend::builder(server.url()).timeout(std::time::Duration::from_secs(1));
    let started = std::time::Instant::now();
    let report = Conformance::new(builder.build().unwrap()).run(|_| {});
    let report = report.unwrap();
    assert!(!report.conforms());
    assert!(started.elapsed().as_secs() < 60);
    let not_asked = |finding: &&Finding| finding.seen().contains("not asked");
    assert!(report.findings().iter().filter(not_asked).count() > 10);
}

#[test]
fn a_minimal_backend_conforms() {
    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let report = checks(&server.url).run(shown).unwrap();
    assert!(report.conforms());
    for finding in report.findings() {
        let name = finding.name();
        let lacks = ["touch-", "files-", "upload-", "download-"];
        let lacks = lacks.iter().any(|call| name.starts_with(call));
        let wanted = if lacks {
            Outcome::Skipped
        } else {
            Outcome::Passed
        };
        assert_eq!(finding.outcome(), wanted, "{name}: {}", finding.seen());
    }
    let abilities = report.abilities();
    assert!(abilities.contains(&("upload", false)) && abilities.contains(&("jobs", true)));
}

/// The faults of the server in Python have the names of the checks.
fn faults() -> BTreeSet<&'static str> {
    let script = include_str!("../support/plain_server.py");
    let fault = regex_lite::Regex::new(r#"fault\("([a-z0-9-]+)"\)"#).unwrap();
    let names = fault.captures_iter(script);
    names.map(|found| found.get(1).unwrap().as_str()).collect()
}

#[test]
fn every_check_finds_the_server_that_breaks_its_rule() {
    let Some(server) = PlainServer::start(&[]) else {
        return;
    };
    // Their names are all that is wanted.
    let cancel = Cancel::new();
    let all = checks(&server.url).cancel_on(&cancel);
    let all = all.run(|_| cancel.cancel()).unwrap();
    let names: BTreeSet<_> = all.findings().iter().map(Finding::name).collect();
    assert_eq!(
        names,
        faults(),
        "each check has a server that breaks its rule"
    );

    // Most of it is waiting.
    let left = Mutex::new(names.into_iter());
    let next = || left.lock().unwrap().next();
    let passed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(name) = next() {
                    let server = PlainServer::start(&["--fault", name]).unwrap();
                    let report = checks(&server.url)
                        .only([name])
                        .unwrap()
                        .run(shown)
                        .unwrap();
                    let [finding] = report.findings() else {
                        panic!("one check was asked for");
                    };
                    if finding.outcome() != Outcome::Failed {
                        passed.lock().unwrap().push((name, finding.outcome()));
                    }
                    assert_eq!(report.conforms(), finding.level() != Level::Must);
                }
            });
        }
    });
    let passed = passed.into_inner().unwrap();
    assert!(passed.is_empty(), "these did not fail: {passed:?}");
}

/// The sandboxes that a server in Python has.
fn sandboxes(root: &Path) -> usize {
    fs::read_dir(root).unwrap().count()
}

#[test]
fn nothing_stays_when_it_is_interrupted() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = PlainServer::start(&["--root", root.path().to_str().unwrap()]) else {
        return;
    };
    let cancel = Cancel::new();
    let report = checks(&server.url).cancel_on(&cancel).run(|finding| {
        if finding.name() == "exec-stdin" {
            assert!(sandboxes(root.path()) > 0);
            cancel.cancel();
        }
    });
    let report = report.unwrap();
    let after = report
        .findings()
        .iter()
        .skip_while(|f| f.name() != "exec-stdin");
    for finding in after.skip(1) {
        let seen = (finding.outcome(), finding.seen());
        assert_eq!(
            seen,
            (Outcome::Skipped, "interrupted"),
            "{}",
            finding.name()
        );
    }
    assert!(!report.conforms(), "nobody knows");
    assert_eq!(report.left_behind(), [""; 0]);
    assert_eq!(sandboxes(root.path()), 0);
}

#[test]
fn what_is_left_behind_is_told() {
    let Some(server) = PlainServer::start(&["--fault", "delete-answer"]) else {
        return;
    };
    let report = checks(&server.url).only(["exec-streams"]).unwrap();
    let report = report.run(shown).unwrap();
    assert_eq!(report.left_behind().len(), 1);
    assert!(report.left_behind()[0].starts_with("conformance-"));
}

#[test]
fn what_says_nothing_of_the_protocol_is_an_error() {
    let run = |url: &str| {
        checks(url)
            .run(|_| panic!("nothing can be asked"))
            .unwrap_err()
    };
    assert_eq!(run("http://127.0.0.1:1").kind(), ErrorKind::Connect);
    let Some(server) = PlainServer::start(&["--token", "s3cret"]) else {
        return;
    };
    let error = run(&server.url);
    assert_eq!(
        (error.kind(), error.status()),
        (ErrorKind::Unauthorized, Some(401))
    );
    let error = checks(&server.url).only(["exec"]).unwrap_err();
    assert!(
        format!("{error:#}").contains("no check \"exec\""),
        "{error}"
    );
}

#[test]
fn a_server_of_another_kind_fails_and_does_not_hang() {
    let server = Scripted::always(200, "<html>OK</html>");
    let report = checks(&server.url()).run(|_| {}).unwrap();
    assert!(!report.conforms());
    assert!(report.count(Level::Must, Outcome::Failed) > 5);
}
