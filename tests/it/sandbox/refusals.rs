//! Machines that do not let sandboxes be made, or not all of them.

use noxrunner::{Client, Command, ErrorKind, Isolation, LocalBackend};
use std::time::Duration;

use super::{elsewhere, fresh, is_root, passes, shell};

#[test]
fn where_proc_may_not_be_mounted_it_is_done_without() {
    let script = "mount -t tmpfs none /proc/fs && exec \"$@\"";
    let unshare = if is_root() { "-m" } else { "-Urm" };
    passes(elsewhere(
        &["unshare", unshare, "sh", "-c", script, "sh"],
        "sandbox::refusals::without_proc",
    ));
}

#[test]
#[ignore = "run by another test, where /proc is partly hidden"]
fn without_proc() {
    let backend = LocalBackend::builder().build().unwrap();
    assert_eq!(backend.missing().unwrap(), ["proc"]);
    let sandbox = fresh(&Client::with_backend(backend), "without-proc");
    assert_eq!(shell(&sandbox, "ls /proc; echo hi"), "hi\n");
    let out = sandbox.exec(Command::shell("sleep 60 & sleep 60").timeout(Duration::from_secs(1)));
    assert!(out.unwrap().timed_out());
    assert_eq!(shell(&sandbox, "echo again"), "again\n");
}

/// As Docker's default profile answers, and as gVisor does.
#[test]
fn where_calls_are_refused_the_error_says_which_and_why() {
    for (answer, says) in [
        (libc::EPERM, "seccomp=unconfined"),
        (libc::ENOSYS, "does not know the call"),
    ] {
        let mut command = elsewhere(&[], "sandbox::refusals::refused");
        command
            .env("NX_ERRNO", answer.to_string())
            .env("NX_SAYS", says);
        passes(command);
    }
}

#[test]
#[ignore = "run by another test, which says what is expected"]
#[allow(unsafe_code, reason = "std has no system call filter")]
fn refused() {
    let variable = |name| std::env::var(name).unwrap();
    let errno: u32 = variable("NX_ERRNO").parse().unwrap();
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let any_bit = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // clone with a flag for new namespaces.
    let program = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, libc::SYS_clone as u32),
        op(load, 0, 0, 16),
        op(any_bit, 0, 1, 0x7e02_0000),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is as long as it says, and lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
    let error = Client::local().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Isolation, "{error}");
    for part in [
        "make the namespaces",
        &variable("NX_SAYS"),
        "Isolation::None",
    ] {
        assert!(format!("{error:#}").contains(part), "{error}");
    }
    // What this machine still lets be made.
    let backend = LocalBackend::builder().isolation(Isolation::Landlock);
    let client = Client::with_backend(backend.build().unwrap());
    assert_eq!(shell(&fresh(&client, "instead"), "echo hi"), "hi\n");
}
