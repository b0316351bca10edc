//! Copying the program into a directory, which containers share.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::os::random::temporary_name;

/// The running program, under any name.
const RUNNING_PROGRAM: &str = "/proc/self/exe";

/// Copies the running program to `noxrc` in a directory, and returns its path. An existing file is replaced
/// at once, also if it runs. The init container of a pod calls this.
///
/// # Errors
///
/// [`Io`](crate::ErrorKind::Io) if the directory does not exist or is not writable.
pub fn install(dir: impl AsRef<Path>) -> Result<PathBuf> {
    let target = dir.as_ref().join("noxrc");
    let temporary = dir.as_ref().join(temporary_name());
    let copied = copy(&temporary).and_then(|()| fs::rename(&temporary, &target));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let shown = target.display();
    copied.map_err(|e| Error::io(format_args!("cannot install {shown}"), e))?;
    Ok(target)
}

fn copy(target: &Path) -> io::Result<()> {
    let mut to = File::create_new(target)?;
    io::copy(&mut File::open(RUNNING_PROGRAM)?, &mut to)?;
    to.set_permissions(Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_replaced_and_executable() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("noxrc"), "old").unwrap();
        let path = install(dir.path()).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(RUNNING_PROGRAM).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = install(dir.path().join("missing")).unwrap_err();
        assert!(error.to_string().contains("missing/noxrc"), "{error}");
    }
}
