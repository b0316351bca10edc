//! The state of a job.

use std::fmt;
use std::process::ExitCode;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::os::unix_seconds;

/// The exit code of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
#[must_use = "the exit code says whether the job succeeded"]
pub struct JobStatus(i32);

impl JobStatus {
    pub(super) fn new(exit_code: i32) -> JobStatus {
        JobStatus(exit_code)
    }

    /// Returns the exit code: 0 means success, 124 that the job exceeded the timeout of its command,
    /// 127 that its program does not exist, and 128 + N that signal N killed it.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        self.0
    }

    /// Returns true if the exit code is 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Converts into the exit code of this process. Codes that a process cannot have become 1.
impl From<JobStatus> for ExitCode {
    fn from(status: JobStatus) -> ExitCode {
        u8::try_from(status.0).unwrap_or(1).into()
    }
}

/// The state of a job. `Display` shows `running`, `exited 3` or `lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// The job is running.
    Running,
    /// The job has finished, or was killed with [`Job::kill`](super::Job::kill).
    Exited(JobStatus),
    /// The process that waits for the job was killed, so its exit code is unknown.
    Lost,
}

impl JobState {
    fn name(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Exited(_) => "exited",
            JobState::Lost => "lost",
        }
    }

    fn status(self) -> Option<JobStatus> {
        match self {
            JobState::Exited(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status() {
            Some(status) => f.pad(&format!("{} {status}", self.name())),
            None => f.pad(self.name()),
        }
    }
}

/// A job in the list of [`Sandbox::jobs`](crate::Sandbox::jobs).
///
/// As JSON it has the fields `job`, `state` (`running`, `exited` or `lost`), `exitCode` (or null),
/// `startedAt` (seconds since 1970) and `command`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    pub(super) id: String,
    pub(super) command: Vec<String>,
    pub(super) started: SystemTime,
    pub(super) state: JobState,
}

impl JobInfo {
    /// Returns the job's id, for [`Sandbox::job`](crate::Sandbox::job).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the first 512 bytes of the program and its arguments.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// Returns the start time by the sandbox's clock, in whole seconds.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Returns the state at the time of the list.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.state
    }
}

impl Serialize for JobInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            job: &'a str,
            state: &'static str,
            exit_code: Option<JobStatus>,
            started_at: u64,
            command: &'a [String],
        }
        Json {
            job: &self.id,
            state: self.state.name(),
            exit_code: self.state.status(),
            started_at: unix_seconds(self.started),
            command: &self.command,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn states_have_stable_names() {
        let exited = JobState::Exited(JobStatus(3));
        let states = [JobState::Running, exited, JobState::Lost];
        assert_eq!(
            states.map(|s| s.to_string()),
            ["running", "exited 3", "lost"]
        );
        let info = JobInfo {
            id: "j1".to_owned(),
            command: vec!["ls".to_owned()],
            started: UNIX_EPOCH,
            state: exited,
        };
        let expected =
            r#"{"job":"j1","state":"exited","exitCode":3,"startedAt":0,"command":["ls"]}"#;
        assert_eq!(serde_json::to_string(&info).unwrap(), expected);
    }
}
