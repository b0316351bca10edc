//! Starting jobs.

use std::time::Duration;

use super::job::{Job, unexpected_output};
use super::scripts::{self, JOBS_DIR};
use crate::command::{Command, DEFAULT_COMMAND_TIMEOUT, IntoCommand};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::staged::StagedFiles;
use crate::os::random::random_u64;
use crate::os::time::whole_seconds;
use crate::sandbox::Sandbox;
use crate::sandbox_path::WORKSPACE;
use crate::script::remove_temporary;

impl Sandbox {
    /// Starts a command as a [`Job`], and returns while it is running.
    ///
    /// The job gets the command's working directory, environment, [`stdin`](Command::stdin) and
    /// [`code`](Command::code). It has no timeout unless the command sets one, which kills the job's
    /// process group; the exit code is then 124. A program that does not exist is reported by exit code
    /// 127.
    ///
    /// Sends two execs, after an upload if the command needs files. If the response to the second exec
    /// is lost, the job is polled to find out whether it is running. A job that fails to start is
    /// killed and removed.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) if the sandbox lacks `sh` or a program that jobs need, or
    /// if the backend kills processes that outlive an exec; [`InvalidInput`](ErrorKind::InvalidInput)
    /// for a command with a [`Cancel`](crate::Cancel), because [`Job::kill`] stops a job; otherwise the
    /// same as for [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sh", "-c", "echo hi; exit 3"])?;
    /// let out = job.wait_with_output()?;
    /// assert_eq!((out.exit_code(), &*out.stdout()), (3, "hi\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn spawn(&self, command: impl IntoCommand) -> Result<Job> {
        let command = command.into_command();
        self.context("spawn in", || {
            command.check()?;
            if command.get_cancel().is_some() {
                return Err(Error::invalid("a job cannot have a Cancel: use Job::kill"));
            }
            let id = format!("j{:010x}", random_u64() & 0xff_ffff_ffff);
            let job = Job::new(self, &id);
            let started = job.start(&command);
            if started.is_err() {
                remove_temporary(self, &format!("{JOBS_DIR}/{id}"), WORKSPACE);
            }
            started.map(|()| job)
        })
    }
}

impl Job {
    fn start(&self, command: &Command) -> Result<()> {
        let mut staged = StagedFiles::new(command, true)?;
        // Before the probe that PREPARE starts, because it lives for a minute only.
        let files_dir = format!("{WORKSPACE}/{JOBS_DIR}/{}/in", self.id());
        staged.upload(self.sandbox(), &files_dir)?;
        let out = self.run(&scripts::PREPARE, &[], None)?;
        let dir = out.stdout().trim_end_matches('\n').to_owned();
        if !dir.starts_with('/') {
            return Err(unexpected_output(&out));
        }
        let timeout = command.timeout.map_or(0, whole_seconds);
        let start = staged
            .wrap(&scripts::START.text(), &dir, &timeout.to_string())
            .timeout(DEFAULT_COMMAND_TIMEOUT);
        start.check()?;
        match scripts::START.run(self.sandbox(), &start, self.id()) {
            Ok(_) => Ok(()),
            Err(e) if certainly_not_started(e.kind()) => Err(e),
            Err(_) if self.is_running() => Ok(()),
            Err(e) => {
                if let Err(e) = self.run(&scripts::KILL, &["KILL", "-"], None) {
                    log::warn!(
                        "cannot kill job {}, which may have started: {e:#}",
                        self.id()
                    );
                }
                Err(e)
            }
        }
    }

    /// Returns true if a poll finds the job within a few seconds.
    fn is_running(&self) -> bool {
        [0, 1, 3].into_iter().any(|pause| {
            std::thread::sleep(Duration::from_secs(pause));
            self.poll([None, None], None).is_ok()
        })
    }
}

fn certainly_not_started(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Connect | ErrorKind::NotFound | ErrorKind::Unsupported
    )
}
