//! The isolation tiers.

use std::fmt;

/// The degree of isolation between a local sandbox and this machine.
///
/// `Display` shows `namespaces`, `landlock` or `none`.
///
/// ```
/// use noxrunner::{Isolation, LocalBackend};
///
/// let backend = LocalBackend::builder().isolation(Isolation::Namespaces).build()?;
/// assert_eq!(backend.isolation().to_string(), "namespaces");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Private namespaces for users, mounts, processes, network, IPC, host name and cgroups. Commands
    /// run without capabilities, behind a seccomp filter and Landlock rules. Linux only.
    #[default]
    Namespaces,
    /// Landlock rules and a seccomp filter, for machines that do not allow namespaces, such as
    /// containers. Commands see the machine's processes and have no network. `/workspace` and `/tmp`
    /// are directories of this machine. Requires Linux 6.12, or 5.19 as root.
    Landlock,
    /// No isolation. Commands are plain processes of this user with a private directory and a clean
    /// environment. For code that you would run yourself, or if the whole machine is the sandbox.
    None,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Namespaces => "namespaces",
            Isolation::Landlock => "landlock",
            Isolation::None => "none",
        })
    }
}
