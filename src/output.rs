//! The result of a command.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, RangeInclusive};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Usual cap of a backend on each stream, in bytes. Used to infer truncation.
const USUAL_STREAM_CAP: RangeInclusive<usize> = 1_000_000..=1024 * 1024;

/// Maximum length of a stream in the `Debug` output, in bytes.
const MAX_DEBUG_STREAM: usize = 2000;

/// The result of a command, from [`Sandbox::exec`](crate::Sandbox::exec): its exit code and both output
/// streams, as bytes.
///
/// NoxRunner v1 carries text: over HTTP, bytes that are not UTF-8 arrive as U+FFFD. For binary data use
/// [`exec_live`](crate::Sandbox::exec_live), or let the command write a file and
/// [`read`](crate::Sandbox::read) that.
///
/// Two outputs are equal if everything but the duration and the usage is. As JSON an output has the
/// fields of NoxRunner v1: `exitCode`, `stdout`, `stderr`, `durationMs`, `timedOut` and `truncated`;
/// and where they are known, `cpuMillis`, `peakMemoryBytes` and `killedBy`.
#[derive(Clone)]
#[must_use = "the exit code says whether the command succeeded: see `check`"]
pub struct Output {
    exit_code: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    duration: Duration,
    /// As the backend reported it, if it did.
    pub(crate) timed_out: Option<bool>,
    pub(crate) truncated: Option<bool>,
    /// Set if the streams are only the end of what the sink of a live exec got.
    pub(crate) lost: Option<bool>,
    pub(crate) killed_by: Option<KilledBy>,
    pub(crate) usage: Option<Usage>,
    /// The command and its timeout, if known.
    command: Option<(String, Duration)>,
}

impl Output {
    /// Creates the result that a [`Backend`](crate::Backend) returns.
    pub fn new(
        exit_code: i32,
        stdout: impl Into<Vec<u8>>,
        stderr: impl Into<Vec<u8>>,
        duration: Duration,
    ) -> Output {
        Output {
            exit_code,
            stdout: stdout.into(),
            stderr: stderr.into(),
            duration,
            timed_out: None,
            truncated: None,
            lost: None,
            killed_by: None,
            usage: None,
            command: None,
        }
    }

    /// Sets whether the command was killed because of its timeout, for a backend that knows.
    pub fn with_timed_out(mut self, timed_out: bool) -> Output {
        self.timed_out = Some(timed_out);
        self
    }

    /// Sets whether a stream was cut at the backend's cap, for a backend that knows.
    pub fn with_truncated(mut self, truncated: bool) -> Output {
        self.truncated = Some(truncated);
        self
    }

    /// Sets the limit whose excess has killed a process of the command, for a backend that knows.
    pub fn with_killed_by(mut self, killed_by: KilledBy) -> Output {
        self.killed_by = Some(killed_by);
        self
    }

    /// Sets what the command has used, for a backend that knows.
    pub fn with_usage(mut self, usage: Usage) -> Output {
        self.usage = Some(usage);
        self
    }

    pub(crate) fn with_streams(mut self, stdout: Vec<u8>, stderr: Vec<u8>) -> Output {
        self.stdout = stdout;
        self.stderr = stderr;
        self
    }

    pub(crate) fn with_command(mut self, command: String, timeout: Duration) -> Output {
        self.command = Some((command, timeout));
        self
    }

    /// Returns the exit code of the command: 0 means success. The backends of this crate report 124
    /// for a command that exceeded its timeout, 126 for a file that cannot be executed, 127 for a
    /// program that does not exist, and 128 + N for a command that was killed by signal N.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.exit_code
    }

    /// Returns true if the exit code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit_code == 0
    }

    /// Returns the standard output as text. Bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn stdout(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Returns the standard error as text. Bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn stderr(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// Returns the standard output.
    #[must_use]
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Returns the standard error.
    #[must_use]
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }

    /// Returns how long the command ran, by the backend's clock.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns true if the command was killed because it exceeded its timeout.
    ///
    /// This is exact if the backend reports it, as those of this crate do. Otherwise it is inferred
    /// from an exit code of 124, 137, 143 or -1 and a duration near the timeout.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.timed_out.unwrap_or_else(|| {
            let tolerance = Duration::from_millis(500);
            let latest = self.duration.saturating_add(tolerance);
            let command = self.command.as_ref();
            matches!(self.exit_code, 124 | 137 | 143 | -1)
                && command.is_some_and(|(_, timeout)| latest >= *timeout)
        })
    }

    /// Returns true if a stream is incomplete: the backend cut it at its cap, or
    /// [`exec_live`](crate::Sandbox::exec_live) kept only its end.
    ///
    /// This is exact if the backend reports it, as those of this crate do. Otherwise it is inferred
    /// from a stream that is as long as the usual cap of 1 MB or 1 MiB.
    #[must_use]
    pub fn truncated(&self) -> bool {
        let at_cap = |stream: &[u8]| USUAL_STREAM_CAP.contains(&stream.len());
        self.truncated
            .unwrap_or_else(|| at_cap(&self.stdout) || at_cap(&self.stderr))
    }

    /// Returns true if the backend discarded a part of the output. After
    /// [`exec_live`](crate::Sandbox::exec_live) this is false if the sink got everything, even if
    /// this value keeps only the end. Otherwise it is the same as [`truncated`](Output::truncated).
    #[must_use]
    pub fn lost_output(&self) -> bool {
        self.lost.unwrap_or_else(|| self.truncated())
    }

    /// Returns the limit whose excess has killed the command or one of its processes, if the backend
    /// reports it. The command itself may have ended later, with any exit code.
    ///
    /// A timeout is reported whenever [`timed_out`](Output::timed_out) is true.
    #[must_use]
    pub fn killed_by(&self) -> Option<KilledBy> {
        self.killed_by
            .or(self.timed_out().then_some(KilledBy::Timeout))
    }

    /// Returns the command's resource usage, if the backend reports it, as local sandboxes do.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Returns the command for an error message.
    pub(crate) fn command(&self) -> &str {
        let command = self.command.as_ref();
        command.map_or("the command", |(command, _)| command)
    }
}

/// A limit that a command has exceeded.
///
/// `Display` and JSON show the name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum KilledBy {
    /// The memory limit of the sandbox.
    Memory,
    /// The storage limit of the sandbox.
    Storage,
    /// The timeout of the command.
    Timeout,
}

impl fmt::Display for KilledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KilledBy::Memory => "memory",
            KilledBy::Storage => "storage",
            KilledBy::Timeout => "timeout",
        })
    }
}

/// Resource usage of a command, from [`Output::usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    cpu_time: Duration,
    peak_memory: u64,
}

impl Usage {
    /// Creates the usage for the output of a [`Backend`](crate::Backend).
    #[must_use]
    pub fn new(cpu_time: Duration, peak_memory: u64) -> Usage {
        Usage {
            cpu_time,
            peak_memory,
        }
    }

    /// Returns the CPU time of the command and its processes. Processes that outlive the command count
    /// up to its end only if another process of the command has waited for them.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.cpu_time
    }

    /// Returns the peak of resident memory of the largest process, in bytes. Processes that ran at the
    /// same time are not added up.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.peak_memory
    }
}

/// The output of a command that succeeded, from [`Sandbox::run`](crate::Sandbox::run) or
/// [`Output::check`]. It dereferences to [`Output`] and, unlike that, may be ignored.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// sandbox.run(["mkdir", "out"])?;
/// let listing = sandbox.run(["ls"])?;
/// assert_eq!(listing.stdout(), "out\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Success(pub(crate) Output);

impl Deref for Success {
    type Target = Output;

    fn deref(&self) -> &Output {
        &self.0
    }
}

impl From<Success> for Output {
    fn from(success: Success) -> Output {
        success.0
    }
}

impl PartialEq for Output {
    fn eq(&self, other: &Output) -> bool {
        self.exit_code == other.exit_code
            && self.stdout == other.stdout
            && self.stderr == other.stderr
            && self.killed_by() == other.killed_by()
            && self.truncated() == other.truncated()
    }
}

impl Eq for Output {}

/// Shows the streams as escaped text, cut to 2000 bytes each.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("exit_code", &self.exit_code)
            .field("stdout", &DebugStream(&self.stdout))
            .field("stderr", &DebugStream(&self.stderr))
            .field("duration", &self.duration)
            .field("timed_out", &self.timed_out())
            .field("truncated", &self.truncated())
            .field("killed_by", &self.killed_by())
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

struct DebugStream<'a>(&'a [u8]);

impl fmt::Debug for DebugStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..MAX_DEBUG_STREAM).unwrap_or(self.0);
        fmt::Debug::fmt(&String::from_utf8_lossy(shown), f)?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_inferred_only_near_the_limit() {
        let out = |code, secs| {
            Output::new(code, "", "", Duration::from_secs(secs))
                .with_command("x".to_owned(), Duration::from_secs(10))
        };
        assert!(out(137, 10).timed_out());
        assert!(!out(137, 1).timed_out(), "killed early is not a timeout");
        assert!(!out(0, 10).timed_out());
        assert!(!out(137, 10).with_timed_out(false).timed_out());
    }

    #[test]
    fn truncation_is_inferred_at_the_usual_caps() {
        let out = |n| Output::new(0, vec![b'x'; n], "", Duration::ZERO);
        assert!(out(1_000_000).truncated() && out(1024 * 1024).truncated());
        assert!(!out(999_999).truncated() && !out(2_000_000).truncated());
        assert!(!out(1_000_000).with_truncated(false).truncated());
    }

    #[test]
    fn equality_ignores_the_duration() {
        let out = |stdout: &str, secs| Output::new(0, stdout, "", Duration::from_secs(secs));
        assert_eq!(out("a", 1), out("a", 2));
        assert_ne!(out("a", 1), out("b", 1));
    }

    #[test]
    fn debug_escapes_and_caps_the_streams() {
        let out = Output::new(0, "a\nb\x1b[31m", "x".repeat(5000), Duration::ZERO);
        let text = format!("{out:?}");
        assert!(text.contains(r#""a\nb\u{1b}[31m""#), "{text}");
        assert!(text.contains("and 3000 more bytes"), "{text}");
    }
}
