//! Jobs on backends whose execs fail or lose output.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use noxrunner::{
    Backend, Client, Command, Error, ErrorKind, Isolation, Job, LocalBackend, Output, SandboxSpec,
    SessionId,
};

use super::{assert_output_is_exact, shell, stdout};
use crate::support::exec_override::ExecOverride;
use crate::support::processes::{self, unique_sleep, wait_for};
use crate::support::{local_backend, long_tests};

/// A client for local processes whose execs go through this function.
fn client_with_exec<F>(exec: F) -> (Client, tempfile::TempDir)
where
    F: Fn(&LocalBackend, &SessionId, &Command) -> noxrunner::Result<Output> + Send + Sync + 'static,
{
    let (backend, dir) = local_backend(Isolation::None);
    (Client::with_backend(ExecOverride { backend, exec }), dir)
}

/// A length that takes several execs at a low cap; the long tests use more.
fn output_length() -> u32 {
    if long_tests() { 2_200_004 } else { 200_004 }
}

/// A client whose output is capped at this many bytes.
fn client_with_output_cap(cap: usize) -> (Client, tempfile::TempDir) {
    client_with_exec(move |backend, id, command| {
        let out = backend.exec(id, command)?;
        let kept = out.stdout_bytes();
        let kept = &kept[..kept.len().min(cap)];
        let (code, stderr) = (out.exit_code(), out.stderr_bytes());
        Ok(Output::new(code, kept, stderr, out.duration()))
    })
}

#[test]
fn low_output_cap_loses_nothing() {
    let (client, _dir) = client_with_output_cap(30_000);
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    assert_output_is_exact(&sandbox, output_length());
}

#[test]
fn temporary_backend_errors_are_tolerated() {
    let calls = AtomicU64::new(0);
    let (client, _dir) =
        client_with_exec(
            move |backend, id, command| match calls.fetch_add(1, Ordering::SeqCst) {
                6 => Err(Error::new(ErrorKind::Connect, "away")),
                7 => Err(Error::new(ErrorKind::OutcomeUnknown, "away")),
                8 => Err(Error::new(ErrorKind::NotReady, "away")),
                _ => backend.exec(id, command),
            },
        );
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    let job = shell(&sandbox, "for n in 1 2 3 4; do echo $n; sleep 0.3; done");
    assert_eq!(stdout(&job), b"1\n2\n3\n4\n");
}

#[test]
fn permanent_backend_error_ends_wait() {
    let calls = AtomicU64::new(0);
    let (client, _dir) =
        client_with_exec(
            move |backend, id, command| match calls.fetch_add(1, Ordering::SeqCst) {
                0..6 => backend.exec(id, command),
                _ => Err(Error::new(ErrorKind::NotFound, "no such sandbox")),
            },
        );
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    let error = shell(&sandbox, "sleep 1000").wait().unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

/// Polling slows down to one call in two seconds.
#[test]
fn idle_wait_polls_rarely() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let (client, _dir) = client_with_exec(move |backend, id, command| {
        counted.fetch_add(1, Ordering::SeqCst);
        backend.exec(id, command)
    });
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    let job = shell(&sandbox, "sleep 1000");
    let before = calls.load(Ordering::SeqCst);
    assert_eq!(job.wait_timeout(Duration::from_secs(10)).unwrap(), None);
    let asked = calls.load(Ordering::SeqCst) - before;
    // The pauses grow from 50 ms to 2 s: 9 polls in the first 3.4 s, then one every 2 s.
    assert!((1..=17).contains(&asked), "{asked} in 10 s");
    job.kill().unwrap();
}

#[test]
fn output_cut_in_the_middle_is_detected() {
    let (client, _dir) = client_with_exec(|backend, id, command| {
        let out = backend.exec(id, command)?;
        let kept = out.stdout_bytes();
        // Some servers keep the beginning and the end of long output.
        let kept = match kept.len() {
            0..40_000 => kept.to_vec(),
            length => [&kept[..20_001], &kept[length - 15_003..]].concat(),
        };
        Ok(Output::new(
            out.exit_code(),
            kept,
            out.stderr_bytes(),
            out.duration(),
        ))
    });
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    assert_output_is_exact(&sandbox, output_length());
}

#[test]
fn truncated_job_list_is_continued() {
    let (client, _dir) = client_with_output_cap(1000);
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    let started: Vec<_> = (0..20).map(|_| shell(&sandbox, "exit 3")).collect();
    for job in &started {
        let _ = job.wait().unwrap();
    }
    let listed = sandbox.jobs().unwrap();
    let mut ids: Vec<_> = listed.iter().map(|job| job.id()).collect();
    let mut wanted: Vec<_> = started.iter().map(Job::id).collect();
    ids.sort();
    wanted.sort();
    assert_eq!(ids, wanted);
}

#[test]
fn endless_job_list_is_an_error() {
    let next = AtomicU64::new(0);
    let repeated = || "a 0 lost\n-\n".to_owned();
    let endless = move || {
        let from = next.fetch_add(1000, Ordering::SeqCst);
        let lines = (from..from + 1000).map(|n| format!("j{n} 0 lost\n-\n"));
        lines.collect::<String>()
    };
    let lists: [Box<dyn Fn() -> String + Send + Sync>; 2] = [Box::new(repeated), Box::new(endless)];
    for list in lists {
        let (client, _dir) =
            client_with_exec(move |_, _, _| Ok(Output::new(0, list(), "", Duration::ZERO)));
        let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
        let error = sandbox.jobs().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error:#}");
    }
}

#[test]
fn unconfirmed_job_is_found_or_killed() {
    for keeps in [true, false] {
        let calls = AtomicU64::new(0);
        let (client, _dir) = client_with_exec(move |backend, id, command| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            // The start fails, and if the job is to be lost, the polls after it, too.
            let out = backend.exec(id, command)?;
            match (call, keeps) {
                (1, _) => Err(Error::new(ErrorKind::OutcomeUnknown, "connection reset")),
                (2..=4, false) => Err(Error::new(
                    ErrorKind::OutcomeUnknown,
                    "connection reset again",
                )),
                _ => Ok(out),
            }
        });
        let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
        let sleep = unique_sleep(if keeps { 345_001 } else { 345_002 });
        let spawned = sandbox.spawn(Command::shell(format!("sleep {sleep}; exit 3")));
        match keeps {
            true => spawned.unwrap().kill().unwrap(),
            false => {
                assert!(spawned.unwrap_err().is_outcome_unknown());
                assert_eq!(sandbox.jobs().unwrap(), []);
            }
        }
        wait_for("the command ends", || {
            processes::with_argument(&sleep).is_empty()
        });
    }
}

#[test]
fn failed_poll_is_repeated() {
    let calls = AtomicU64::new(0);
    let (client, _dir) =
        client_with_exec(
            move |backend, id, command| match calls.fetch_add(1, Ordering::SeqCst) {
                3 => Ok(Output::new(124, "", "", Duration::from_secs(10))),
                4 => Ok(Output::new(2, "", "sh: 1: Cannot fork\n", Duration::ZERO)),
                5 => Ok(Output::new(137, "", "", Duration::ZERO)),
                _ => backend.exec(id, command),
            },
        );
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    assert_eq!(
        shell(&sandbox, "sleep 1; exit 3")
            .wait()
            .unwrap()
            .exit_code(),
        3
    );
}

/// The timer fires before the job has recorded its process.
#[test]
fn job_that_starts_after_its_timeout_is_killed() {
    let start = "setsid sh -c \"$nx_run\"";
    let late = format!("until grep -q timeout \"$nx_dir/exit\"; do sleep 0.1; done; {start}");
    let calls = AtomicU64::new(0);
    let (client, _dir) = client_with_exec(move |backend, id, command| {
        if calls.fetch_add(1, Ordering::SeqCst) != 1 {
            return backend.exec(id, command);
        }
        let args = command.get_args();
        assert!(args.iter().any(|arg| arg.contains(start)), "{args:?}");
        let args = args.iter().map(|arg| arg.replace(start, &late));
        backend.exec(id, &args.collect::<Command>())
    });
    let sandbox = client.create("jobs", SandboxSpec::new()).unwrap();
    let sleep = unique_sleep(345_003);
    let command = Command::new("sleep").arg(&sleep);
    let job = sandbox
        .spawn(command.timeout(Duration::from_secs(1)))
        .unwrap();
    let status = job.wait_timeout(Duration::from_secs(100)).unwrap();
    assert_eq!(status.expect("the job has ended").exit_code(), 124);
    wait_for("the command ends", || {
        processes::with_argument(&sleep).is_empty()
    });
}
