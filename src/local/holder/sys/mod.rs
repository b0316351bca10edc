//! System calls, as safe functions. Only `supervisor` contains other `unsafe` code.

pub(crate) mod c;
pub(crate) mod isolation;
pub(crate) mod messages;
pub(crate) mod process;
