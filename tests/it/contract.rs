//! The contract of every backend, checked through `Client`.

/// Files and directories.
mod files;
/// Live output.
mod live;
/// Standard input of local commands.
mod stdin;

use crate::support::ErrorText as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxrunner::{
    Backend, Client, Command, ErrorKind, Isolation, LocalBackend, Sandbox, SandboxSpec, SessionId,
};

use crate::backends;
use crate::support::exec_override::ExecOverride;
use crate::support::processes::{wait_for, with_longer_times};
use crate::support::quirky_server::Quirks;
use crate::support::{in_parallel, local_backend, v1_server};

type Check = fn(&Client);

/// One name per rule, printed so that a failure shows which rule it is.
const CHECKS: &[(&str, Check)] = &[
    // This check waits longest, so it starts first.
    ("touch and TTL", ttl),
    ("health", health),
    ("create is idempotent and keeps files", repeated_create),
    ("unusual ids name separate sandboxes", unusual_ids),
    (
        "every call reports an unknown sandbox as not found",
        unknown_sandbox,
    ),
    ("delete returns whether the sandbox existed", delete),
    ("exit codes, streams and arguments are exact", exec),
    ("environment and workdir", environment),
    ("a missing program exits with 127", missing_program),
    ("stdin is empty", empty_stdin),
    (
        "a timeout ends the command and keeps its output",
        time_limit,
    ),
    (
        "a background child does not delay the call",
        background_child,
    ),
    ("long output is truncated and marked", long_output),
    ("files survive a round trip", files::files),
    ("directories survive a round trip", files::directories),
    ("paths do not lead out of the sandbox", files::paths),
    ("readiness", readiness),
    ("sandboxes share nothing", isolation),
    ("concurrent execs", concurrent_execs),
];

/// Runs the checks for every backend.
pub(crate) fn run_all(client: &Client) {
    run_all_except(client, &[]);
}

/// Runs the checks that a server with deviations can pass.
fn run_all_except(client: &Client, exceptions: &[&str]) {
    let all = [CHECKS, live::CHECKS].concat();
    for exception in exceptions {
        let is_check = all.iter().any(|(name, _)| name == exception);
        assert!(is_check, "no such check: {exception}");
    }
    run(
        all.into_iter()
            .filter(|(name, _)| !exceptions.contains(name)),
        client,
    );
}

/// Runs the checks for backends that pass output on while the command runs.
#[cfg(feature = "server")]
pub(crate) fn run_streaming(client: &Client) {
    // The longest checks first.
    run([live::STREAMING, CHECKS, live::CHECKS].concat(), client);
}

/// Runs the checks for local backends.
fn run_local(client: &Client) {
    run(
        [live::STREAMING, CHECKS, live::CHECKS, stdin::CHECKS].concat(),
        client,
    );
}

fn run(checks: impl IntoIterator<Item = (&'static str, Check)>, client: &Client) {
    in_parallel(checks, 4, |(name, check)| {
        println!("contract: {name}");
        check(client);
    });
}

#[test]
fn plain_processes_fulfil_the_contract() {
    let (backend, _dir) = local_backend(Isolation::None);
    let client = Client::with_backend(backend);
    run_local(&client);
}

#[test]
fn persistent_sandboxes_fulfil_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::builder().persistent(true);
    let client = Client::with_backend(backend.state_dir(dir.path()).build().unwrap());
    run_local(&client);
}

#[test]
fn namespaces_fulfil_the_contract() {
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let client = Client::with_backend(backend);
    run_local(&client);
}

#[test]
fn landlock_fulfils_the_contract() {
    let (backend, _dir) = local_backend(Isolation::Landlock);
    let client = Client::with_backend(backend);
    run_local(&client);
}

#[test]
fn http_backend_fulfils_the_contract() {
    let (backend, _dir) = local_backend(Isolation::None);
    let server = v1_server::serve(backend);
    run_all(&Client::new(server.url()).unwrap());
}

/// Checks that fail on the control plane with any client: it creates unknown sandboxes, does not say that
/// output was cut, and reports a timeout only as an error.
const OF_CONTROL_PLANE: &[&str] = &[
    "touch and TTL",
    "every call reports an unknown sandbox as not found",
    "delete returns whether the sandbox existed",
    "environment and workdir",
    "a timeout ends the command and keeps its output",
    "long output is truncated and marked",
    "readiness",
    "live exec of an unknown sandbox is not found",
    "a timeout keeps the live output",
];

#[test]
fn control_plane_fulfils_the_rest_of_the_contract() {
    backends::quirky(Quirks::control_plane(), |client| {
        run_all_except(client, OF_CONTROL_PLANE);
    });
}

#[test]
fn old_control_plane_fulfils_the_rest_of_the_contract() {
    let without_exit_codes = [
        "exit codes, streams and arguments are exact",
        "a missing program exits with 127",
        "live output is complete, with the exit code",
        "live exec of a missing program exits with 127",
        "a long timeout does not change the caps",
    ];
    let exceptions = [OF_CONTROL_PLANE, &without_exit_codes].concat();
    backends::quirky(Quirks::old_control_plane(), |client| {
        run_all_except(client, &exceptions);
    });
}

#[test]
fn python_backend_fulfils_the_rest_of_the_contract() {
    backends::quirky(Quirks::python_backend(), |client| {
        run_all_except(client, &["long output is truncated and marked"]);
    });
}

#[test]
fn minimal_backend_fulfils_the_rest_of_the_contract() {
    let need_files_or_touch = [
        "touch and TTL",
        "create is idempotent and keeps files",
        "unusual ids name separate sandboxes",
        "every call reports an unknown sandbox as not found",
        "environment and workdir",
        "a missing program exits with 127",
        "long output is truncated and marked",
        "files survive a round trip",
        "directories survive a round trip",
        "paths do not lead out of the sandbox",
        "sandboxes share nothing",
        "live exec runs commands with stdin",
    ];
    backends::quirky(Quirks::minimal(), |client| {
        run_all_except(client, &need_files_or_touch);
        let sandbox = create(client, "minimal");
        for error in [
            sandbox.write("f", "x").unwrap_err(),
            sandbox.upload_dir("tests/support", ".").unwrap_err(),
            sandbox.run(Command::new("cat").stdin("x")).unwrap_err(),
            sandbox.read("/usr/bin/env").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:#}");
            assert!(error.chain().contains("this backend has no"), "{error:#}");
        }
    });
}

#[test]
fn custom_backend_fulfils_the_contract() {
    let (backend, _dir) = local_backend(Isolation::None);
    let exec =
        |backend: &LocalBackend, id: &SessionId, command: &Command| backend.exec(id, command);
    run_all(&Client::with_backend(ExecOverride { backend, exec }));
}

#[test]
fn download_can_be_piped_into_upload() {
    let (backend, _dir) = local_backend(Isolation::None);
    let server = v1_server::serve(backend);
    let client = Client::new(server.url()).unwrap();
    let (from, to) = (create(&client, "from"), create(&client, "to"));
    let noise: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    from.write("f", &noise).unwrap();
    // Directly from one connection to the other, on one thread.
    let backend = client.backend();
    let id = |sandbox: &Sandbox| noxrunner::SessionId::new(sandbox.id()).unwrap();
    let mut archive = backend.download(&id(&from), "/workspace").unwrap();
    let upload = noxrunner::Upload::from_reader(&mut archive, None);
    backend.upload(&id(&to), "/workspace", upload).unwrap();
    assert!(to.read("f").unwrap() == noise);
}

fn create(client: &Client, id: &str) -> Sandbox {
    client
        .create(id, SandboxSpec::new().ttl(Duration::from_secs(300)))
        .unwrap()
}

fn health(client: &Client) {
    client.health().unwrap();
    assert!(client.is_healthy().unwrap());
}

fn repeated_create(client: &Client) {
    let first = create(client, "twice");
    let info = first.info().unwrap();
    assert!(!info.pod_name().is_empty());
    let left = info
        .expires_at_time()
        .unwrap()
        .duration_since(std::time::SystemTime::now())
        .unwrap();
    assert!(
        left > Duration::from_secs(290) && left <= Duration::from_secs(301),
        "{left:?}"
    );
    first.write("kept", "x").unwrap();
    let second = create(client, "twice");
    assert_eq!(second.info().unwrap().pod_name(), info.pod_name());
    assert_eq!(second.read("kept").unwrap(), b"x");
}

fn unusual_ids(client: &Client) {
    let long = "x".repeat(200);
    let ids = [
        "a/b", "a%2Fb", "a?b", "a#b", "a b", "ä/ö", "...", "a.b", "a_b", "A", "a", "-rf", "~",
        &long,
    ];
    for id in ids {
        create(client, id).write("id", id).unwrap();
    }
    for id in ids {
        let sandbox = client.sandbox(id).unwrap();
        assert_eq!(sandbox.read("id").unwrap(), id.as_bytes());
        assert!(sandbox.delete().unwrap());
    }
    for id in ["", ".", ".."] {
        assert_eq!(
            client.sandbox(id).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}

fn unknown_sandbox(client: &Client) {
    let sandbox = client.sandbox("never made").unwrap();
    let errors = [
        sandbox.touch().unwrap_err(),
        sandbox.exec(["true"]).unwrap_err(),
        sandbox.write("f", "x").unwrap_err(),
        sandbox.read("f").unwrap_err(),
        sandbox.exists("f").unwrap_err(),
        sandbox.download_archive("/workspace").err().unwrap(),
    ];
    // A server need not report whether the sandbox or the directory is missing.
    let (_download, others) = errors.split_last().unwrap();
    assert!(
        others.iter().all(noxrunner::Error::is_sandbox_gone),
        "{errors:?}"
    );
    for error in errors {
        assert!(error.is_not_found(), "{error}");
        assert!(
            format!("{error:#}").contains("sandbox \"never made\""),
            "{error}"
        );
    }
    assert!(!sandbox.delete().unwrap());
}

fn delete(client: &Client) {
    let sandbox = create(client, "gone");
    assert!(sandbox.delete().unwrap());
    assert!(!sandbox.delete().unwrap());
    assert!(sandbox.exec(["true"]).unwrap_err().is_not_found());
}

fn ttl(client: &Client) {
    let sandbox = with_longer_times(Duration::from_secs(6), |ttl| {
        touch_while_another_expires(client, ttl)
    });
    wait_for("the touched sandbox expires", || is_gone(&sandbox));
    // For a moment, delete still finds what an exec no longer does.
    wait_for("delete does not find it", || !sandbox.delete().unwrap());
    assert!(sandbox.touch().unwrap_err().is_not_found());
    // The id can be used again, and its old files are gone.
    let again = create(client, "ttl");
    assert!(!again.exists("f").unwrap());
}

fn is_gone(sandbox: &Sandbox) -> bool {
    sandbox.exec(["true"]).is_err_and(|e| e.is_not_found())
}

/// Touches a sandbox until another one with the same TTL has expired. Returns `None` if both have.
fn touch_while_another_expires(client: &Client, ttl: Duration) -> Option<Sandbox> {
    let spec = || SandboxSpec::new().ttl(ttl);
    let sandbox = client.create("ttl", spec()).unwrap();
    let untouched = client.create("ttl untouched", spec()).unwrap();
    wait_for("the untouched sandbox expires", || {
        sandbox.touch().is_err_and(|e| e.is_not_found()) || is_gone(&untouched)
    });
    let lives = !is_gone(&sandbox);
    untouched.delete().unwrap();
    lives.then_some(sandbox)
}

fn exec(client: &Client) {
    let sandbox = create(client, "exec");
    let out = sandbox
        .exec(Command::shell("echo out; echo err >&2; exit 42"))
        .unwrap();
    assert_eq!(
        (out.exit_code(), &*out.stdout(), &*out.stderr()),
        (42, "out\n", "err\n")
    );
    assert!(!out.success() && !out.timed_out() && !out.truncated());
    let out = sandbox
        .exec(["printf", "%s|", "a b", "$HOME", "", "ä", "*", "'\"\\\n"])
        .unwrap();
    assert_eq!(out.stdout(), "a b|$HOME||ä|*|'\"\\\n|");
    let error = sandbox
        .exec(["sh", "-c", "echo why >&2; exit 3"])
        .unwrap()
        .check()
        .unwrap_err();
    assert!(
        error.is_command() && format!("{error:#}").contains("exited with 3:\nwhy"),
        "{error}"
    );
    let killed = sandbox.exec(Command::shell("kill -9 $$")).unwrap();
    assert_eq!(killed.exit_code(), 137);
    assert!(
        !killed.timed_out(),
        "a quick death by signal is not a timeout"
    );
}

fn environment(client: &Client) {
    let sandbox = create(client, "env");
    let print = Command::shell(r#"printf '%s|' "$A" "$B" "${NOXRUNNER_TEST_SECRET-unset}""#);
    let out = sandbox.exec(print.env("A", "x y").env("B", "")).unwrap();
    assert_eq!(out.stdout(), "x y||unset|");
    sandbox.write("sub/f", "x").unwrap();
    for workdir in ["sub", "/workspace/sub", "/workspace/./sub/"] {
        let out = sandbox
            .exec(Command::from(["cat", "f"]).workdir(workdir))
            .unwrap();
        assert_eq!(out.stdout(), "x", "{workdir}");
    }
    let error = sandbox
        .exec(Command::from(["pwd"]).workdir("missing"))
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("/workspace/missing"),
        "{error}"
    );
    // Neither this nor a missing file looks like a lost sandbox.
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = sandbox.read("missing").unwrap_err();
    assert!(error.is_not_found() && !error.is_sandbox_gone(), "{error}");
}

fn missing_program(client: &Client) {
    let sandbox = create(client, "127");
    let out = sandbox.exec(["nosuchcommand_nx", "x"]).unwrap();
    assert_eq!(out.exit_code(), 127);
    assert!(out.stderr().contains("nosuchcommand_nx"));
    assert_eq!(sandbox.exec(["./nosuchfile"]).unwrap().exit_code(), 127);
    sandbox.write("plain", "x").unwrap();
    assert_eq!(sandbox.exec(["./plain"]).unwrap().exit_code(), 126);
}

fn empty_stdin(client: &Client) {
    let out = create(client, "stdin")
        .exec(Command::shell("cat; read x; echo EOF"))
        .unwrap();
    assert_eq!(out.stdout(), "EOF\n");
}

fn time_limit(client: &Client) {
    let sandbox = create(client, "limit");
    let started = Instant::now();
    let stubborn = "echo before; trap '' TERM INT HUP; sleep 77 & while :; do sleep 0.1; done";
    let out = with_longer_times(Duration::from_secs(1), |timeout| {
        let out = sandbox.exec(Command::shell(stubborn).timeout(timeout));
        Some(out.unwrap()).filter(|out| !out.stdout_bytes().is_empty())
    });
    assert_eq!((out.exit_code(), &*out.stdout()), (124, "before\n"));
    assert!(out.timed_out());
    assert!(started.elapsed() < Duration::from_secs(60));
    let error = out.check().unwrap_err();
    assert!(format!("{error:#}").contains("timed out after "), "{error}");
}

fn background_child(client: &Client) {
    let sandbox = create(client, "background");
    let started = Instant::now();
    let out = sandbox
        .exec(Command::shell("sleep 60 & echo started"))
        .unwrap();
    assert_eq!((out.exit_code(), &*out.stdout()), (0, "started\n"));
    assert!(started.elapsed() < Duration::from_secs(50));
    assert!(sandbox.delete().unwrap());
}

fn long_output(client: &Client) {
    let sandbox = create(client, "long");
    let out = sandbox
        .exec(Command::shell(
            "head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2",
        ))
        .unwrap();
    assert_eq!(out.stdout_bytes().len(), 1024 * 1024);
    assert!(out.truncated() && out.success());
    assert_eq!(out.stderr(), "end\n");
    let exact = sandbox
        .exec(Command::shell("head -c 1048576 /dev/zero | tr '\\0' x"))
        .unwrap();
    assert!(!exact.truncated(), "output at the cap is complete");
}

fn readiness(client: &Client) {
    create(client, "ready")
        .wait_until_ready(Duration::from_secs(30), None)
        .unwrap();
    let error = client
        .sandbox("not there")
        .unwrap()
        .wait_until_ready(Duration::from_secs(10), None)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(format!("{error:#}").contains("no such sandbox"), "{error}");
}

fn isolation(client: &Client) {
    let (a, b) = (create(client, "apart a"), create(client, "apart b"));
    a.write("f", "a").unwrap();
    assert!(!b.exists("f").unwrap());
    assert!(b.delete().unwrap());
    assert_eq!(a.read("f").unwrap(), b"a");
}

fn concurrent_execs(client: &Client) {
    let sandbox = Arc::new(create(client, "at once"));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let sandbox = Arc::clone(&sandbox);
            scope.spawn(move || {
                for m in 0..5 {
                    let text = format!("{n}.{m}");
                    assert_eq!(
                        sandbox.exec(["echo", &text]).unwrap().stdout(),
                        format!("{text}\n")
                    );
                }
            });
        }
    });
}
