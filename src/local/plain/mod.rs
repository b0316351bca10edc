//! Sandboxes without isolation: a directory each, and plain processes of this user.

mod sandbox;
mod tier;

pub(super) use self::tier::PlainTier;
