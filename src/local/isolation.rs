//! How far a sandbox is kept apart, and why it can't be.

use crate::error::{Error, ErrorKind};

/// How far a local sandbox is kept apart from the machine it runs on.
///
/// ```
/// use noxrunner::{Isolation, LocalBackend};
///
/// let backend = LocalBackend::builder().isolation(Isolation::Namespaces).build()?;
/// assert_eq!(backend.isolation(), Isolation::Namespaces);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Namespaces of its own for users, files, processes, network, IPC, host name and cgroups, no
    /// rights, a filter for system calls and Landlock. Linux only.
    #[default]
    Namespaces,
    /// The files and system calls of this machine that a command can use are limited, by Landlock and
    /// a filter, where no namespaces can be had (in a container, or under AppArmor's restriction). It
    /// sees the machine's processes, has no network at all, and its `/workspace` and `/tmp` are
    /// directories of this machine. Linux 6.12 or later; 5.19 as root.
    Landlock,
    /// Not at all: commands are plain processes of this user, with a directory and a clean
    /// environment of their own. For code that you would run yourself, or where the whole
    /// machine is the sandbox.
    None,
}

/// Where there is no isolation to be had at all.
pub(super) fn unsupported(why: &str) -> Error {
    let text = format!(
        "{why}: use a NoxRunner server, or Isolation::None for code that you would run yourself"
    );
    Error::new(ErrorKind::Unsupported, text)
}

/// Why a sandbox could not be made, and what can be done about it.
#[cfg(target_os = "linux")]
pub(super) fn refused(isolation: Isolation, step: &str, error: std::io::Error) -> Error {
    let mut text = format!("cannot make a sandbox: {step}: {error}");
    for part in causes(step, error.raw_os_error()) {
        text.push_str("; ");
        text.push_str(&part);
    }
    text.push_str("; or use a NoxRunner server, ");
    if isolation == Isolation::Namespaces {
        text.push_str("Isolation::Landlock where its weaker isolation will do, ");
    }
    text.push_str("or Isolation::None for code that you would run yourself");
    Error::new(ErrorKind::Isolation, text).with_source(error)
}

/// What the settings of this machine say, read only to word the advice.
#[cfg(target_os = "linux")]
fn causes(step: &str, errno: Option<i32>) -> Vec<String> {
    let setting = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        Some(text.trim().to_owned())
    };
    let makes_namespaces = matches!(
        step,
        "make the namespaces" | "write setgroups" | "write uid_map" | "write gid_map"
    );
    let mut causes = Vec::new();
    match errno {
        Some(libc::ENOSPC) if makes_namespaces => {
            let limit = setting("user/max_user_namespaces").unwrap_or_default();
            causes.push(format!(
                "user.max_user_namespaces is {limit}: raise it with `sysctl user.max_user_namespaces=10000`"
            ));
        }
        Some(libc::EPERM | libc::EACCES) => {
            if setting("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
                causes.push(
                    "kernel.unprivileged_userns_clone is 0: set it to 1 with sysctl".to_owned(),
                );
            }
            if setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
                causes.push(
                    "AppArmor keeps user namespaces from programs without a profile (Ubuntu 24.04): give this program a profile with `userns,`, or set kernel.apparmor_restrict_unprivileged_userns to 0".to_owned(),
                );
            }
            if causes.is_empty() && is_filtered() {
                causes.push(
                    "a system call filter is in force, as Docker's default seccomp profile: run the container with `--security-opt seccomp=unconfined`".to_owned(),
                );
            }
        }
        Some(libc::EOPNOTSUPP) if step == "restrict by Landlock" => causes.push(
            "the kernel has no Landlock that could do it: Linux 6.12 or later is needed, or 5.19 as root, with `landlock` in the kernel's `lsm=`".to_owned(),
        ),
        Some(libc::ENOSYS) => causes.push(
            "the kernel, or what stands in for it (gVisor, an old container runtime), does not know the call: Linux 5.12 or later is needed".to_owned(),
        ),
        Some(libc::EINVAL) if makes_namespaces => causes.push(
            "the kernel was built without some of the namespaces, or has no user namespaces".to_owned(),
        ),
        _ => {}
    }
    causes
}

/// Whether this thread, and so all that it starts, runs behind a seccomp filter.
#[cfg(target_os = "linux")]
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}
