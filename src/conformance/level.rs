//! Levels of rules, and optional calls.

use std::fmt;

use serde::Serialize;

/// The level of a rule, as in RFC 2119.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// A backend that violates the rule does not conform to v1.
    Must,
    /// Clients expect it, but a backend may have reasons to differ.
    Should,
    /// Only some backends support it.
    May,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Must => "MUST",
            Level::Should => "SHOULD",
            Level::May => "MAY",
        })
    }
}

/// A call that a minimal backend need not implement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionalCall {
    Touch,
    Upload,
    Download,
}

impl fmt::Display for OptionalCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OptionalCall::Touch => "touch",
            OptionalCall::Upload => "upload",
            OptionalCall::Download => "download",
        })
    }
}
