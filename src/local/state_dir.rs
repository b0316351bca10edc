//! The state directory: sandboxes and files that are stored on disk.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::os::random::temporary_name;
use crate::os::remove_tree::remove_at;
use crate::os::state_home::state_home;
use crate::session_id::SessionId;

/// Maximum time to wait for the lock. Other processes hold it only for moments.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(30);

/// Name of the lock file.
const LOCK: &str = "lock";

/// Maximum length of a file name on all file systems, minus room for a suffix.
const MAX_NAME: usize = 240;

#[derive(Clone)]
pub(super) struct StateDir {
    dir: PathBuf,
    /// Names of the subdirectories.
    subdirs: &'static [&'static str],
    access: Access,
}

/// Access of other users to the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    None,
    /// Other users can open entries whose names they know.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    Search,
}

impl Access {
    /// Returns the mode of a directory.
    pub(super) fn mode(self) -> u32 {
        match self {
            Access::None => 0o700,
            Access::Search => 0o711,
        }
    }
}

impl StateDir {
    /// Opens the state directory. Creates it and its subdirectories if they do not exist.
    pub(super) fn open(
        dir: &Path,
        subdirs: &'static [&'static str],
        access: Access,
    ) -> Result<StateDir> {
        let failed = |e| cannot_open(dir, e);
        let dir = std::path::absolute(dir).map_err(failed)?;
        let state = StateDir {
            dir,
            subdirs,
            access,
        };
        for (path, forbidden) in state.required_dirs() {
            create_dir(&path, access).map_err(failed)?;
            state.repair(&path, forbidden);
            check_dir(&path, forbidden)?;
            if access == Access::Search {
                make_searchable(&path).map_err(failed)?;
            }
        }
        if access == Access::Search {
            check_searchable(&state.dir)?;
        }
        Ok(state)
    }

    pub(super) fn path(&self, subdir: &str) -> PathBuf {
        self.dir.join(subdir)
    }

    /// Returns the directories that must exist, with the permission bits that they must not have.
    fn required_dirs(&self) -> Vec<(PathBuf, u32)> {
        let private = 0o777 & !self.access.mode();
        let subdirs = self.subdirs.iter();
        let mut dirs: Vec<_> = subdirs.map(|subdir| (self.path(subdir), private)).collect();
        dirs.insert(0, (self.dir.clone(), 0o022));
        dirs
    }

    /// Restores the modes of a directory of an earlier backend and of its lock file. Without namespaces,
    /// commands of this user can have changed them.
    fn repair(&self, path: &Path, forbidden: u32) {
        repair_mode(path, 0o700, 0);
        let lock = self.dir.join(LOCK);
        // Without a lock file, the directory may not be ours.
        if own_mode(&lock).is_some() {
            repair_mode(&lock, 0o600, 0o077);
            repair_mode(path, 0o700, forbidden);
        }
    }

    /// Checks that all directories exist and are private.
    pub(super) fn check(&self) -> Result<()> {
        let mut dirs = self.required_dirs().into_iter();
        dirs.try_for_each(|(path, forbidden)| check_dir(&path, forbidden))
    }

    /// Takes the lock that protects creation, removal and TTL changes of sandboxes. The wait is
    /// bounded because the process that holds the lock may have been stopped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK);
        let failed = |e| Error::io(format_args!("cannot lock {}", path.display()), e);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let end = Instant::now() + MAX_LOCK_WAIT;
        while !os::lock(file.as_fd()).map_err(failed)? {
            if Instant::now() > end {
                let text = format!(
                    "cannot lock {}: timed out after {} s, another process holds the lock",
                    path.display(),
                    MAX_LOCK_WAIT.as_secs()
                );
                return Err(Error::new(ErrorKind::Timeout, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(file)
    }
}

/// Returns the default state directory of this user.
pub(super) fn default_state_dir() -> Result<PathBuf> {
    state_home().ok_or_else(|| {
        Error::new(
            ErrorKind::Io,
            "no default state directory, XDG_STATE_HOME and HOME are not absolute paths: set one with state_dir()",
        )
    })
}

fn cannot_open(dir: &Path, cause: io::Error) -> Error {
    Error::io(
        format_args!("cannot open the state directory {}", dir.display()),
        cause,
    )
}

fn create_dir(path: &Path, access: Access) -> io::Result<()> {
    let created = DirBuilder::new()
        .recursive(true)
        .mode(access.mode())
        .create(path);
    match created {
        // A link or a file at this path gets a better error from the check that follows.
        Err(_) if path.symlink_metadata().is_ok() => Ok(()),
        result => result,
    }
}

/// Returns the mode of a file or directory of this user.
fn own_mode(path: &Path) -> Option<u32> {
    let found = path.symlink_metadata().ok()?;
    let is_own = !found.is_symlink() && found.uid() == os::effective_uid();
    is_own.then_some(found.mode() & 0o777)
}

/// Adds the needed permissions and removes the forbidden ones, if this user owns the file or directory.
fn repair_mode(path: &Path, needed: u32, forbidden: u32) {
    let Some(mode) = own_mode(path) else { return };
    let repaired = (mode | needed) & !forbidden;
    if repaired != mode {
        let shown = path.display();
        log::warn!("{shown} had mode {mode:03o}: changed it to {repaired:03o}");
        let _ = fs::set_permissions(path, Permissions::from_mode(repaired));
    }
}

fn make_searchable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o777;
    fs::set_permissions(path, Permissions::from_mode(mode | 0o011))
}

/// Checks that only this user can change the directory. Another user with write access could
/// replace files of the sandboxes.
fn check_dir(path: &Path, forbidden: u32) -> Result<()> {
    let shown = path.display();
    let found = fs::symlink_metadata(path).map_err(|e| cannot_open(path, e))?;
    let refuse = |problem: String| {
        Err(Error::new(
            ErrorKind::Io,
            format!("state directory {shown} {problem}"),
        ))
    };
    if !found.is_dir() {
        return refuse("is not a directory itself, but a link or a file".to_owned());
    }
    if found.uid() != os::effective_uid() {
        return refuse(format!(
            "belongs to user {}: choose another one with state_dir()",
            found.uid()
        ));
    }
    let mode = found.mode() & 0o777;
    if mode & forbidden != 0 {
        return refuse(format!(
            "has mode {mode:03o}, which gives access to other users: chmod {:03o} it",
            mode & !forbidden
        ));
    }
    Ok(())
}

/// Checks that the user id that the sandboxes run as can reach the directory.
fn check_searchable(dir: &Path) -> Result<()> {
    for dir in dir.ancestors() {
        let found = fs::metadata(dir).map_err(|e| cannot_open(dir, e))?;
        if found.mode() & 0o001 == 0 {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "directory {} is not searchable by other users, and sandboxes without namespaces run as another user: choose another one with state_dir()",
                    dir.display()
                ),
            ));
        }
    }
    Ok(())
}

/// Name of the record of a sandbox in its directory.
pub(super) const RECORD: &str = "sandbox.json";

/// Writes the record in the directory of a sandbox, at once or not at all.
pub(super) fn write_record(dir: &Path, record: &impl Serialize) -> io::Result<()> {
    let new = dir.join(temporary_name());
    let mut file = os::create_private_file(&new)?;
    let written = file
        .write_all(&serde_json::to_vec(record)?)
        .and_then(|()| fs::rename(&new, dir.join(RECORD)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Reads the record in the directory of a sandbox. Returns `None` if it does not exist.
pub(super) fn read_record<T: DeserializeOwned>(dir: &Path) -> Result<Option<T>> {
    let path = dir.join(RECORD);
    let read = read_own(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    match read.map_err(|e| (e.kind(), e)) {
        Ok(record) => Ok(Some(record)),
        Err((io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, _)) => Ok(None),
        Err((_, e)) => Err(Error::io(format_args!("cannot read {}", path.display()), e)),
    }
}

/// Reads a file of this user. Others may have written one while they had access to the directory.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.uid() != os::effective_uid() {
        return Err(io::Error::other("belongs to another user"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Locks a directory until the returned file is closed. Returns `None` if another process has locked
/// or removed it.
pub(super) fn lock_dir(path: &Path) -> Option<File> {
    let dir = File::open(path).ok()?;
    os::lock(dir.as_fd()).ok()?.then_some(dir)
}

/// Removes a directory with everything in it, if it exists.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    let removed = || {
        let parent = File::open(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().unwrap_or_default();
        remove_at(parent.as_fd(), name.as_encoded_bytes())
    };
    match removed() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => {
            result.map_err(|e| Error::io(format_args!("cannot remove {}", path.display()), e))
        }
    }
}

/// Encodes an id as a file name. Different ids have different names, also on file systems that ignore
/// case.
pub(super) fn file_name(id: &SessionId) -> Result<String> {
    let mut name = String::new();
    for byte in id.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("_{byte:02x}")),
        }
    }
    if name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "session id is too long for a local sandbox: its file name has {} characters, the limit is {MAX_NAME}",
            name.len()
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(id: &str) -> String {
        file_name(&SessionId::new(id).unwrap()).unwrap()
    }

    #[test]
    fn file_names_contain_only_safe_characters() {
        assert_eq!(name("a-1"), "a-1");
        assert_eq!(name("../x"), "_2e_2e_2fx");
        assert_eq!(name("A_"), "_41_5f");
        let long = SessionId::new("x".repeat(300)).unwrap();
        assert!(
            file_name(&long)
                .unwrap_err()
                .to_string()
                .contains("300 characters")
        );
    }

    proptest! {
        #[test]
        fn file_names_are_unique(a in "[a-c._A-C/ ]{1,8}", b in "[a-c._A-C/ ]{1,8}") {
            prop_assume!(![".", ".."].contains(&a.as_str()) && ![".", ".."].contains(&b.as_str()));
            prop_assert_eq!(a == b, name(&a).to_lowercase() == name(&b).to_lowercase());
        }
    }
}
