//! Changing the mode of a directory, but not through a symbolic link.
#![expect(unsafe_code, reason = "system calls that std lacks")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::{check, open_dir_at};

/// Sets the mode of a directory. Anything that has replaced it, such as a symbolic link, is an error.
pub(crate) fn chmod_dir_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    match open_dir_at(dir, name) {
        Ok(found) => fchmod(found.as_fd(), mode),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => chmod_unreadable(dir, name, mode),
        Err(e) => Err(e),
    }
}

fn fchmod(dir: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fchmod(dir.as_raw_fd(), mode as libc::mode_t) }).map(drop)
}

/// Sets the mode of a directory that this user cannot open, through a descriptor that only names it.
#[cfg(target_os = "linux")]
fn chmod_unreadable(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let found = super::openat(dir, name, flags, 0)?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let result = unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            found.as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EMPTY_PATH,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Linux before 6.6, or a system call filter that does not know the call.
        e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            let path = format!("/proc/self/fd/{}", found.as_raw_fd());
            std::fs::set_permissions(path, Permissions::from_mode(mode))
        }
        e => Err(e),
    }
}

/// The number of the call is the same on all architectures but alpha.
#[cfg(target_os = "linux")]
const SYS_FCHMODAT2: libc::c_long = 452;

#[cfg(not(target_os = "linux"))]
fn chmod_unreadable(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    let name = super::c_name(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let result =
        unsafe { libc::fchmodat(dir.as_raw_fd(), name.as_ptr(), mode as libc::mode_t, flags) };
    check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            let found = fs::metadata(dir.path().join(name)).unwrap();
            found.permissions().mode() & 0o7777
        };
        fs::create_dir(dir.path().join("d")).unwrap();
        symlink("d", dir.path().join("l")).unwrap();
        let top = File::open(dir.path()).unwrap();
        for chmod in [chmod_dir_at, chmod_unreadable] {
            for wanted in [0o500, 0o755] {
                chmod(top.as_fd(), b"d", wanted).unwrap();
                assert_eq!(mode("d"), wanted);
            }
            assert!(chmod(top.as_fd(), b"l", 0o700).is_err());
            assert_eq!(mode("d"), 0o755);
        }
        fs::write(dir.path().join("f"), "").unwrap();
        let error = chmod_dir_at(top.as_fd(), b"f", 0o700).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
