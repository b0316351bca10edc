//! What is known of a job.

use std::time::SystemTime;

/// How a job ended.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let status = sandbox.spawn(["true"])?.wait()?;
/// assert!(status.success() && status.exit_code() == 0);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobStatus(pub(super) i32);

impl JobStatus {
    /// Its exit code: 127 for a program that was not found, 128 + N for one that signal N ended.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.spawn(["no-such-program"])?.wait()?.exit_code(), 127);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn exit_code(self) -> i32 {
        self.0
    }

    /// Whether the exit code is 0.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(!sandbox.spawn(["false"])?.wait()?.success());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

/// How a job is.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::JobState;
///
/// let job = sandbox.spawn(["sh", "-c", "exit 3"])?;
/// job.wait()?;
/// assert!(matches!(sandbox.jobs()?[0].state(), JobState::Exited(status) if status.exit_code() == 3));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// It runs.
    Running,
    /// It has ended by itself or by [`Job::kill`](super::Job::kill).
    Exited(JobStatus),
    /// Its keeper was killed, so that nobody knows how it ends.
    Lost,
}

/// One of [`Sandbox::jobs`](crate::Sandbox::jobs).
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let job = sandbox.spawn(["sleep", "1000"])?;
/// let info = &sandbox.jobs()?[0];
/// assert_eq!((info.id(), info.command()), (job.id(), &["sleep".to_owned(), "1000".to_owned()][..]));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    pub(super) id: String,
    pub(super) command: Vec<String>,
    pub(super) started: SystemTime,
    pub(super) state: JobState,
}

impl JobInfo {
    /// The id, for [`Sandbox::job`](crate::Sandbox::job).
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sleep", "1000"])?;
    /// let info = &sandbox.jobs()?[0];
    /// assert_eq!(info.id(), job.id());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The program and its arguments: the first 512 bytes.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.spawn(["sleep", "1000"])?;
    /// let info = &sandbox.jobs()?[0];
    /// assert_eq!(info.command(), ["sleep", "1000"]);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// When it was started, by the sandbox's clock, in whole seconds.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.spawn(["sleep", "1000"])?;
    /// let info = &sandbox.jobs()?[0];
    /// assert!(info.started() <= std::time::SystemTime::now());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// How it was when it was asked for.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.spawn(["sleep", "1000"])?;
    /// let info = &sandbox.jobs()?[0];
    /// assert_eq!(info.state(), noxrunner::JobState::Running);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn state(&self) -> JobState {
        self.state
    }
}
