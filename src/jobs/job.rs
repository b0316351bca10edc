//! The handle to a job.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::info::JobStatus;
use super::poll::{Polled, exit_status, is_job_id};
use super::scripts::{self, BLOCK};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::script::Script;

/// Timeout of a script for one job, in the sandbox.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between SIGTERM and SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Number of blocks of output in the first poll. In base64 they are slightly less than the usual cap of
/// 1 MB.
const USUAL_BLOCKS: u64 = 175;

/// A command that runs in a sandbox without a caller, with live output.
///
/// [`Sandbox::spawn`] starts a job, and [`Sandbox::job`] finds it again by its id, also from another
/// process or machine. The job ends with its sandbox. `Job` is cheap to clone; dropping it does not
/// stop the job.
///
/// Jobs work on any NoxRunner v1 backend. A process in the sandbox starts the command with its output
/// in files below `/workspace/.noxrunner/jobs`, and short execs read them. The files count towards the
/// sandbox's storage and are deleted with it. The stdout and stderr of a job are files: reopening them
/// with `> /dev/stdout` truncates them.
///
/// # Polling
///
/// Following a job or waiting for it polls after 50 ms, then less often, up to every 2 s; new output
/// resets the interval. Meanwhile the sandbox is touched every third of its TTL, or every 30 s if this
/// handle did not create it. A poll without a response is repeated for up to 60 s.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// use noxrunner::{Command, SandboxSpec};
/// use std::io::Read;
///
/// let sandbox = client.create("demo", SandboxSpec::new())?;
/// let job = sandbox.spawn(Command::shell("echo one; sleep 0.2; echo two; exit 3"))?;
/// // Later, and perhaps elsewhere:
/// let job = sandbox.job(job.id())?;
/// let mut text = String::new();
/// job.stdout().read_to_string(&mut text)?; // as it is written, until the job finishes
/// assert_eq!(text, "one\ntwo\n");
/// assert_eq!(job.wait()?.exit_code(), 3);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Job {
    sandbox: Sandbox,
    id: Arc<str>,
    /// Number of blocks that fit below this backend's cap on output.
    blocks: Arc<AtomicU64>,
}

impl Sandbox {
    /// Returns a handle to a job of this sandbox. Sends nothing, so this does not check that the job
    /// exists.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an invalid id.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.job("j0123456789")?.try_wait().unwrap_err().is_not_found());
    /// assert!(sandbox.job("../x").is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn job(&self, id: impl AsRef<str>) -> Result<Job> {
        let id = id.as_ref();
        if !is_job_id(id) {
            return Err(Error::invalid(format!("invalid job id {:?}", one_line(id))));
        }
        Ok(Job::new(self, id))
    }
}

impl Job {
    pub(super) fn new(sandbox: &Sandbox, id: &str) -> Job {
        Job {
            sandbox: sandbox.clone(),
            id: id.into(),
            blocks: Arc::new(AtomicU64::new(USUAL_BLOCKS)),
        }
    }

    /// Returns the id, for [`Sandbox::job`]: letters and digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the sandbox of the job.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Returns the exit code if the job has finished. Sends one exec.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the job or the sandbox does not exist;
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if the job is
    /// [`Lost`](super::JobState::Lost); otherwise the same as for [`exec`](Sandbox::exec).
    pub fn try_wait(&self) -> Result<Option<JobStatus>> {
        self.context("poll", || exit_status(self.poll([None, None], None)?.state))
    }

    /// Terminates the job: sends SIGTERM to its process group, waits up to 10 s until it has finished, and
    /// then kills it. A job that ends by the signal has exit code 143, or 137 if it had to be killed. A job
    /// that has finished is not an error. Sends one exec, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the job does not exist; otherwise the same as for
    /// [`exec`](Sandbox::exec).
    pub fn kill(&self) -> Result<()> {
        self.context("kill", || {
            let grace = KILL_GRACE.as_secs().to_string();
            let command = scripts::KILL.command(&[&self.id, "TERM", &grace]);
            let command = command.timeout(SCRIPT_TIMEOUT + KILL_GRACE);
            scripts::KILL
                .run(&self.sandbox, &command, &self.id)
                .map(drop)
        })
    }

    /// Sends a signal to the job's process group, such as `INT`, `USR1` or `KILL`, without the prefix `SIG`.
    /// A job that has finished is not an error. Sends one exec, which may be repeated.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if this is not the name of a signal; otherwise the same
    /// as for [`kill`](Job::kill).
    pub fn signal(&self, signal: impl AsRef<str>) -> Result<()> {
        let signal = signal.as_ref();
        self.context("signal", || {
            if signal.is_empty()
                || !signal
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
            {
                let shown = one_line(signal);
                return Err(Error::invalid(format!(
                    "{shown:?} is not the name of a signal: use for example TERM, INT or KILL"
                )));
            }
            self.run(&scripts::KILL, &[signal, "-"], None).map(drop)
        })
    }

    /// Runs a script for this job. `give_up` limits how long to wait for the response.
    pub(super) fn run(
        &self,
        script: &Script,
        args: &[&str],
        give_up: Option<Duration>,
    ) -> Result<Output> {
        let args: Vec<&str> = [&*self.id].iter().chain(args).copied().collect();
        let mut command = script.command(&args).timeout(SCRIPT_TIMEOUT);
        command.give_up_after = give_up;
        script.run(&self.sandbox, &command, &self.id)
    }

    /// Polls the state of the job, and what each stream has after an offset.
    pub(super) fn poll(
        &self,
        offsets: [Option<u64>; 2],
        give_up: Option<Duration>,
    ) -> Result<Polled> {
        loop {
            let blocks = self.blocks.load(Ordering::Relaxed);
            let count = match offsets {
                // Both share one response.
                [Some(_), Some(_)] => (blocks / 2).max(1),
                _ => blocks,
            };
            let skip = offsets.map(|offset| (offset.unwrap_or(0) / BLOCK).to_string());
            let take = offsets.map(|offset| offset.map_or(0, |_| count).to_string());
            let args = [&*skip[0], &*take[0], &*skip[1], &*take[1]];
            let out = self.run(&scripts::POLL, &args, give_up)?;
            if let Some(polled) = Polled::parse(&out.stdout(), offsets, count) {
                return Ok(polled);
            }
            // Truncated: the backend's cap is lower than usual.
            if blocks <= 1 || !out.stdout().starts_with(['r', 'e', 'l']) {
                return Err(unexpected_output(&out));
            }
            self.blocks.store(blocks / 2, Ordering::Relaxed);
        }
    }

    pub(super) fn context<T>(
        &self,
        operation: &str,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.sandbox
            .context(&format!("{operation} job {} in", self.id), call)
    }
}

pub(super) fn unexpected_output(out: &Output) -> Error {
    let stdout = one_line(&out.stdout());
    let message = format!("unexpected output of a job script: {stdout:?}");
    Error::new(ErrorKind::Protocol, message)
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("sandbox", &self.sandbox.id())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
