//! Sandboxes without isolation: a directory each, and plain processes of this user.

mod process_marks;
mod runner;
mod sandbox;
mod tier;

pub(super) use self::tier::PlainTier;
