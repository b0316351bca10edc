//! The directory for the state of this user.

use std::env;
use std::path::PathBuf;

/// Returns `noxrunner` in `$XDG_STATE_HOME` or `~/.local/state`, if one of them is known.
pub(crate) fn state_home() -> Option<PathBuf> {
    let absolute = |variable| {
        env::var_os(variable)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("noxrunner"))
}
