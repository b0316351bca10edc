//! The guardian of a sandbox without a pid namespace. It waits for the end of the holder and kills the
//! remaining processes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use std::{io, process};

use crate::encoding::Encoding;
use crate::processes::kill_everything;
use crate::protocol::StartReport;
use crate::sys::isolation::{hide, keep_signals_inside, no_new_privileges};
use crate::sys::messages;
use crate::sys::process::{
    Child, IDLE_WAIT, adopt_orphans, clear_signals, exit, fork, is_child_running, own_pidfd,
    take_child, wait_readable,
};

/// Time between a kill and the next scan for processes.
const KILL_TICK: Duration = Duration::from_millis(2);

/// Forks. The child returns and becomes the holder. This process becomes the guardian and does not
/// return. It reports its own pidfd, because the sandbox exists as long as it runs.
pub(crate) fn fork_guardian(
    control: &OwnedFd,
    signals: &OwnedFd,
    host: Option<&OwnedFd>,
) -> io::Result<()> {
    adopt_orphans()?;
    // The Landlock domain of the sandbox is nested in the one that this creates. So the sandbox cannot
    // signal the guardian, and the guardian can signal only the sandbox.
    no_new_privileges()?;
    keep_signals_inside()?;
    let pidfd = own_pidfd()?;
    let started = StartReport::Started(process::id()).encode();
    messages::send(control.as_fd(), &started, &[pidfd.as_fd()])?;
    match fork()? {
        None => adopt_orphans(),
        Some(holder) => guard(holder, signals.as_fd(), host.map(AsFd::as_fd)),
    }
}

fn guard(holder: u32, signals: BorrowedFd<'_>, host: Option<BorrowedFd<'_>>) -> ! {
    let _ = hide();
    let mut sources = vec![signals];
    sources.extend(host);
    let mut goes_on = true;
    while goes_on {
        let ready = wait_readable(&sources, IDLE_WAIT).unwrap_or_default();
        let host_ended = host.is_some() && ready.last() == Some(&true);
        let asked_to_end = clear_signals(signals);
        goes_on = !host_ended && !asked_to_end && reap_until_holder(holder);
    }
    loop {
        kill_everything();
        loop {
            match take_child() {
                Child::Ended(..) => {}
                Child::Running => break,
                Child::NoneLeft => exit(0),
            }
        }
        let _ = wait_readable(&[signals], KILL_TICK);
        clear_signals(signals);
    }
}

/// Reaps children. Returns false if a command has killed or stopped the holder.
fn reap_until_holder(holder: u32) -> bool {
    if !is_child_running(holder) {
        return false;
    }
    loop {
        match take_child() {
            Child::Ended(pid, _) if pid == holder => return false,
            Child::Ended(..) => {}
            Child::Running | Child::NoneLeft => return true,
        }
    }
}
