//! The process that holds a sandbox. The sandbox exists as long as this process runs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::local::sys;
use crate::os;

/// Maximum time until a killed sandbox is gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

pub(super) struct HolderProcess {
    /// The process id of the first process of the namespaces, or of the guardian.
    pub(super) pid: u32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// The user id that owns the files, if it is not this process's.
    pub(super) user: Option<u32>,
    /// The host's path of the files, if commands see them there. `None` if they have a private root.
    pub(super) host_dir: Option<PathBuf>,
}

impl HolderProcess {
    /// Returns true if the process ends within the time.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        os::poll_readable([Some(self.pidfd.as_fd())], time).is_ok_and(|[ended]| ended)
    }

    /// Ends the sandbox with all its processes.
    pub(super) fn end(&self) {
        let pidfd = self.pidfd.as_fd();
        // A guardian must kill the other processes before it ends itself. A pid namespace ends with
        // its first process.
        let signal = if self.host_dir.is_some() {
            libc::SIGTERM
        } else {
            libc::SIGKILL
        };
        sys::kill(pidfd, signal);
        // A process that waits for a disk takes longer, and cannot be hurried.
        let _ = os::poll_readable([Some(pidfd)], KILL_WAIT);
        sys::reap(pidfd);
    }
}
