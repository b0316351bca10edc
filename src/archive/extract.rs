//! Rules for unpacking.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use super::extraction::Extraction;
use super::read::{Entries, UnpackLimits};
use super::unpack::{Directories, Links, Stop, UNREADABLE_RULE, Unpacker, failed, shown};
use crate::error::{Error, Result};
use crate::os;

/// Rules for unpacking the archive of a download on this machine.
///
/// The archive is treated as hostile. An entry is refused if:
///
/// - its name is absolute, has a `..` component or a NUL byte, or is longer than 4096 bytes;
/// - it would be written through a symbolic link;
/// - it is a symbolic link that leads out of the target: with an absolute path, with more `..` than the
///   link is deep, or with a `..` after another component;
/// - it is a hard link to anything but a file of the same archive;
/// - it is a device, a FIFO or a sparse file.
///
/// An entry that the sandbox could not archive, for example because its mode does not allow reading it, is
/// never an error: [`Extraction::refused`] reports it. This crate's local sandboxes send such reports.
///
/// Owners and the setuid, setgid and sticky bits are never applied. A refused entry is an error unless
/// [`skip_refused`](Extract::skip_refused) is set.
///
/// ```
/// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::Extract;
///
/// sandbox.upload([("a", "1"), ("b", "2")], ".")?;
/// let extract = Extract::new().max_bytes(64 * 1024 * 1024).max_entries(1);
/// assert!(sandbox.download_dir_with(".", dir.path().join("out"), &extract).is_err());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Extract {
    limits: UnpackLimits,
    skip_refused: bool,
    /// The space that is left for the files, in bytes.
    room: Option<u64>,
    /// A directory of the archive that is not unpacked.
    left_out: Option<&'static str>,
}

/// The space that an empty file takes, in bytes.
const MIN_FILE: u64 = 4096;

impl Extract {
    /// Creates the default rules: at most 1,000,000 entries and 64 GiB, a ratio of at most 200, and any
    /// refused entry is an error.
    #[must_use]
    pub fn new() -> Extract {
        Extract::default()
    }

    /// Sets the maximum number of entries, including the directories that their names need. Defaults
    /// to 1,000,000.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Extract {
        self.limits.entries = entries;
        self
    }

    /// Sets the maximum size of the unpacked archive, including headers, in bytes. Defaults to 64 GiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Extract {
        self.limits.bytes = bytes;
        self
    }

    /// Sets the maximum ratio of unpacked to received bytes, which applies to archives of more than
    /// 256 MiB. Defaults to 200.
    #[must_use]
    pub fn max_ratio(mut self, ratio: u64) -> Extract {
        self.limits.ratio = ratio;
        self
    }

    /// Skips refused entries and reports them in [`Extraction::refused`], instead of failing. Exceeding
    /// a limit remains an error, and so does a conflict with what already exists in the target.
    /// Defaults to false.
    #[must_use]
    pub fn skip_refused(mut self, skip: bool) -> Extract {
        self.skip_refused = skip;
        self
    }

    /// Returns the rules for content that the caller requested by its size, or sends itself.
    pub(crate) fn any_size() -> Extract {
        Extract::new().max_bytes(u64::MAX).max_ratio(u64::MAX)
    }

    /// Fails with "no space left" if the files need more than this.
    #[cfg(feature = "local")]
    pub(crate) fn with_room(mut self, bytes: Option<u64>) -> Extract {
        self.room = bytes;
        self
    }

    /// Does not unpack this directory at the top of the archive.
    pub(crate) fn leave_out(mut self, dir: Option<&'static str>) -> Extract {
        self.left_out = dir;
        self
    }

    fn leaves_out(&self, name: &[u8]) -> bool {
        let name = name.strip_prefix(b"./").unwrap_or(name);
        let mut parts = name.split(|b| *b == b'/');
        let top = parts.next().filter(|top| !top.is_empty());
        top.is_some() && top == self.left_out.map(str::as_bytes)
    }

    pub(crate) fn limits(&self) -> UnpackLimits {
        self.limits
    }

    /// Unpacks into a private directory.
    pub(super) fn unpack(
        &self,
        archive: impl Read,
        dir: OwnedFd,
        links: Links,
    ) -> Result<(Extraction, Directories)> {
        // The directory was created with all permissions, so its mode shows the umask.
        let umask = os::stat_fd(dir.as_fd()).map_err(|e| failed(e, b"."))?.mode & 0o777;
        let mut unpacker = Unpacker::new(dir, umask, links);
        let mut room = self.room.unwrap_or(u64::MAX);
        Entries::for_each(archive, self.limits, |entry, content| {
            if self.leaves_out(&entry.name) {
                return Ok(());
            }
            let left = room.checked_sub(entry.size.max(MIN_FILE));
            room = left.ok_or_else(|| failed(io::ErrorKind::StorageFull.into(), &entry.name))?;
            match unpacker.entry(entry, content) {
                Ok(()) => {}
                Err(Stop::Refused(rule)) if self.skip_refused || rule == UNREADABLE_RULE => {
                    unpacker.refuse(&entry.name, rule);
                }
                Err(Stop::Refused(rule)) => {
                    return Err(Error::archive(format!(
                        "entry {:?} is refused: {rule}",
                        shown(&entry.name)
                    )));
                }
                Err(Stop::Failed(e)) => return Err(failed(e, &entry.name)),
            }
            unpacker.check_size(self.limits.entries)
        })?;
        Ok((unpacker.done, unpacker.directories))
    }
}
