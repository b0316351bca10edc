//! Machines on which sandboxes cannot be created or lack a part.

use std::time::Duration;

use noxrunner::{Client, Command, Enforced, ErrorKind, Isolation, LocalBackend, SandboxSpec};

use super::{create, shell};
use crate::support::processes::{assert_passes, private_mounts, rerun};

/// Hides a part of every complete `/proc` in the mount namespace: the kernel then refuses to mount another.
const HIDE_PROC: &str = r#"
for proc in $(awk '$4 == "/" && / - proc / { print $5 }' /proc/self/mountinfo); do
    mount -t tmpfs none "$proc/fs" || exit
done
exec "$@"
"#;

#[test]
fn sandbox_starts_without_proc() {
    let missing = LocalBackend::builder().build().unwrap().missing().unwrap();
    let [unshare, mounts] = private_mounts();
    let wrapper = [unshare, mounts, "sh", "-c", HIDE_PROC, "sh"];
    let mut command = rerun(&wrapper, "sandbox::refusals::with_proc_hidden");
    command.env("NX_MISSING", missing.join(" "));
    assert_passes(command);
}

#[test]
#[ignore = "run by another test, in a mount namespace where /proc is partly hidden"]
fn with_proc_hidden() {
    let backend = LocalBackend::builder().build().unwrap();
    let before = std::env::var("NX_MISSING").unwrap();
    let mut missing = backend.missing().unwrap();
    assert!(missing.contains(&"proc"), "{missing:?}");
    // Whatever else this machine lacks was missing before.
    missing.retain(|part| *part != "proc" && !before.split(' ').any(|word| word == *part));
    assert_eq!(missing, [""; 0]);
    // Nothing can be watched.
    let memory = backend.limits(&SandboxSpec::new()).unwrap().memory();
    assert_eq!((memory.amount(), memory.enforced()), (None, Enforced::No));
    let sandbox = create(&Client::with_backend(backend), "without-proc");
    assert_eq!(shell(&sandbox, "ls /proc; echo hi"), "hi\n");
    let command = Command::shell("sleep 60 & sleep 60").timeout(Duration::from_secs(1));
    assert!(sandbox.exec(command).unwrap().timed_out());
    assert_eq!(shell(&sandbox, "echo again"), "again\n");
}

/// Docker's default seccomp profile answers `EPERM`, gVisor `ENOSYS`.
#[test]
fn refused_namespaces_error_names_call_and_cause() {
    for (errno, message) in [
        (libc::EPERM, "seccomp=unconfined"),
        (libc::ENOSYS, "does not know the call"),
    ] {
        let mut command = rerun(&[], "sandbox::refusals::with_namespaces_refused");
        command
            .env("NX_ERRNO", errno.to_string())
            .env("NX_MESSAGE", message);
        assert_passes(command);
    }
}

#[test]
#[ignore = "run by another test, which sets what is expected"]
#[allow(unsafe_code, reason = "std cannot install a seccomp filter")]
fn with_namespaces_refused() {
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
    // Refuse clone() with any flag for a new namespace.
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
    // SAFETY: `len` is the length of the program, which outlives the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
    let error = Client::local().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Isolation, "{error}");
    for part in [
        "make the namespaces",
        &variable("NX_MESSAGE"),
        "Isolation::None",
    ] {
        assert!(format!("{error:#}").contains(part), "{error}");
    }
    // The tier without namespaces still works.
    let backend = LocalBackend::builder().isolation(Isolation::Landlock);
    let client = Client::with_backend(backend.build().unwrap());
    assert_eq!(shell(&create(&client, "instead"), "echo hi"), "hi\n");
}
