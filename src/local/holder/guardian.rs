//! Where the processes of a sandbox are in no namespace that would end with its first one: a process
//! that stays outside, waits for the end of that one, and ends what is left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::{io, process};

use crate::confine;
use crate::protocol::Start;
use crate::sys::{self, Child};
use crate::watch;

/// How long to wait for what was killed before looking again.
const KILL_TICK: std::time::Duration = std::time::Duration::from_millis(2);

/// Returns in a child, which has all before it; this process does not come back. It tells of
/// itself, as the sandbox is there for as long as it is.
pub(crate) fn stand_by(
    control: &OwnedFd,
    signals: &OwnedFd,
    host: Option<&OwnedFd>,
) -> io::Result<()> {
    sys::adopt_orphans()?;
    // Nothing in the sandbox can signal this process, and it can signal nothing else.
    confine::no_new_privileges()?;
    confine::keep_signals_inside()?;
    let pidfd = sys::own_pidfd()?;
    let born = Start::Born(process::id()).encode();
    sys::send(control.as_fd(), &born, Some(pidfd.as_fd()))?;
    match sys::fork()? {
        None => sys::adopt_orphans(),
        Some(holder) => {
            let mut sources = vec![signals.as_fd()];
            sources.extend(host.map(AsFd::as_fd));
            guard(holder, &sources)
        }
    }
}

fn guard(holder: u32, sources: &[BorrowedFd<'_>]) -> ! {
    let (signals, host) = (sources[0], sources.get(1));
    let _ = confine::hide();
    let mut goes_on = true;
    while goes_on {
        let ready = sys::wait_readable(sources, crate::LONG).unwrap_or_default();
        let host_ended = host.is_some() && ready.last() == Some(&true);
        let asked_to_end = sys::clear_signals(signals);
        goes_on = !host_ended && !asked_to_end && take_children(holder);
    }
    loop {
        watch::kill_everything();
        loop {
            match sys::take_child() {
                Child::Ended(..) => {}
                Child::Running => break,
                Child::NoneLeft => sys::exit(0),
            }
        }
        let _ = sys::wait_readable(&[signals], KILL_TICK);
        sys::clear_signals(signals);
    }
}

/// Says whether the holder goes on: commands can kill and stop it.
fn take_children(holder: u32) -> bool {
    if !sys::runs(holder) {
        return false;
    }
    loop {
        match sys::take_child() {
            Child::Ended(process, _) if process == holder => return false,
            Child::Ended(..) => {}
            Child::Running | Child::NoneLeft => return true,
        }
    }
}
