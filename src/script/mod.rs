//! Running our POSIX `sh` scripts in a sandbox.

mod shell_quote;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use self::shell_quote::shell_quote;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::output::{KilledBy, Output};
use crate::printable::printable;
use crate::sandbox::Sandbox;

/// The shell of all scripts. Some servers pass the arguments of a plain `sh` through another shell.
pub(crate) const SHELL: &str = "/bin/sh";

/// Prints the exit code as the last line of stderr, because some servers answer -1 for every failure.
const PRINT_FAILURE: &str =
    "trap 'nx_status=$?; [ $nx_status = 0 ] || echo \"nx-status $nx_status\" >&2' EXIT\n";

/// Exit code of a script that lacks a program. It prints the program's name to stderr.
const MISSING_PROGRAM: i32 = 43;

/// Timeout of commands that remove temporary files.
pub(crate) const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

/// A script, and what its exit codes mean.
pub(crate) struct Script {
    /// The feature that the script implements, for error messages: "jobs need sh in the sandbox".
    pub(crate) feature: &'static str,
    pub(crate) source: &'static str,
    /// Specific exit codes. `{}` in the text is replaced with the script's object.
    pub(crate) failures: &'static [(i32, ErrorKind, &'static str)],
}

impl Script {
    /// Returns the command that runs the script with these arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        Command::new(SHELL)
            .args(["-c", &self.text(), SHELL])
            .args(args)
    }

    /// Returns the text that the shell runs.
    pub(crate) fn text(&self) -> String {
        format!("{PRINT_FAILURE}{}", self.source)
    }

    /// Runs the script and maps its exit code. `object` is what it works on, for error messages.
    pub(crate) fn run(&self, sandbox: &Sandbox, command: &Command, object: &str) -> Result<Output> {
        let out = sandbox.backend().exec(sandbox.session_id(), command)?;
        if out.success() {
            return Ok(out);
        }
        let stderr = out.stderr();
        let (printed, stderr) = take_status(&stderr);
        let code = printed.unwrap_or(out.exit_code());
        let stderr = one_line(stderr);
        let feature = self.feature;
        let failure = self.failures.iter().find(|failure| failure.0 == code);
        let (kind, text) = match (code, failure) {
            (_, Some((_, kind, text))) => (*kind, text.replace("{}", object)),
            (MISSING_PROGRAM, _) => (
                ErrorKind::Unsupported,
                format!("{feature} needs the program `{stderr}` in the sandbox"),
            ),
            (126 | 127, _) => (
                ErrorKind::Unsupported,
                format!("{feature} needs `sh` in the sandbox: {stderr}"),
            ),
            _ if stderr.contains("No space left") || out.killed_by() == Some(KilledBy::Storage) => {
                (
                    ErrorKind::Io,
                    format!("{feature} failed: no space left in the sandbox"),
                )
            }
            (124 | 137 | 143, _) => (
                ErrorKind::Timeout,
                format!("the script for {feature} was killed in the sandbox (exit code {code})"),
            ),
            _ => (
                ErrorKind::Io,
                format!("the script for {feature} exited with {code}: {stderr}"),
            ),
        };
        Err(Error::new(kind, text))
    }
}

/// Splits off the line of [`PRINT_FAILURE`] from the script's stderr.
fn take_status(stderr: &str) -> (Option<i32>, &str) {
    let line = stderr.strip_suffix('\n').unwrap_or(stderr);
    let split = line.rsplit_once("nx-status ");
    let found = split.and_then(|(rest, code)| Some((code.parse().ok()?, rest)));
    found.map_or((None, stderr), |(code, rest)| (Some(code), rest))
}

/// Removes a temporary file or directory in the sandbox. A failure is logged and not returned, because
/// the result of the call is known by then.
pub(crate) fn remove_temporary(sandbox: &Sandbox, name: &str, workdir: &str) {
    let remove = Command::from(["rm", "-rf", "--", name])
        .timeout(CLEANUP_TIMEOUT)
        .workdir(workdir);
    let reason = match sandbox.backend().exec(sandbox.session_id(), &remove) {
        Ok(out) if out.success() => return,
        Ok(out) => one_line(&out.stderr()),
        Err(e) => format!("{e:#}"),
    };
    let workdir = printable(workdir);
    log::warn!("cannot remove {workdir}/{name} in the sandbox: {reason}");
}

/// Decodes base64 that is split into lines.
pub(crate) fn decode_base64_lines(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.lines().collect::<String>()).ok()
}
