//! The programs in `examples`.

use std::path::PathBuf;
use std::process::{Command, Output};

use noxrunner::server::Server;
use noxrunner::{Backend, Command as Exec, Error, ErrorKind, Isolation, LocalBackend, SessionId};

use crate::server::RunningServer;
use crate::support::exec_override::ExecOverride;
use crate::support::local_backend;

/// Returns `None` and prints the reason if the example was not built, as with `--test it`.
fn example(name: &str) -> Option<Command> {
    let this = std::env::current_exe().unwrap();
    let target = this.parent().unwrap().parent().unwrap();
    let path: PathBuf = target.join("examples").join(name);
    if path.exists() {
        let mut command = Command::new(path);
        command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
        return Some(command);
    }
    let required = std::env::var_os("NOXRUNNER_REQUIRE_SANDBOX").is_some();
    assert!(!required, "{} is required", path.display());
    println!("skipped: {} was not built", path.display());
    None
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The rows of the printed table.
fn verdicts(table: &str) -> Vec<(&str, &str, &str)> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        let (passed, rest) = rest.trim_start().split_once(' ')?;
        let (_usage, verdict) = rest.split_once(" MiB  ")?;
        Some((name, passed, verdict))
    });
    rows.collect()
}

#[test]
fn judge_prints_every_verdict() {
    let Some(mut judge) = example("judge") else {
        return;
    };
    let out = judge.args(["--time-limit", "6"]).output().unwrap();
    assert!(out.status.success());
    let wanted = [
        ("crash.py", "2/3", "runtime error (exit code 1)"),
        ("hungry.py", "0/3", "memory limit"),
        ("loud.py", "0/3", "output limit"),
        ("right.py", "3/3", "ok"),
        ("right.sh", "3/3", "ok"),
        ("slow.py", "0/3", "time limit"),
        ("wrong.py", "1/3", "wrong answer"),
    ];
    assert_eq!(verdicts(&text(&out)), wanted, "{}", text(&out));
}

#[test]
fn judge_survives_one_backend_failure() {
    let Some(mut judge) = example("judge") else {
        return;
    };
    let (backend, _dir) = local_backend(Isolation::Namespaces);
    let exec = |backend: &LocalBackend, id: &SessionId, command: &Exec| {
        let is_shell = command.get_args().iter().any(|arg| arg == "main.sh");
        match is_shell {
            true => Err(Error::new(ErrorKind::Io, "the node is on fire")),
            false => backend.exec(id, command),
        }
    };
    let server = Server::builder(ExecOverride { backend, exec });
    let server = RunningServer::start(server.tcp("127.0.0.1:0").no_auth());
    let url = format!("http://{}", server.addr());
    let out = judge
        .args(["--url", &url, "--time-limit", "6"])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let table = text(&out);
    let verdicts = verdicts(&table);
    assert_eq!(verdicts.len(), 7, "{table}");
    assert!(verdicts.contains(&("right.py", "3/3", "ok")), "{table}");
    let (name, passed, verdict) = verdicts[4];
    assert_eq!((name, passed), ("right.sh", "0/3"));
    assert!(
        verdict.starts_with("backend failure: exec in sandbox"),
        "{table}"
    );
    assert!(verdict.contains("the node is on fire"), "{table}");
}

#[test]
fn ci_step_exits_with_the_build_and_fetches_artifacts() {
    let Some(mut step) = example("ci_step") else {
        return;
    };
    let (project, tmp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(project.path().join("in"), "x").unwrap();
    let made = "mkdir out; cp in out/made; echo built";
    let step = step.arg(project.path()).args([made, "out"]);
    let out = step.env("TMPDIR", tmp.path()).output().unwrap();
    assert!(
        out.status.success() && text(&out).contains("\nbuilt\n"),
        "{out:?}"
    );
    let fetched = std::fs::read_dir(tmp.path()).unwrap().next().unwrap();
    assert_eq!(
        std::fs::read(fetched.unwrap().path().join("made")).unwrap(),
        b"x"
    );

    let mut red = example("ci_step").unwrap();
    let out = red.arg(project.path()).arg("echo why >&2; exit 7").output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(7));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("why"),
        "{out:?}"
    );
    let mut broken = example("ci_step").unwrap();
    let broken = broken
        .arg(project.path())
        .args(["true", "out", "http://127.0.0.1:1"]);
    assert_eq!(broken.output().unwrap().status.code(), Some(125));
}

#[test]
fn job_example_follows_finds_and_kills() {
    let Some(mut job) = example("job") else {
        return;
    };
    let out = job.output().unwrap();
    let said = text(&out);
    for line in [
        "line      step 3",
        "finished  exit code 4",
        "killed    exit code 143",
    ] {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
}

/// Asserts that the example `cluster` counts all primes.
#[cfg(all(feature = "docker", feature = "kubernetes"))]
fn assert_counts_primes(mut cluster: Command) {
    let out = cluster.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = text(&out);
    assert!(text.starts_with("4203 primes below 40000"), "{text}");
}

#[cfg(all(feature = "docker", feature = "kubernetes"))]
#[test]
fn cluster_counts_primes_in_local_sandboxes() {
    if let Some(mut cluster) = example("cluster") {
        cluster.arg("local");
        assert_counts_primes(cluster);
    }
}

#[cfg(all(feature = "docker", feature = "kubernetes"))]
#[test]
fn cluster_counts_primes_on_docker_and_podman() {
    use crate::support::docker::{DOCKER, Engine, PODMAN, image};

    for variable in [DOCKER, PODMAN] {
        let Some(engine) = Engine::new_or_skip(variable, "an example") else {
            continue;
        };
        let Some(mut cluster) = example("cluster") else {
            return;
        };
        let agent = std::path::Path::new(engine.agent()).parent().unwrap();
        cluster.args(["docker", &image()]);
        cluster
            .env("DOCKER_HOST", engine.socket())
            .env("PATH", agent);
        assert_counts_primes(cluster);
    }
}

#[cfg(all(feature = "docker", feature = "kubernetes"))]
#[test]
fn cluster_counts_primes_on_kubernetes() {
    use crate::support::kubernetes::Namespace;

    let Some(namespace) = Namespace::new_or_skip("an example") else {
        return;
    };
    if let Some(mut cluster) = example("cluster") {
        cluster.args(["kubernetes", namespace.image(), namespace.agent_image()]);
        cluster.env("KUBECONFIG", namespace.kubeconfig());
        assert_counts_primes(cluster);
    }
}
