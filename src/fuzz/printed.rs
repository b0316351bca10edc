//! Text that scripts and errors print.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::Error;
use crate::printable::is_hidden;

/// Encodes bytes as the command `base64` does.
pub(crate) fn base64_lines(bytes: &[u8]) -> String {
    let lines = bytes.chunks(57).map(|line| STANDARD.encode(line) + "\n");
    lines.collect()
}

/// Checks that an error can be shown on a terminal, whatever an archive or a server has put into it.
pub(crate) fn check_shown(error: &Error) {
    let shown = format!("{error:#}");
    let is_escaped = |c: char| matches!(c, '\n' | '\t') || !is_hidden(c);
    assert!(shown.chars().all(is_escaped), "{shown:?}");
}
