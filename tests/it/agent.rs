//! The agent as the first process of a container.

use std::time::Duration;

use noxrunner::{Backend, Client, Command, ErrorKind, HttpBackend, Sandbox, SandboxSpec};

use crate::contract;
use crate::support::container::{Container, ContainerBackend};
use crate::support::processes::{send_signal, wait_for};

/// Starts a container as this user, and returns it with its sandbox.
fn start(user: &str, args: &[&str]) -> Option<(Container, Sandbox)> {
    let args = [&["--session-id", "demo"], args].concat();
    let container = Container::start(user, &args)?;
    let client = container.client();
    let sandbox = client.sandbox("demo").unwrap();
    wait_for("the agent answers", || client.health().is_ok());
    Some((container, sandbox))
}

#[test]
fn agents_fulfil_the_contract() {
    if Container::start("0:0", &["--session-id", "demo"]).is_some() {
        contract::run_streaming(&Client::with_backend(ContainerBackend::default()));
    }
}

#[test]
fn commands_have_the_environment_of_the_container() {
    for user in ["0:0", "1000:1000"] {
        let Some((_container, sandbox)) = start(user, &[]) else {
            return;
        };
        let ids = user.replace(':', " ");
        let line =
            "echo $(id -u) $(id -g); echo $IMAGE_VARIABLE $NOX_WORKSPACE; pwd; touch /tmp/f f";
        let out = sandbox.run(["sh", "-c", line]).unwrap();
        assert_eq!(out.stdout(), format!("{ids}\nset /workspace\n/workspace\n"));
        let usage = out.usage().unwrap();
        assert!(usage.peak_memory() > 0);
    }
}

#[test]
fn commands_start_without_blocked_signals() {
    let Some((_container, sandbox)) = start("0:0", &[]) else {
        return;
    };
    let line = "trap 'echo trapped; exit 3' TERM; kill -TERM $$; echo not trapped";
    let out = sandbox.exec(["sh", "-c", line]).unwrap();
    assert_eq!((out.stdout().as_ref(), out.exit_code()), ("trapped\n", 3));
}

#[test]
fn other_session_ids_do_not_exist() {
    let Some((container, _sandbox)) = start("0:0", &[]) else {
        return;
    };
    let other = container.client().sandbox("other").unwrap();
    assert!(other.touch().unwrap_err().is_not_found());
    assert!(other.exec(["true"]).unwrap_err().is_sandbox_gone());
    let created = container.client().create("other", SandboxSpec::new());
    assert!(created.unwrap_err().is_not_found());
}

#[test]
fn orphans_are_reaped_and_own_children_are_not() {
    let Some((container, sandbox)) = start("1000:1000", &[]) else {
        return;
    };
    let zombies = || {
        let agent = container.agent().unwrap();
        let children = format!("/proc/{agent}/task/{agent}/children");
        let children = std::fs::read_to_string(children).unwrap();
        children.split_whitespace().count()
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for code in 0..25 {
                    // The grandchild outlives its parent and becomes an orphan.
                    let line = format!("(sleep 0.01 &) ; exit {code}");
                    assert_eq!(sandbox.exec(["sh", "-c", &line]).unwrap().exit_code(), code);
                }
            });
        }
    });
    wait_for("all orphans are reaped", || zombies() == 0);
}

#[test]
fn commands_cannot_kill_or_trace_the_agent() {
    for user in ["0:0", "1000:1000"] {
        let Some((_container, sandbox)) = start(user, &[]) else {
            return;
        };
        let line = "kill -9 1; kill -STOP 1; head -c1 /proc/1/mem; head -c1 /proc/1/environ; true";
        // The command kills itself as well.
        let _ = sandbox.exec(["sh", "-c", line]);
        let out = sandbox.exec(["cat", "/proc/1/environ"]).unwrap();
        if user != "0:0" {
            assert!(!out.success(), "{}", out.stdout());
        }
        assert_eq!(sandbox.run(["echo", "alive"]).unwrap().stdout(), "alive\n");
    }
}

#[test]
fn kernel_kills_commands_first() {
    let Some((container, sandbox)) = start("1000:1000", &[]) else {
        return;
    };
    let own = std::fs::read_to_string(format!(
        "/proc/{}/oom_score_adj",
        container.agent().unwrap()
    ));
    let out = sandbox.run(["cat", "/proc/self/oom_score_adj"]).unwrap();
    let of_command: i32 = out.stdout().trim().parse().unwrap();
    assert!(of_command > own.unwrap().trim().parse().unwrap());
    assert_eq!(of_command, 1000);
}

#[test]
fn ttl_ends_the_agent_and_its_commands() {
    let Some((mut container, sandbox)) = start("0:0", &["--ttl", "10"]) else {
        return;
    };
    let long = Command::new("sleep")
        .args(["1000"])
        .timeout(Duration::from_secs(2000));
    let error = sandbox.exec(long).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(error.is_sandbox_gone());
    let text = "the sandbox ended while the command ran";
    assert!(error.to_string().contains(text), "{error}");
    assert_eq!(container.wait(), Some(0));
    assert!(!container.socket().exists());
}

#[test]
fn delete_and_sigterm_end_the_agent() {
    let Some((mut container, sandbox)) = start("0:0", &[]) else {
        return;
    };
    assert!(sandbox.delete().unwrap());
    assert_eq!(container.wait(), Some(0));

    let Some((mut container, _sandbox)) = start("1000:1000", &[]) else {
        return;
    };
    assert!(send_signal(container.agent().unwrap(), "TERM"));
    assert_eq!(container.wait(), Some(0));
}

#[test]
fn network_addresses_need_the_token() {
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let args = ["--listen", "127.0.0.1:0", "--token-sha256", hash];
    let Some((container, sandbox)) = start("0:0", &args) else {
        return;
    };
    let refused = sandbox.touch().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    let url = format!("unix://{}", container.socket().display());
    let id = noxrunner::SessionId::new("demo").unwrap();
    let new = || HttpBackend::builder(&url);
    for builder in [
        new().token("secret"),
        new().header("X-Noxrunner-Token", "secret"),
    ] {
        builder.build().unwrap().touch(&id).unwrap();
    }
    for builder in [
        new().token(hash),
        new().header("X-Noxrunner-Token", "Secret"),
    ] {
        let refused = builder.build().unwrap().touch(&id).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    }
}

#[test]
fn command_line_is_checked() {
    let run = |args: &[&str]| {
        let mut noxrc = std::process::Command::new(env!("CARGO_BIN_EXE_noxrc"));
        let out = noxrc.arg("agent").args(args).output().unwrap();
        assert!(!out.status.success(), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(run(&[]).contains("--session-id"));
    assert!(run(&["--session-id", "a"]).contains("--listen or --unix"));
    let address = ["--session-id", "a", "--listen", "127.0.0.1:0"];
    assert!(run(&address).contains("--token-sha256"));
    let hash = [&address[..], &["--token-sha256", "12"]].concat();
    assert!(run(&hash).contains("64 hexadecimal digits"));
    assert!(run(&["install", "/no/such/dir"]).contains("/no/such/dir/noxrc"));
}

#[test]
fn program_installs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut noxrc = std::process::Command::new(env!("CARGO_BIN_EXE_noxrc"));
    let installed = noxrc
        .args(["agent", "install"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let version = std::process::Command::new(dir.path().join("noxrc"))
        .arg("--version")
        .output();
    assert!(version.unwrap().stdout.starts_with(b"noxrc "));
}
