//! POSIX `sh` scripts that run in a sandbox.

mod shell_quote;

pub use self::shell_quote::shell_quote;
