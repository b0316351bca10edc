//! The directory where sandboxes are kept that outlive a process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::session_id::SessionId;

/// How long to wait for another process that changes something. It takes moments.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(30);

/// The longest file name everywhere, less room for a suffix.
const MAX_NAME: usize = 240;

#[derive(Clone)]
pub(super) struct StateDir {
    dir: PathBuf,
    /// The directories in it.
    parts: &'static [&'static str],
    access: Access,
}

/// What others may do with the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    None,
    /// Reach what is in there, by its name.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    Pass,
}

impl Access {
    /// The mode of a directory.
    pub(super) fn mode(self) -> u32 {
        match self {
            Access::None => 0o700,
            Access::Pass => 0o711,
        }
    }
}

impl StateDir {
    /// Makes what is not there yet.
    pub(super) fn open(
        dir: &Path,
        parts: &'static [&'static str],
        access: Access,
    ) -> Result<StateDir> {
        let failed = |e| Error::io(format_args!("state directory {}", dir.display()), e);
        let dir = std::path::absolute(dir).map_err(failed)?;
        let state = StateDir { dir, parts, access };
        for dir in state.dirs() {
            let made = DirBuilder::new()
                .recursive(true)
                .mode(access.mode())
                .create(&dir.0);
            // A link or a file in its place is named by the check.
            made.or_else(|e| {
                if dir.0.symlink_metadata().is_ok() {
                    Ok(())
                } else {
                    Err(e)
                }
            })
            .map_err(failed)?;
            check_own(&dir)?;
            if access == Access::Pass {
                let mode = fs::metadata(&dir.0).map_err(failed)?.mode() & 0o777;
                fs::set_permissions(&dir.0, Permissions::from_mode(mode | 0o011))
                    .map_err(failed)?;
            }
        }
        if access == Access::Pass {
            check_reachable(&state.dir)?;
        }
        Ok(state)
    }

    pub(super) fn path(&self, part: &str) -> PathBuf {
        self.dir.join(part)
    }

    /// The directories that must be there, and what others may not have there.
    fn dirs(&self) -> Vec<(PathBuf, u32)> {
        let mut dirs = vec![(self.dir.clone(), 0o022)];
        dirs.extend(
            self.parts
                .iter()
                .map(|part| (self.path(part), 0o777 & !self.access.mode())),
        );
        dirs
    }

    pub(super) fn check(&self) -> Result<()> {
        self.dirs().iter().try_for_each(check_own)
    }

    /// Held while sandboxes come, go or change their time; other processes wait, but not for ever:
    /// whoever holds it may have been stopped.
    pub(super) fn lock(&self) -> Result<File> {
        let failed = |e| Error::io("cannot lock the state directory", e);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("lock"))
            .map_err(failed)?;
        let end = Instant::now() + MAX_LOCK_WAIT;
        while !os::lock(file.as_fd()).map_err(failed)? {
            if Instant::now() > end {
                let text = format!(
                    "another process has held {} for {} s",
                    self.dir.join("lock").display(),
                    MAX_LOCK_WAIT.as_secs()
                );
                return Err(Error::new(ErrorKind::Timeout, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(file)
    }
}

/// The directory must be ours alone: who can write to it can make our commands theirs.
fn check_own((dir, forbidden): &(PathBuf, u32)) -> Result<()> {
    let shown = dir.display();
    let found = fs::symlink_metadata(dir)
        .map_err(|e| Error::io(format_args!("state directory {shown}"), e))?;
    let refuse = |why: String| {
        Err(Error::new(
            ErrorKind::Io,
            format!("state directory {shown} {why}"),
        ))
    };
    if !found.is_dir() {
        return refuse("is not a directory itself, but a link or a file".to_owned());
    }
    if found.uid() != os::effective_uid() {
        return refuse(format!(
            "belongs to user {}: choose another with state_dir()",
            found.uid()
        ));
    }
    let mode = found.mode() & 0o777;
    if mode & forbidden != 0 {
        return refuse(format!(
            "has mode {mode:03o}, which lets others in: chmod {:03o} it",
            mode & !forbidden
        ));
    }
    Ok(())
}

/// Whoever the sandboxes run as must be able to come there.
fn check_reachable(dir: &Path) -> Result<()> {
    for dir in dir.ancestors() {
        let found = fs::metadata(dir)
            .map_err(|e| Error::io(format_args!("state directory {}", dir.display()), e))?;
        if found.mode() & 0o001 == 0 {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "directory {} lets nobody else pass, and sandboxes without namespaces run as another user: choose another with state_dir()",
                    dir.display()
                ),
            ));
        }
    }
    Ok(())
}

/// The id as a file name: no two ids have the same, also where case does not count.
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
            "the session id is too long for a local sandbox: as a file name it has {} characters, the limit is {MAX_NAME}",
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
    fn names_are_plain() {
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
        fn no_two_ids_share_a_name(a in "[a-c._A-C/ ]{1,8}", b in "[a-c._A-C/ ]{1,8}") {
            prop_assume!(![".", ".."].contains(&a.as_str()) && ![".", ".."].contains(&b.as_str()));
            prop_assert_eq!(a == b, name(&a).to_lowercase() == name(&b).to_lowercase());
        }
    }
}
