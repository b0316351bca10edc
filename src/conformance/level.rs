//! Levels of rules, and optional calls.

use std::fmt;

use serde::{Serialize, Serializer};

/// The level of a rule, as in RFC 2119.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
