//! The sandbox that a container is, seen from inside: commands run beside this process.

mod oom_kills;
mod tier;

pub(crate) use self::tier::ContainerTier;
