//! The holder of a local sandbox: a program of its own, which the library carries within it and
//! starts for each sandbox. It becomes the first process of new namespaces, makes their root, gives
//! up every right, and then starts commands for the library until it is killed, its time is over,
//! or the process that it belongs to has ended. All else in the sandbox ends with it.
//!
//! - `protocol`: what it and the library say to each other; compiled into both.
//! - `setup`: from a plain process to the locked-up first process of a sandbox.
//! - `guardian`: ends what is left of a sandbox that has no namespaces.
//! - `serve`: what that process does from then on.
//! - `beside`: one process per command, its supervisor, which shares the memory of the first one.
//! - `watch`: the other processes of the sandbox: who descends from whom, who takes how much.
//! - `sys`, `confine`, `c`: the system calls. There are no crates here, and no threads.

mod beside;
mod c;
mod confine;
mod guardian;
#[allow(dead_code, reason = "each side uses its half")]
mod protocol;
mod serve;
mod setup;
mod sys;
mod watch;

use std::os::fd::AsFd;
use std::time::Duration;

/// With nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

fn main() {
    let control = sys::inherited(0);
    let mut stage = "";
    match setup::enter(&control, &mut stage) {
        Ok(sandbox) => serve::run(&control, sandbox),
        Err(e) => {
            let failed = protocol::Start::Failed {
                step: stage.to_owned(),
                errno: e.raw_os_error().unwrap_or(0),
            };
            // Without anybody to tell there is nothing left to do.
            let _ = sys::send(control.as_fd(), &failed.encode(), None);
        }
    }
}
