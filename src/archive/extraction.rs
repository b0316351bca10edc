//! The result of unpacking.

use serde::Serialize;

/// The result of unpacking an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Extraction {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) refused: Vec<Refusal>,
}

impl Extraction {
    /// Returns the number of entries written, including directories and links.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the total size of the files written, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the entries that were refused, if [`Extract::skip_refused`](crate::Extract::skip_refused) is set, and those that the
    /// sandbox could not archive, with the rule `unreadable in the sandbox`.
    #[must_use]
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }
}

/// An entry of an archive that was refused, and the rule that it violates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub(super) name: String,
    pub(super) rule: &'static str,
}

impl Refusal {
    /// Returns the name of the entry. Bytes that are not UTF-8 became U+FFFD.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the rule.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}
