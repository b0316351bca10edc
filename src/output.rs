//! What came of a command.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::Command;

/// The usual cap of a backend on each stream, in bytes, by which [`Output::truncated`] goes.
const USUAL_STREAM_CAP: std::ops::RangeInclusive<usize> = 1_000_000..=1024 * 1024;

/// What a command left behind: its exit code and both streams, as bytes.
///
/// v1 carries text: over HTTP, bytes that are not UTF-8 arrive as U+FFFD. For binary data let
/// the command write a file and [`read`](crate::Sandbox::read) that.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let out = sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
/// assert_eq!((out.exit_code(), &*out.stdout(), &*out.stderr()), (3, "out\n", "err\n"));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Output {
    exit_code: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    duration: Duration,
    /// What a backend that knows has said; inferred where it has not.
    timed_out: Option<bool>,
    truncated: Option<bool>,
    command: Option<String>,
    limit: Option<Duration>,
}

impl Output {
    /// For a [`Backend`](crate::Backend): what a command left behind.
    ///
    /// ```
    /// use noxrunner::Output;
    /// use std::time::Duration;
    ///
    /// let out = Output::new(0, b"42\n", b"", Duration::from_millis(5));
    /// assert!(out.success());
    /// assert_eq!(out.stdout(), "42\n");
    /// ```
    #[must_use]
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
            command: None,
            limit: None,
        }
    }

    /// For a backend that knows whether the time limit ended the command.
    ///
    /// ```
    /// use noxrunner::Output;
    /// use std::time::Duration;
    ///
    /// let out = Output::new(124, "begun\n", "", Duration::from_secs(1)).with_timed_out(true);
    /// assert!(out.timed_out());
    /// ```
    #[must_use]
    pub fn with_timed_out(mut self, timed_out: bool) -> Output {
        self.timed_out = Some(timed_out);
        self
    }

    /// For a backend that knows whether a stream was longer than what it kept.
    ///
    /// ```
    /// use noxrunner::Output;
    /// use std::time::Duration;
    ///
    /// let out = Output::new(0, "the begin", "", Duration::ZERO).with_truncated(true);
    /// assert!(out.truncated());
    /// ```
    #[must_use]
    pub fn with_truncated(mut self, truncated: bool) -> Output {
        self.truncated = Some(truncated);
        self
    }

    /// Remembers what ran, for [`check`](Output::check) and [`timed_out`](Output::timed_out).
    pub(crate) fn of(mut self, command: &Command) -> Output {
        self.command = Some(command.to_string());
        self.limit = Some(command.time_limit());
        self
    }

    /// The command's exit code: 0 is success; ours answer 124 for a command that the time limit
    /// ended, 127 for a program that was not found, 128 + N for one that signal N ended.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.exec(["sh", "-c", "exit 3"])?.exit_code(), 3);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.exit_code
    }

    /// Whether the exit code is 0.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.exec(["true"])?.success());
    /// assert!(!sandbox.exec(["false"])?.success());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit_code == 0
    }

    /// Standard output as text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.exec(["echo", "hi"])?.stdout(), "hi\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stdout(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.exec(["sh", "-c", "echo why >&2"])?.stderr(), "why\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stderr(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// Standard output.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.exec(["printf", r"a\0b"])?.stdout_bytes(), b"a\0b");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard error.
    ///
    /// ```
    /// use noxrunner::Output;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Output::new(0, "", b"\xff", Duration::ZERO).stderr_bytes(), b"\xff");
    /// ```
    #[must_use]
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }

    /// How long the command ran, by the backend's clock.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.exec(["sleep", "0.2"])?.duration().as_millis() >= 200);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Whether the time limit ended the command. Exact where the backend says so, as ours do;
    /// else an inference: exit code 124, 137, 143 or -1, and a duration near the limit.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    /// use std::time::Duration;
    ///
    /// let slow = Command::from(["sleep", "100"]).timeout(Duration::from_secs(1));
    /// assert!(sandbox.exec(slow)?.timed_out());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.timed_out.unwrap_or_else(|| {
            let near =
                |limit: Duration| self.duration.saturating_add(Duration::from_millis(500)) >= limit;
            matches!(self.exit_code, 124 | 137 | 143 | -1) && self.limit.is_some_and(near)
        })
    }

    /// Whether a stream was longer than what the backend kept of it. Exact where the backend says
    /// so, as ours do; else an inference: a stream as long as the usual cap of 1 MB or 1 MiB.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.exec(["head", "-c", "3000000", "/dev/zero"])?.truncated());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn truncated(&self) -> bool {
        let at_cap = |stream: &[u8]| USUAL_STREAM_CAP.contains(&stream.len());
        self.truncated
            .unwrap_or_else(|| at_cap(&self.stdout) || at_cap(&self.stderr))
    }

    /// The output, if the exit code is 0.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Command`] for any other exit code; the text shows the command, the code and
    /// the end of its stderr, and [`Error::output`] has it all.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::{ErrorKind, Output};
    /// use std::time::Duration;
    ///
    /// let out = Output::new(2, "", "no rule to make target\n", Duration::ZERO);
    /// let error = out.check().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Command);
    /// assert!(error.to_string().contains("no rule to make target"));
    /// assert_eq!(error.output().unwrap().exit_code(), 2);
    /// ```
    pub fn check(self) -> Result<Output> {
        if self.success() {
            return Ok(self);
        }
        let command = self.command.as_deref().unwrap_or("the command");
        let how = match self.timed_out() {
            true => format!("ran out of time after {:.1} s", self.duration.as_secs_f64()),
            false => format!("exited with {}", self.exit_code),
        };
        let stderr = self.stderr();
        let end = last_chars(stderr.trim_end(), 400);
        let message = match end {
            "" => format!("{command} {how}"),
            end => format!("{command} {how}: {}", one_line(end)),
        };
        Err(Error::new(ErrorKind::Command, message).with_output(self))
    }
}

/// The streams as text, and not all of a long one.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("exit_code", &self.exit_code)
            .field("stdout", &one_line(&self.stdout()))
            .field("stderr", &one_line(&self.stderr()))
            .field("duration", &self.duration)
            .field("timed_out", &self.timed_out())
            .field("truncated", &self.truncated())
            .finish_non_exhaustive()
    }
}

fn last_chars(text: &str, count: usize) -> &str {
    match text.char_indices().rev().nth(count - 1) {
        Some((at, _)) => &text[at..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_inferred_only_near_the_limit() {
        let command = Command::new("a").timeout(Duration::from_secs(10));
        let out = |code, secs| Output::new(code, "", "", Duration::from_secs(secs)).of(&command);
        assert!(out(137, 10).timed_out());
        assert!(!out(137, 1).timed_out(), "killed early is not a time-out");
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
    fn check_shows_the_end_of_stderr_in_one_line() {
        let noise = format!("{}\nthe cause\n", "x".repeat(5000));
        let out = Output::new(1, "", noise, Duration::ZERO).of(&Command::from(["make", "all"]));
        let text = out.check().unwrap_err().to_string();
        assert!(
            text.starts_with(r#"["make", "all"] exited with 1: "#),
            "{text}"
        );
        assert!(text.ends_with("the cause") && text.len() < 600 && !text.contains('\n'));
    }
}
