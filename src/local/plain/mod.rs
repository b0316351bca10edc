//! Sandboxes without isolation: a directory each, and plain processes of this user.

mod process_marks;
mod record;
mod runner;
mod store;
mod tier;

pub(super) use self::tier::PlainTier;
