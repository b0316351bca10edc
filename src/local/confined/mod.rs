//! Sandboxes that the kernel isolates. A holder process per sandbox runs the commands.

mod cgroup;
mod disk_dir;
#[path = "../holder/encoding.rs"]
mod encoding;
mod etc;
mod exec;
mod factory;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod holder_program;
mod identity;
mod launch;
#[path = "../holder/sys/messages.rs"]
mod messages;
mod persistent_registry;
mod policy;
mod process_registry;
#[path = "../holder/protocol.rs"]
#[allow(dead_code, reason = "each side uses its half")]
mod protocol;
mod reaper;
mod sandbox;
mod seccomp;
mod tier;

#[cfg(any(test, fuzzing))]
pub use self::fuzz::holder_messages;
pub(super) use self::tier::ConfinedTier;
