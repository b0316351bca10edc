//! The holder's program, as a file that can be executed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::local::sys;
use crate::os::random::random_u64;

#[cfg(noxrunner_holder)]
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holder"));
#[cfg(not(noxrunner_holder))]
const PROGRAM: &[u8] = &[];

/// Returns the path of the program. The file is created once per process.
pub(super) fn program_path() -> io::Result<String> {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = FILE.get() {
        return Ok(path_of(file));
    }
    let created = match sys::sealed_file("noxrunner-sandbox", PROGRAM, true) {
        Ok(file) if can_run(&file) => file,
        // Some systems do not allow executing files in memory.
        _ => unlinked_file()?,
    };
    Ok(path_of(FILE.get_or_init(|| created)))
}

fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn can_run(file: &OwnedFd) -> bool {
    // The program ends at once if its stdin is not a socket.
    let mut command = Command::new(path_of(file));
    let command = command.env_clear().stdin(Stdio::null());
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.is_ok_and(|mut child| {
        let _ = child.wait();
        true
    })
}

/// Writes the program to a temporary file and removes its name.
fn unlinked_file() -> io::Result<OwnedFd> {
    let dir = std::env::temp_dir().join(format!("noxrunner-{:016x}", random_u64()));
    DirBuilder::new().mode(0o700).create(&dir)?;
    let path = dir.join("holder");
    let write = || {
        // This closes the file: the kernel does not execute a file that is open for writing.
        fs::write(&path, PROGRAM)?;
        fs::set_permissions(&path, Permissions::from_mode(0o500))?;
        File::open(&path)
    };
    let file = write();
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir(&dir);
    file.map(OwnedFd::from)
}
