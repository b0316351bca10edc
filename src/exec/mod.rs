//! Running commands in a sandbox.

mod live;
pub(crate) mod staged;
mod stream_tail;

use crate::command::{Command, IntoCommand};
use crate::error::{Error, ErrorKind, Result};
use crate::language::Language;
use crate::output::{Output, Success};
use crate::sandbox::Sandbox;

/// Maximum number of lines and bytes from the end of stderr in the error of [`Output::check`].
const MAX_STDERR_LINES: usize = 20;
const MAX_STDERR_BYTES: usize = 2000;

impl Sandbox {
    /// Runs a command, waits until it has finished, and requires that it succeeds:
    /// [`exec`](Sandbox::exec) followed by [`Output::check`].
    ///
    /// # Errors
    ///
    /// [`Command`](ErrorKind::Command) if the exit code is not 0, with the end of stderr in the
    /// message and the whole [output](Error::output); otherwise the same as for
    /// [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert_eq!(sandbox.run(["echo", "hi"])?.stdout(), "hi\n");
    /// let error = sandbox.run(["sh", "-c", "echo why >&2; exit 3"]).unwrap_err();
    /// assert!(error.is_command() && error.to_string().ends_with("exited with 3:\nwhy"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn run(&self, command: impl IntoCommand) -> Result<Success> {
        let out = self.exec(command)?;
        self.context("run in", || out.check())
    }

    /// Runs a command and waits until it has finished. A non-zero exit code is not an error.
    ///
    /// Sends one exec. It is sent again only if the command certainly did not start: the connection
    /// failed before the request was received, or the server itself refused it with 429 or 503; see
    /// [`Retry`](crate::Retry). A command with [`code`](Command::code), or over HTTP with
    /// [`stdin`](Command::stdin), needs an upload before the exec, and sometimes an exec of at most 20 s
    /// after it to remove the files.
    ///
    /// The call returns at the latest 10 s after the command's own timeout, which defaults to 30 s,
    /// plus the time that it waited for a rate limit. The client's timeout does not apply.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](ErrorKind::InvalidInput) if no backend could run the command.
    /// - [`NotFound`](ErrorKind::NotFound), [`NotReady`](ErrorKind::NotReady),
    ///   [`Unauthorized`](ErrorKind::Unauthorized) and [`Status`](ErrorKind::Status) if the backend
    ///   refuses.
    /// - [`Connect`](ErrorKind::Connect) if the request was not received.
    /// - [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if it was sent and no complete response
    ///   arrived: the command may have run.
    /// - [`Protocol`](ErrorKind::Protocol) if the command ran and the response does not follow
    ///   NoxRunner v1.
    /// - [`Cancelled`](ErrorKind::Cancelled); see [`Command::cancel_on`].
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let out = sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    /// assert_eq!((out.exit_code(), &*out.stdout(), &*out.stderr()), (3, "out\n", "err\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn exec(&self, command: impl IntoCommand) -> Result<Output> {
        let backend = self.backend();
        self.exec_by(command, |command| backend.exec(self.session_id(), command))
    }

    /// Runs a command by a call of the backend, after uploading the files that it needs.
    fn exec_by(
        &self,
        command: impl IntoCommand,
        call: impl FnOnce(&Command) -> Result<Output>,
    ) -> Result<Output> {
        let command = command.into_command();
        self.context("exec in", || {
            command.check()?;
            let out = if command.needs_files(self.backend().streams_stdin()) {
                staged::exec(self, &command, call)?
            } else {
                call(&command)?
            };
            Ok(command.describe(out))
        })
    }

    /// Runs source code and waits until it has finished. For arguments, stdin, environment variables
    /// or a timeout, pass a [`Command::code`] to [`exec`](Sandbox::exec).
    ///
    /// Sends an upload, an exec, and an exec that removes the file. Needs `sh` in the sandbox. The
    /// file is in a temporary directory, which is where Python looks for modules first: set
    /// `PYTHONPATH` to import modules from the workspace.
    ///
    /// # Errors
    ///
    /// The same as for [`exec`](Sandbox::exec) and [`write`](Sandbox::write).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// let out = sandbox.run_code(Language::PYTHON, "import sys\nprint(6 * 7)\nsys.exit(3)\n")?;
    /// assert_eq!((out.exit_code(), &*out.stdout()), (3, "42\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn run_code(&self, language: Language, source: impl Into<Vec<u8>>) -> Result<Output> {
        self.exec(Command::code(language, source))
    }
}

impl Output {
    /// Returns the output if the exit code is 0.
    ///
    /// # Errors
    ///
    /// [`Command`](ErrorKind::Command) for any other exit code. The message shows the command, the
    /// exit code and the end of stderr; [`Error::output`] returns the whole output, and
    /// [`Error::is_timeout`] whether the command exceeded its timeout.
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
    /// ```
    pub fn check(self) -> Result<Success> {
        if self.success() {
            return Ok(Success(self));
        }
        let command = self.command();
        let mut message = if self.timed_out() {
            let seconds = self.duration().as_secs_f64();
            format!("{command} timed out after {seconds:.1} s")
        } else {
            format!("{command} exited with {}", self.exit_code())
        };
        let end = last_lines(&self.stderr());
        if !end.is_empty() {
            message.push_str(":\n");
            message.push_str(&end);
        }
        Err(Error::new(ErrorKind::Command, message).with_output(self))
    }
}

/// Returns the end of a text as printable lines.
fn last_lines(text: &str) -> String {
    let text = text.trim_end();
    let mut start = text.len().saturating_sub(MAX_STDERR_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let lines: Vec<String> = text[start..].lines().map(printable).collect();
    lines[lines.len().saturating_sub(MAX_STDERR_LINES)..].join("\n")
}

/// Replaces control characters other than tabs with spaces.
fn printable(line: &str) -> String {
    line.replace(|c: char| c.is_control() && c != '\t', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn failed(stderr: String) -> String {
        let out = Output::new(1, "", stderr, Duration::ZERO);
        let out = Command::from(["make", "all"]).describe(out);
        out.check().unwrap_err().to_string()
    }

    #[test]
    fn check_keeps_the_lines_at_the_end_of_stderr() {
        let noise = "x".repeat(5000);
        let text = failed(format!(
            "{noise}\nTraceback:\n  line 1\nthe \x1b[31mcause\n"
        ));
        let start = r#"["make", "all"] exited with 1:"#;
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.ends_with("x\nTraceback:\n  line 1\nthe  [31mcause"),
            "{text}"
        );
        assert!(text.len() < 2100);
    }

    #[test]
    fn check_shows_a_limited_number_of_lines() {
        let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(failed(lines).lines().count(), 1 + MAX_STDERR_LINES);
    }

    #[test]
    fn check_of_a_timeout_is_a_timeout() {
        let out = Output::new(124, "", "", Duration::from_secs(2)).with_timed_out(true);
        let error = out.check().unwrap_err();
        assert!(error.is_timeout() && error.is_command());
        assert_eq!(error.to_string(), "the command timed out after 2.0 s");
    }
}
