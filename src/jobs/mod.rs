//! Jobs: commands that run without a caller, with live output, built from plain exec.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod info;
mod job;
mod list;
mod output;
mod poll;
mod poller;
mod scripts;
mod spawn;
mod wait;

pub use self::info::{JobInfo, JobState, JobStatus};
pub use self::job::Job;
pub use self::output::JobOutput;
