//! The holder of a local sandbox: a separate program that the library contains and starts once per
//! sandbox.
//!
//! The holder becomes the first process of new namespaces, creates their root and drops all
//! capabilities. Then it starts commands for the library until it is killed, the TTL expires, or
//! the process that owns the sandbox ends. All other processes of the sandbox end with it. It has
//! one thread and uses no crates.
//!
//! - `protocol` and `encoding`: messages between the library and the holder; compiled into both.
//! - `setup`: turns the started process into the first process of a sandbox.
//! - `root`, `etc`: mount the private root. `landlock`: restricts file access.
//! - `guardian`: kills the remaining processes of a sandbox without namespaces.
//! - `serve`: the event loop. `running_command`: a command until its end.
//! - `supervisor`: one process per command that shares the memory of the holder.
//! - `processes`, `mapping`, `memory_use`, `sysv`: the sandbox's processes, their memory and System V
//!   objects.
//! - `memory_watch`, `disk_watch`: the limits of memory and storage.
//! - `sys`: system calls.
#![no_main]

mod disk_watch;
mod encoding;
mod etc;
mod guardian;
mod landlock;
mod mapping;
mod memory_use;
mod memory_watch;
mod processes;
#[allow(dead_code, reason = "each side uses its half")]
mod protocol;
mod root;
mod running_command;
mod serve;
mod setup;
mod supervisor;
mod sys;
mod sysv;

use std::ffi::c_int;
use std::os::fd::AsFd;

use encoding::Encoding;
use sys::{messages, process};

/// The C library calls this function. The start of a Rust program, which prepares the handling of stack
/// overflows, would take a fiftieth of the time of creating a sandbox.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    let control = process::inherited(0);
    match setup::enter(&control) {
        Ok(sandbox) => serve::run(&control, sandbox),
        Err(report) => {
            // The send fails if the library's process has ended.
            let _ = messages::send(control.as_fd(), &report.encode(), &[]);
        }
    }
    0
}
