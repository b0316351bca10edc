//! Landlock rules for the commands.

use std::os::fd::AsFd;
use std::{fs, io};

use crate::protocol::LandlockRule;
use crate::sys::c::EOPNOTSUPP;
use crate::sys::isolation::{
    LANDLOCK_SCOPES, landlock_allow, landlock_enforce, landlock_ruleset, landlock_version,
    open_path,
};

/// Access rights of Landlock version 1: reading and executing, then everything else.
const READ: u64 = 0b1101;
const WRITE: u64 = 0b1_1111_1111_0010;

/// Access rights of later versions.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const DEVICE_IOCTL: u64 = 1 << 15;

/// Rights that apply to files. The others apply only to directories.
const FILE_RIGHTS: u64 = 0b111 | TRUNCATE | DEVICE_IOCTL;

/// Enforces the rules and returns the version of Landlock, or 0 if it is not available. Fails if the
/// version is below the minimum.
pub(crate) fn restrict(rules: &[LandlockRule], min_version: u32) -> io::Result<u32> {
    let version = landlock_version();
    if version < min_version {
        return Err(io::Error::from_raw_os_error(EOPNOTSUPP));
    }
    // Version 1 denies every rename between directories.
    if version < 2 {
        return Ok(0);
    }
    let mut handled = READ | WRITE | REFER;
    if version >= 3 {
        handled |= TRUNCATE;
    }
    if version >= 5 {
        handled |= DEVICE_IOCTL;
    }
    let scopes = if version >= 6 { LANDLOCK_SCOPES } else { 0 };
    let ruleset = landlock_ruleset(handled, scopes, version)?;
    for rule in rules {
        let path = match open_path(&rule.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            result => result?,
        };
        let mut allowed = if rule.write { handled } else { READ };
        if !fs::metadata(&rule.path)?.is_dir() {
            allowed &= FILE_RIGHTS;
        }
        landlock_allow(ruleset.as_fd(), path.as_fd(), allowed & handled)?;
    }
    landlock_enforce(ruleset.as_fd())?;
    Ok(version)
}
