//! The conformance checker, against servers that keep the protocol and servers that each break one rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use noxrunner::conformance::{Conformance, Finding, Level, Outcome, Report};
use noxrunner::{Cancel, ErrorKind, HttpBackend};

use crate::support::in_parallel;
use crate::support::plain_server::PlainServer;
use crate::support::quirky_server::Quirks;
use crate::support::scripted::Scripted;

fn checks(url: &str) -> Conformance {
    Conformance::new(HttpBackend::new(url).unwrap())
}

fn print_finding(finding: &Finding) {
    let (name, level) = (finding.name(), finding.level());
    println!("{:?} {level} {name}: {}", finding.outcome(), finding.seen());
}

/// Asserts that every check passed except these, which had these outcomes.
#[track_caller]
fn assert_all_passed(report: &Report, exceptions: &[(&str, Outcome)]) {
    let not_passed = |finding: &&Finding| finding.outcome() != Outcome::Passed;
    let others = report.findings().iter().filter(not_passed);
    let found: Vec<_> = others.clone().map(|f| (f.name(), f.outcome())).collect();
    assert_eq!(found, exceptions, "{:#?}", others.collect::<Vec<_>>());
    assert!(report.findings().len() >= 50);
    assert_eq!(report.left_behind(), [""; 0]);
    assert!(report.abilities().iter().all(|(_, has)| *has));
}

/// Runs all checks against several servers at the same time, because a run mostly waits.
#[test]
fn conforming_servers_pass() {
    let mut runs: Vec<(&str, fn())> = vec![
        ("server in Python", || plain_server_passes(&[], &[])),
        ("server that starts slowly", || {
            plain_server_passes(&["--slow-start", "1.5"], &[]);
        }),
        ("server that closes connections", || {
            plain_server_passes(&["--close"], &[]);
        }),
        ("server that recreates sandboxes", || {
            // The protocol forbids this, but no other check may mistake it for another fault.
            let recreated = [("exec-unknown", Outcome::Failed)];
            plain_server_passes(&["--recreate"], &recreated);
        }),
        ("minimal server", minimal_server_passes),
    ];
    #[cfg(feature = "server")]
    runs.extend::<[(&str, fn()); 2]>([
        ("own server with namespaces", || {
            // Processes in a PID namespace cannot be seen from outside.
            let unseen = [("delete-ends-processes", Outcome::Skipped)];
            own_server_passes(noxrunner::Isolation::Namespaces, &unseen);
        }),
        ("own server without isolation", || {
            own_server_passes(noxrunner::Isolation::None, &[]);
        }),
    ]);
    let count = runs.len();
    in_parallel(runs, count, |(name, run)| {
        println!("conformance: {name}");
        run();
    });
}

#[cfg(feature = "server")]
fn own_server_passes(isolation: noxrunner::Isolation, exceptions: &[(&str, Outcome)]) {
    use noxrunner::server::Server;
    let (backend, _dir) = crate::support::local_backend(isolation);
    let server = Server::builder(backend).tcp("127.0.0.1:0").no_auth();
    let server = crate::server::RunningServer::start(server);
    let url = format!("http://{}", server.addr());
    let report = checks(&url).run(print_finding).unwrap();
    assert!(report.conforms());
    assert_all_passed(&report, exceptions);
}

fn plain_server_passes(options: &[&str], exceptions: &[(&str, Outcome)]) {
    let root = tempfile::tempdir().unwrap();
    let with_root = ["--root", root.path().to_str().unwrap()];
    let Some(server) = PlainServer::start(&[options, &with_root].concat()) else {
        return;
    };
    let report = checks(&server.url).run(print_finding).unwrap();
    assert_all_passed(&report, exceptions);
    assert_eq!(count_sandboxes(root.path()), 0, "{options:?}");
}

fn minimal_server_passes() {
    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let report = checks(&server.url).run(print_finding).unwrap();
    assert!(report.conforms());
    for finding in report.findings() {
        let name = finding.name();
        let optional = ["touch-", "files-", "upload-", "download-"];
        let expected = match optional.iter().any(|call| name.starts_with(call)) {
            true => Outcome::Skipped,
            false => Outcome::Passed,
        };
        assert_eq!(finding.outcome(), expected, "{name}: {}", finding.seen());
    }
    let abilities = report.abilities();
    assert!(abilities.contains(&("upload", false)) && abilities.contains(&("jobs", true)));
}

/// The rules that the control plane breaks.
const BROKEN_BY_CONTROL_PLANE: &[&str] = &[
    "health-ok",
    "health-text",
    "create-repeats-ttl",
    "touch-unknown",
    "exec-arguments",
    "exec-unknown",
    "exec-timeout-children",
    "exec-timeout-code",
    "exec-timeout-output",
    "upload-unknown",
    "download-file",
    "download-missing",
    "download-unknown",
    "error-json",
];

/// Asserts that exactly these checks fail, and that of the extension for live output, which none has.
fn assert_failures(name: &str, quirks: Quirks, expected: &[&str]) {
    crate::backends::quirky_backend(quirks, |backend| {
        let report = Conformance::new(backend).run(print_finding).unwrap();
        let failed = |finding: &&Finding| finding.outcome() == Outcome::Failed;
        let failed = report.findings().iter().filter(failed);
        let failed: BTreeSet<_> = failed.map(Finding::name).collect();
        let expected = expected.iter().copied().chain(["exec-live"]);
        assert_eq!(failed, expected.collect(), "{name}");
        assert_eq!(report.left_behind(), [""; 0], "{name}");
    });
}

#[test]
fn deviations_of_other_servers_are_found() {
    let without_exit_codes = ["exec-exit-code", "exec-not-found", "exec-signal-code"];
    let of_old = [BROKEN_BY_CONTROL_PLANE, &without_exit_codes].concat();
    let of_python = [
        "create-expiry",
        "exec-answer",
        "exec-not-utf8",
        "download-gzip",
    ];
    let runs: [(&str, Quirks, &[&str]); 4] = [
        (
            "control plane",
            Quirks::control_plane(),
            BROKEN_BY_CONTROL_PLANE,
        ),
        ("old control plane", Quirks::old_control_plane(), &of_old),
        ("python backend", Quirks::python_backend(), &of_python),
        ("minimal backend", Quirks::minimal(), &[]),
    ];
    in_parallel(runs, 4, |(name, quirks, expected)| {
        assert_failures(name, quirks, expected);
    });
}

#[test]
fn silent_server_ends_run_early() {
    let server = Scripted::each_request(|request, conn| match &*request.method {
        "GET" => conn.respond(200, "OK"),
        "POST" => conn.respond(404, "no such sandbox"),
        _ => conn.stay_silent(),
    });
    let builder = HttpBackend::builder(server.url()).timeout(std::time::Duration::from_secs(1));
    let started = std::time::Instant::now();
    let report = Conformance::new(builder.build().unwrap()).run(|_| {});
    let report = report.unwrap();
    assert!(!report.conforms());
    // One timeout for each of the 71 checks would take longer.
    assert!(started.elapsed().as_secs() < 120);
    let not_sent = |finding: &&Finding| finding.seen().contains("not sent");
    assert!(report.findings().iter().filter(not_sent).count() > 10);
}

/// The faults that the server in Python can have. Each is named after the check that finds it.
fn faults() -> BTreeSet<&'static str> {
    let script = include_str!("../support/plain_server.py");
    let fault = regex_lite::Regex::new(r#"fault\("([a-z0-9-]+)"\)"#).unwrap();
    let names = fault.captures_iter(script);
    names.map(|found| found.get(1).unwrap().as_str()).collect()
}

#[test]
fn every_check_finds_its_fault() {
    let Some(server) = PlainServer::start(&[]) else {
        return;
    };
    // Cancelled at once: only the names of the checks are needed.
    let cancel = Cancel::new();
    let all = checks(&server.url).cancel_on(&cancel);
    let all = all.run(|_| cancel.cancel()).unwrap();
    let names: BTreeSet<_> = all.findings().iter().map(Finding::name).collect();
    assert_eq!(names, faults(), "every check needs a fault to find");

    // The check of the TTL waits longest, so it starts first.
    let is_first = |name: &&str| name.starts_with("ttl-");
    let (first, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(is_first);
    let missed = Mutex::new(Vec::new());
    in_parallel(first.into_iter().chain(rest), 12, |name| {
        let server = PlainServer::start(&["--fault", name]).unwrap();
        let check = checks(&server.url).only([name]).unwrap();
        let report = check.run(print_finding).unwrap();
        let [finding] = report.findings() else {
            panic!("{name}: more than one check ran");
        };
        if finding.outcome() != Outcome::Failed {
            missed.lock().unwrap().push((name, finding.outcome()));
        }
        assert_eq!(report.conforms(), finding.level() != Level::Must);
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "these checks did not fail: {missed:?}");
}

/// The number of sandboxes that a server in Python has.
fn count_sandboxes(root: &Path) -> usize {
    fs::read_dir(root).unwrap().count()
}

#[test]
fn cancelled_run_deletes_its_sandboxes() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = PlainServer::start(&["--root", root.path().to_str().unwrap()]) else {
        return;
    };
    let cancel = Cancel::new();
    let report = checks(&server.url).cancel_on(&cancel).run(|finding| {
        if finding.name() == "exec-stdin" {
            assert!(count_sandboxes(root.path()) > 0);
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
        let expected = (Outcome::Skipped, "interrupted");
        assert_eq!(seen, expected, "{}", finding.name());
    }
    assert!(!report.conforms(), "an incomplete run proves nothing");
    assert_eq!(report.left_behind(), [""; 0]);
    assert_eq!(count_sandboxes(root.path()), 0);
}

#[test]
fn sandboxes_left_behind_are_reported() {
    let Some(server) = PlainServer::start(&["--fault", "delete-answer"]) else {
        return;
    };
    let report = checks(&server.url).only(["exec-streams"]).unwrap();
    let report = report.run(print_finding).unwrap();
    assert_eq!(report.left_behind().len(), 1);
    assert!(report.left_behind()[0].starts_with("conformance-"));
}

#[test]
fn run_that_cannot_start_is_an_error() {
    let run = |url: &str| checks(url).run(|_| panic!("no check can run")).unwrap_err();
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
        format!("{error:#}").contains("no such check: \"exec\""),
        "{error}"
    );
}

#[test]
fn other_http_server_fails_without_hanging() {
    let server = Scripted::always(200, "<html>OK</html>");
    let report = checks(&server.url()).run(|_| {}).unwrap();
    assert!(!report.conforms());
    assert!(report.count(Level::Must, Outcome::Failed) > 5);
}
