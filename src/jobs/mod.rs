//! Detached commands with live output, over plain exec.

mod answers;
mod follow;
mod info;
mod scripts;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::answers::{Polled, ended, parse_list};
pub use self::follow::JobOutput;
use self::follow::Watch;
pub use self::info::{JobInfo, JobState, JobStatus};
use self::scripts::{BLOCK, CHILDREN_END, JOBS, NO_SUCH_JOB, NO_TOOL, TOOLS};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, WORKSPACE};
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::staging::Staged;

/// How long one look at a job may take in the sandbox.
const POLL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a list of all jobs may take in the sandbox.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// How many blocks of output are asked for at first: in base64, with its line ends, they are a little
/// less than the usual cap of 1 MB.
const USUAL_BLOCKS: u64 = 175;

/// A command that runs in a sandbox on its own: nobody has to wait for it, and it has no time limit.
///
/// Made by [`Sandbox::spawn`], and found again by its id with [`Sandbox::job`], also by another process
/// on another machine. It ends with its sandbox. Cheap to clone, `Send` and `Sync`; dropping it ends
/// nothing.
///
/// It works on any v1 backend: a keeper in the sandbox starts the command with its output in files
/// below `/workspace/.noxrunner/jobs`, and short execs look at those. They count towards the sandbox's
/// storage, and go with it. SIGINT and SIGQUIT are ignored in it, as a shell has it for what runs in the
/// background; a program can take them up again. What opens `/dev/stdout` anew and cuts it (`> /dev/stdout`)
/// loses what was there: it is a file.
///
/// # What looking costs
///
/// Whoever follows or waits asks again after 50 ms, and the less happens the later, up to 2 s; new
/// output makes it 50 ms again. Meanwhile the sandbox is touched every third of its TTL, or every 30 s
/// where this handle did not create it. A look that gets no answer is tried again for up to 60 s.
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
/// job.stdout().read_to_string(&mut text)?; // as it comes, until the job ends
/// assert_eq!(text, "one\ntwo\n");
/// assert_eq!(job.wait()?.exit_code(), 3);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Job {
    sandbox: Sandbox,
    id: Arc<str>,
    /// How many blocks this backend's cap lets through at a time.
    blocks: Arc<AtomicU64>,
}

impl Sandbox {
    /// Starts a command and lets it run: see [`Job`].
    ///
    /// It gets the command's directory, environment and [`stdin`](Command::stdin). Sends two execs, and an
    /// upload before them if there is something to read. Where the answer to the second one is lost, it is
    /// looked whether the job runs; what fails is ended and removed.
    ///
    /// # Errors
    ///
    /// As [`exec`](Sandbox::exec); [`Unsupported`](ErrorKind::Unsupported) where the sandbox has no `sh`
    /// or lacks a program that jobs need, or where the backend ends what an exec leaves behind;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a command with a time limit or a
    /// [`Cancel`](crate::Cancel), which a job has no use for. That the program is missing shows as
    /// exit code 127.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use std::time::Duration;
    ///
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// assert_eq!(job.wait_timeout(Duration::from_millis(100))?, None);
    /// job.kill()?;
    /// assert_eq!(job.wait()?.exit_code(), 137);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Job> {
        let command = command.into();
        self.named("spawn in", || {
            command.check()?;
            if command.has_time_limit() || command.cancellation().is_some() {
                return Err(Error::invalid(
                    "a job has neither a time limit nor a Cancel: use wait_timeout and kill",
                ));
            }
            let id = format!("j{:010x}", crate::os::random::random_u64() & 0xff_ffff_ffff);
            let job = self.job_handle(&id);
            let started = job.start(&command);
            if started.is_err() {
                self.remove_staged(&format!("{JOBS}/{id}"), WORKSPACE);
            }
            started.map(|()| job)
        })
    }

    /// A handle to a job of this sandbox. Sends nothing, so it does not say whether there is one.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for what is no job's id.
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
        if !is_id(id) {
            let text = format!("{:?} is no job's id", one_line(id));
            return Err(Error::invalid(text));
        }
        Ok(self.job_handle(id))
    }

    fn job_handle(&self, id: &str) -> Job {
        Job {
            sandbox: self.clone(),
            id: id.into(),
            blocks: Arc::new(AtomicU64::new(USUAL_BLOCKS)),
        }
    }

    /// The sandbox's jobs, those that have ended too, the oldest first. Sends one exec, or more where
    /// there is too much for one answer.
    ///
    /// # Errors
    ///
    /// As [`exec`](Sandbox::exec), and [`Unsupported`](ErrorKind::Unsupported) where the sandbox lacks
    /// what jobs need.
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
    /// assert!(jobs[0].started() <= std::time::SystemTime::now());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn jobs(&self) -> Result<Vec<JobInfo>> {
        self.named("jobs of", || {
            let mut jobs: Vec<JobInfo> = Vec::new();
            loop {
                let after = jobs.last().map_or("", |job| &*job.id);
                let out = self.job_script(scripts::LIST, &[after], LIST_TIMEOUT, None)?;
                let (more, all) = parse_list(&out.stdout());
                if more.is_empty() && !all {
                    return Err(garbled(&out));
                }
                jobs.extend(more);
                if all {
                    break;
                }
            }
            jobs.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
            Ok(jobs)
        })
    }

    /// Runs one of the scripts where the jobs are.
    fn job_script(
        &self,
        script: &str,
        args: &[&str],
        timeout: Duration,
        give_up_after: Option<Duration>,
    ) -> Result<Output> {
        let mut command: Command = ["sh", "-c", script, "sh"].into();
        command = args.iter().copied().fold(command, Command::arg);
        command.give_up_after = give_up_after;
        let out = self
            .backend()
            .exec(self.session_id(), &command.timeout(timeout))?;
        script_result(out)
    }
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// What a script's exit code says.
fn script_result(out: Output) -> Result<Output> {
    let stderr = out.stderr();
    let said = one_line(stderr.trim());
    let (kind, text) = match out.exit_code() {
        0 => return Ok(out),
        NO_SUCH_JOB => (ErrorKind::NotFound, "no such job".to_owned()),
        NO_TOOL => (
            ErrorKind::Unsupported,
            format!("jobs need {TOOLS} in the sandbox, and it has no {said}"),
        ),
        CHILDREN_END => (
            ErrorKind::Unsupported,
            "this backend ends what an exec leaves behind, so it can't run jobs".to_owned(),
        ),
        126 | 127 => (
            ErrorKind::Unsupported,
            format!("jobs need sh in the sandbox, which answered: {said}"),
        ),
        code @ (124 | 137 | 143) => (
            ErrorKind::Timeout,
            format!("the script for jobs was ended in the sandbox, with code {code}"),
        ),
        code => (
            ErrorKind::Io,
            format!("the script for jobs exited with {code} in the sandbox: {said}"),
        ),
    };
    Err(Error::new(kind, text))
}

fn garbled(out: &Output) -> Error {
    let text = format!(
        "the script for jobs answered something else: {:?}",
        one_line(&out.stdout())
    );
    Error::new(ErrorKind::Protocol, text)
}

impl Job {
    /// The id, for [`Sandbox::job`]: letters and digits.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["true"])?;
    /// assert!(job.id().bytes().all(|b| b.is_ascii_alphanumeric()));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sandbox that it runs in.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.spawn(["true"])?.sandbox().id(), "demo");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Its standard output from the beginning, as it comes; the end is where the job has ended.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use std::io::Read;
    ///
    /// let mut text = String::new();
    /// sandbox.spawn(["seq", "3"])?.stdout().read_to_string(&mut text)?;
    /// assert_eq!(text, "1\n2\n3\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stdout(&self) -> JobOutput {
        JobOutput::new(self.clone(), Stream::Stdout)
    }

    /// Its standard error from the beginning, as it comes; the end is where the job has ended.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sh", "-c", "echo why >&2"])?;
    /// assert_eq!(job.stderr().read_text()?.as_deref(), Some("why\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stderr(&self) -> JobOutput {
        JobOutput::new(self.clone(), Stream::Stderr)
    }

    /// How it ended; none while it runs. Sends one exec.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is no such job, or no such sandbox;
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if it was [`Lost`](JobState::Lost); else as
    /// [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// assert!(job.try_wait()?.is_none());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn try_wait(&self) -> Result<Option<JobStatus>> {
        self.named("look at", || ended(self.poll([None, None], None)?.state))
    }

    /// Waits until it has ended, however long that takes. Looks as [`Job`] says, and so may notice it
    /// up to 2 s later.
    ///
    /// # Errors
    ///
    /// As [`try_wait`](Job::try_wait).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.spawn(["sh", "-c", "exit 3"])?.wait()?.exit_code(), 3);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn wait(&self) -> Result<JobStatus> {
        self.named("wait for", || {
            let mut watch = Watch::new(self, None);
            loop {
                let polled = watch.poll([None, None])?;
                if let Some(status) = ended(polled.state)? {
                    return Ok(status);
                }
                watch.pause();
            }
        })
    }

    /// Waits until it has ended, at most for `timeout`: none if it has not. Where the backend does not
    /// answer, the error comes at most 5 s after that, or when a touch that is under way is over.
    ///
    /// # Errors
    ///
    /// As [`try_wait`](Job::try_wait).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use std::time::Duration;
    ///
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// assert!(job.wait_timeout(Duration::from_millis(200))?.is_none());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<JobStatus>> {
        self.named("wait for", || {
            let mut watch = Watch::new(self, Instant::now().checked_add(timeout));
            loop {
                let polled = watch.poll([None, None])?;
                let status = ended(polled.state)?;
                if status.is_some() || !watch.pause() {
                    return Ok(status);
                }
            }
        })
    }

    /// Ends its whole process group, by SIGKILL; [`wait`](Job::wait) then answers 137. That it has ended
    /// already is no error. Sends one exec; safe to repeat.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is no such job; else as [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// job.kill()?;
    /// assert_eq!(job.wait()?.exit_code(), 137);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn kill(&self) -> Result<()> {
        self.named("kill of", || {
            self.script(scripts::KILL, &[], None).map(drop)
        })
    }

    /// Copies both streams to these writers as they come, until the job ends. What came on both at a
    /// time is written one stream after the other.
    ///
    /// # Errors
    ///
    /// As [`try_wait`](Job::try_wait), and [`Io`](ErrorKind::Io) where a writer fails.
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
    pub fn copy_to(&self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<JobStatus> {
        self.named("follow", || {
            let mut watch = Watch::new(self, None);
            let mut at = [0, 0];
            loop {
                let polled = watch.poll(at.map(Some))?;
                polled.write(&mut at, stdout, stderr)?;
                if polled.is_whole() {
                    if let Some(status) = ended(polled.state)? {
                        return Ok(status);
                    }
                    watch.pause();
                }
            }
        })
    }

    /// Copies what both streams are by now, and answers as [`try_wait`](Job::try_wait).
    ///
    /// # Errors
    ///
    /// As [`copy_to`](Job::copy_to).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sh", "-c", "echo begun; sleep 1000"])?;
    /// std::io::Read::read(&mut job.stdout(), &mut [0])?;
    /// let (mut out, mut err) = (Vec::new(), Vec::new());
    /// assert_eq!(job.copy_so_far(&mut out, &mut err)?, None);
    /// assert_eq!(out, b"begun\n");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn copy_so_far(
        &self,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Option<JobStatus>> {
        self.named("read", || {
            let mut at = [0, 0];
            // What comes meanwhile could go on for ever.
            let mut until = None;
            loop {
                let polled = self.poll(at.map(Some), None)?;
                polled.write(&mut at, stdout, stderr)?;
                let (state, [stdout_size, stderr_size]) =
                    *until.get_or_insert((polled.state, polled.size));
                if polled.is_whole() {
                    return ended(polled.state);
                }
                // It may have ended with more meanwhile, which is not here.
                if at[0] >= stdout_size && at[1] >= stderr_size {
                    return ended(state);
                }
            }
        })
    }

    fn start(&self, command: &Command) -> Result<()> {
        let mut staged = Staged::new(command)?;
        // Before the probe, which lives for a minute.
        if !staged.files.is_empty() {
            let files = std::mem::take(&mut staged.files);
            let place = format!("{WORKSPACE}/{JOBS}/{}/in", self.id);
            self.sandbox.send_staged(files, &place)?;
        }
        let out = self.script(scripts::PREPARE, &[], None)?;
        let dir = out.stdout().trim_end_matches('\n').to_owned();
        if !dir.starts_with('/') {
            return Err(garbled(&out));
        }
        let start = staged.command(&["sh", "-c", scripts::START, "sh", &dir], &[]);
        start.check()?;
        let id = self.sandbox.session_id();
        let started = self.sandbox.backend().exec(id, &start);
        let Err(error) = started.and_then(script_result) else {
            return Ok(());
        };
        match error.kind() {
            ErrorKind::Connect | ErrorKind::NotFound | ErrorKind::Unsupported => {}
            // It may run all the same.
            _ if self.is_there() => return Ok(()),
            _ => {
                if let Err(e) = self.script(scripts::KILL, &[], None) {
                    log::warn!(
                        "cannot end job {}, which may have been started: {e}",
                        self.id
                    );
                }
            }
        }
        Err(error)
    }

    /// Whether it has been started, as far as can be seen in a few seconds.
    fn is_there(&self) -> bool {
        for pause in [0, 1, 3] {
            std::thread::sleep(Duration::from_secs(pause));
            if self.poll([None, None], None).is_ok() {
                return true;
            }
        }
        false
    }

    /// Runs a script of this job.
    fn script(&self, script: &str, args: &[&str], give_up: Option<Duration>) -> Result<Output> {
        let args: Vec<&str> = [&*self.id].iter().chain(args).copied().collect();
        self.sandbox
            .job_script(script, &args, POLL_TIMEOUT, give_up)
    }

    /// Looks at the job once: its state, and what each stream has from an offset on.
    fn poll(&self, from: [Option<u64>; 2], give_up: Option<Duration>) -> Result<Polled> {
        loop {
            let blocks = self.blocks.load(Ordering::Relaxed);
            // They share an answer.
            let count = match from {
                [Some(_), Some(_)] => (blocks / 2).max(1),
                _ => blocks,
            };
            let skip = from.map(|at| (at.unwrap_or(0) / BLOCK).to_string());
            let take = from.map(|at| at.map_or(0, |_| count).to_string());
            let args = [&*skip[0], &*take[0], &*skip[1], &*take[1]];
            let out = self.script(scripts::POLL, &args, give_up)?;
            if let Some(polled) = Polled::parse(&out.stdout(), from, count) {
                return Ok(polled);
            }
            // The backend's cap is lower than usual.
            if blocks <= 1 || !out.stdout().starts_with(['r', 'e', 'l']) {
                return Err(garbled(&out));
            }
            self.blocks.store(blocks / 2, Ordering::Relaxed);
        }
    }

    fn named<T>(&self, operation: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.sandbox
            .named(&format!("{operation} job {} in", self.id), call)
    }
}

/// Which of a job's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("sandbox", &self.sandbox.id())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
