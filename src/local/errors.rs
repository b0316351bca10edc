//! Errors that several parts of the local backend return.

use std::io;

#[cfg(target_os = "linux")]
use super::isolation::Isolation;
use crate::error::{Error, ErrorKind, one_line};
#[cfg(target_os = "linux")]
use crate::os;

pub(super) fn no_such_sandbox() -> Error {
    Error::new(ErrorKind::NotFound, "no such sandbox").with_sandbox_gone(true)
}

/// Creates the error for a command whose sandbox ended while it ran.
pub(super) fn ended_during_command() -> Error {
    let text = "the sandbox ended while the command ran";
    Error::new(ErrorKind::OutcomeUnknown, text).with_sandbox_gone(true)
}

pub(super) fn arguments_too_long() -> Error {
    Error::invalid(
        "arguments and environment are too long for this system: pass the data in a file",
    )
}

/// Creates the error for a path argument, such as `workdir`, that cannot be used.
pub(super) fn path_error(argument: &str, path: &str, cause: io::Error) -> Error {
    let path = one_line(path);
    Error::from_io(cause).unwrap_or_else(|cause| match cause.kind() {
        io::ErrorKind::NotFound => {
            // A caller that repairs a lost sandbox must not take a wrong argument for one.
            let kind = if argument == "src" {
                ErrorKind::NotFound
            } else {
                ErrorKind::InvalidInput
            };
            Error::new(kind, format!("{argument} {path:?} does not exist")).with_source(cause)
        }
        io::ErrorKind::NotADirectory => {
            Error::invalid(format!("{argument} {path:?} is not a directory")).with_source(cause)
        }
        _ => Error::io(format_args!("cannot open {argument} {path:?}"), cause),
    })
}

/// Creates the error for a platform or build without isolation.
pub(super) fn unsupported(reason: &str) -> Error {
    let text = format!(
        "{reason}: use a NoxRunner server, or Isolation::None for code that you would run yourself"
    );
    Error::new(ErrorKind::Unsupported, text)
}

/// Creates the error for a sandbox that could not be set up: the step that failed, its probable
/// causes, and the alternatives.
#[cfg(target_os = "linux")]
pub(super) fn setup_failed(isolation: Isolation, step: &str, cause: io::Error) -> Error {
    let mut text = format!("cannot create a sandbox: failed to {step}");
    if let Some(errno) = cause.raw_os_error() {
        text.push_str(&format!(" (os error {errno})"));
    }
    for hint in hints(step, cause.raw_os_error()) {
        text.push_str("; ");
        text.push_str(&hint);
    }
    text.push_str("; alternatively use a NoxRunner server, ");
    if isolation == Isolation::Namespaces {
        text.push_str("Isolation::Landlock if weaker isolation is enough, ");
    }
    text.push_str("or Isolation::None for code that you would run yourself");
    Error::new(ErrorKind::Isolation, text).with_source(cause)
}

/// Returns the probable causes of a failed step. Reads the machine's settings only to word them.
#[cfg(target_os = "linux")]
fn hints(step: &str, errno: Option<i32>) -> Vec<String> {
    let creates_namespaces = matches!(
        step,
        "make the namespaces" | "write setgroups" | "write uid_map" | "write gid_map"
    );
    let hint = match errno {
        Some(libc::ENOSPC) if creates_namespaces => {
            let limit = sysctl("user/max_user_namespaces").unwrap_or_default();
            return vec![format!(
                "user.max_user_namespaces is {limit}: raise it with `sysctl user.max_user_namespaces=10000`"
            )];
        }
        Some(libc::EPERM | libc::EACCES) => return permission_hints(),
        Some(libc::EOPNOTSUPP) if step == "restrict by Landlock" => {
            "the kernel's Landlock support is insufficient: Linux 6.12 or later is needed, or 5.19 as root, with `landlock` in the kernel parameter `lsm=`"
        }
        Some(libc::ENOSYS) => {
            "the kernel, or its replacement (gVisor, an old container runtime), does not know the call: Linux 5.12 or later is needed"
        }
        Some(libc::EINVAL) if creates_namespaces => {
            "the kernel was built without user namespaces or one of the other namespaces"
        }
        _ => return Vec::new(),
    };
    vec![hint.to_owned()]
}

/// Returns the settings that make the kernel refuse namespaces and mounts.
#[cfg(target_os = "linux")]
fn permission_hints() -> Vec<String> {
    let mut hints = Vec::new();
    if sysctl("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        hints.push("kernel.unprivileged_userns_clone is 0: set it to 1 with sysctl");
    }
    if sysctl("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        hints.push("AppArmor denies user namespaces to programs without a profile (Ubuntu 24.04): give this program a profile with `userns,`, or set kernel.apparmor_restrict_unprivileged_userns to 0");
    }
    if hints.is_empty() && is_behind_seccomp_filter() {
        hints.push("a seccomp filter is active, such as Docker's default profile: run the container with `--security-opt seccomp=unconfined`");
    }
    hints.into_iter().map(str::to_owned).collect()
}

#[cfg(target_os = "linux")]
fn sysctl(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// Returns true if this thread, and so every process that it starts, has a seccomp filter.
#[cfg(target_os = "linux")]
fn is_behind_seccomp_filter() -> bool {
    let status = os::read_lossy("/proc/thread-self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}
