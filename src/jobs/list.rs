//! Listing the jobs of a sandbox.

use std::collections::HashSet;
use std::time::Duration;

use super::info::JobInfo;
use super::job::unexpected_output;
use super::poll::parse_list;
use super::scripts;
use crate::error::Result;
use crate::sandbox::Sandbox;

/// Timeout of listing jobs, in the sandbox.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum number of jobs in a list.
const MAX_JOBS: usize = 100_000;

impl Sandbox {
    /// Lists the jobs of the sandbox, including finished ones, the oldest first. Sends one exec, or
    /// more if the list exceeds the backend's cap on output.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the sandbox lacks a program that jobs need;
    /// otherwise the same as for [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::JobState;
    ///
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// let jobs = sandbox.jobs()?;
    /// assert_eq!((jobs[0].id(), jobs[0].state()), (job.id(), JobState::Running));
    /// assert_eq!(jobs[0].command(), ["sleep", "1000"]);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn jobs(&self) -> Result<Vec<JobInfo>> {
        let mut jobs = self.context("list jobs of", || self.list_jobs())?;
        jobs.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        Ok(jobs)
    }

    fn list_jobs(&self) -> Result<Vec<JobInfo>> {
        let mut jobs: Vec<JobInfo> = Vec::new();
        let mut ids = HashSet::new();
        loop {
            let after = jobs.last().map_or("", |job| &*job.id);
            let command = scripts::LIST.command(&[after]).timeout(LIST_TIMEOUT);
            let out = scripts::LIST.run(self, &command, "")?;
            let (more, complete) = parse_list(&out.stdout());
            // A sandbox that repeats jobs, or has no end of them, must not fill this program's memory.
            let is_new = more.iter().all(|job| ids.insert(job.id.clone()));
            if more.is_empty() && !complete || !is_new || ids.len() > MAX_JOBS {
                return Err(unexpected_output(&out));
            }
            jobs.extend(more);
            if complete {
                return Ok(jobs);
            }
        }
    }
}
