//! Waiting for jobs and copying their output.

use std::io::Write;
use std::time::{Duration, Instant};

use super::info::JobStatus;
use super::job::Job;
use super::poll::{Polled, exit_status};
use super::poller::Poller;
use crate::error::{Error, Result};
use crate::output::Output;

impl Job {
    /// Waits until the job has finished, however long that takes. This is noticed up to 2 s later.
    ///
    /// # Errors
    ///
    /// The same as for [`try_wait`](Job::try_wait).
    pub fn wait(&self) -> Result<JobStatus> {
        loop {
            let finished = self.context("wait for", || self.wait_until(None))?;
            if let Some(status) = finished {
                return Ok(status);
            }
        }
    }

    /// Waits until the job has finished, but no longer than `timeout`, after which this returns
    /// `None`. If the backend does not respond, the error comes at most 5 s later, or at the end of a
    /// touch that is in progress.
    ///
    /// # Errors
    ///
    /// The same as for [`try_wait`](Job::try_wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<JobStatus>> {
        self.context("wait for", || {
            self.wait_until(Instant::now().checked_add(timeout))
        })
    }

    /// Returns `None` only if the deadline has passed.
    fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<JobStatus>> {
        let mut poller = Poller::new();
        loop {
            let polled = poller.poll(self, [None, None], deadline)?;
            let status = exit_status(polled.state)?;
            if status.is_some() || !poller.pause(self, deadline) {
                return Ok(status);
            }
        }
    }

    /// Waits until the job has finished and returns its exit code and all its output, which must fit
    /// into memory. The [duration](Output::duration) is zero, because a job does not record it.
    ///
    /// # Errors
    ///
    /// The same as for [`try_wait`](Job::try_wait).
    pub fn wait_with_output(&self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.copy_to(&mut stdout, &mut stderr)?;
        let out = Output::new(status.exit_code(), stdout, stderr, Duration::ZERO);
        Ok(out.with_truncated(false))
    }

    /// Copies both output streams to these writers as they are written, until the job has finished.
    /// Output that arrives together is written one stream after the other.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::ErrorKind::Io) if a writer fails; otherwise the same as for
    /// [`try_wait`](Job::try_wait).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let (mut out, mut err) = (Vec::new(), Vec::new());
    /// let job = sandbox.spawn(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    /// assert_eq!(job.copy_to(&mut out, &mut err)?.exit_code(), 3);
    /// assert_eq!((out, err), (b"out\n".to_vec(), b"err\n".to_vec()));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn copy_to(&self, mut stdout: impl Write, mut stderr: impl Write) -> Result<JobStatus> {
        self.context("follow", || self.follow([&mut stdout, &mut stderr]))
    }

    /// Copies the output so far to these writers, and returns the exit code if the job has finished.
    ///
    /// # Errors
    ///
    /// The same as for [`copy_to`](Job::copy_to).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sh", "-c", "echo started; sleep 1000"])?;
    /// std::io::Read::read(&mut job.stdout(), &mut [0])?;
    /// let (mut out, mut err) = (Vec::new(), Vec::new());
    /// assert_eq!(job.copy_so_far(&mut out, &mut err)?, None);
    /// assert_eq!(out, b"started\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn copy_so_far(
        &self,
        mut stdout: impl Write,
        mut stderr: impl Write,
    ) -> Result<Option<JobStatus>> {
        self.context("read output of", || {
            self.read_so_far([&mut stdout, &mut stderr])
        })
    }

    fn follow(&self, mut writers: [&mut dyn Write; 2]) -> Result<JobStatus> {
        let mut poller = Poller::new();
        let mut offsets = [0, 0];
        loop {
            let polled = poller.poll(self, offsets.map(Some), None)?;
            copy(&polled, &mut offsets, &mut writers)?;
            if !polled.is_whole() {
                continue;
            }
            if let Some(status) = exit_status(polled.state)? {
                return Ok(status);
            }
            poller.pause(self, None);
        }
    }

    fn read_so_far(&self, mut writers: [&mut dyn Write; 2]) -> Result<Option<JobStatus>> {
        let mut offsets = [0, 0];
        // The state and the lengths at the start. A busy job could write forever.
        let mut first = None;
        loop {
            let polled = self.poll(offsets.map(Some), None)?;
            copy(&polled, &mut offsets, &mut writers)?;
            let (state, lengths) = *first.get_or_insert((polled.state, polled.size));
            if polled.is_whole() {
                return exit_status(polled.state);
            }
            // The job may have finished meanwhile with more output, which is not copied.
            if offsets[0] >= lengths[0] && offsets[1] >= lengths[1] {
                return exit_status(state);
            }
        }
    }
}

/// Copies the new output of a poll, and advances the offsets.
fn copy(polled: &Polled, offsets: &mut [u64; 2], writers: &mut [&mut dyn Write; 2]) -> Result<()> {
    for (at, writer) in writers.iter_mut().enumerate() {
        let bytes = &polled.new[at];
        if bytes.is_empty() {
            continue;
        }
        offsets[at] += bytes.len() as u64;
        let written = writer.write_all(bytes).and_then(|()| writer.flush());
        written.map_err(|e| Error::io("cannot write the job's output", e))?;
    }
    Ok(())
}
