//! The key of this user, which is created on first use.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use super::token::Key;
use crate::engine::random_hex;
use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::os::random::temporary_name;

/// Name of the file in the state directory.
const NAME: &str = "kubernetes.key";

/// Returns the key of this user. Other processes find the same one.
pub(super) fn load_or_create(dir: &Path) -> Result<Key> {
    let path = dir.join(NAME);
    let failed = |e| Error::io(format_args!("cannot create the key {}", path.display()), e);
    if !path.exists() {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
        create(dir, &path, &random_hex()?).map_err(failed)?;
    }
    check(&path)?;
    let failed = |e| Error::io(format_args!("cannot read the key {}", path.display()), e);
    Key::new(&fs::read(&path).map_err(failed)?)
}

/// Creates the file at once with its content, unless another process has done so.
fn create(dir: &Path, path: &Path, key: &str) -> io::Result<()> {
    let new = dir.join(temporary_name());
    let mut file = os::create_private_file(&new)?;
    let linked = file
        .write_all(key.as_bytes())
        .and_then(|()| fs::hard_link(&new, path));
    let _ = fs::remove_file(&new);
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Refuses a key that others can read or have written.
fn check(path: &Path) -> Result<()> {
    let shown = path.display();
    let failed = |e| Error::io(format_args!("cannot read the key {shown}"), e);
    let found = fs::metadata(path).map_err(failed)?;
    let mode = found.mode() & 0o777;
    if found.uid() != os::effective_uid() || mode & 0o077 != 0 {
        let text = format!(
            "key {shown} has mode {mode:03o} and belongs to user {}: only this user may have access, chmod 600 it",
            found.uid()
        );
        return Err(Error::new(ErrorKind::Io, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn key_is_created_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let token =
            || load_or_create(&state).map(|key| key.token("ns", "pod", "n").as_str().to_owned());
        let first = token().unwrap();
        assert_eq!(token().unwrap(), first);
        let path = state.join(NAME);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = token().unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}
