//! Exit codes of the command.

use std::process::ExitCode;

use crate::args::Subcommand;

/// The job is still running after the timeout of `wait`; the code that `timeout` uses.
pub(crate) const STILL_RUNNING: u8 = 124;

/// The backend or the sandbox failed, and not the command in it.
pub(crate) const BACKEND_FAILED: u8 = 125;

/// Interrupted by SIGINT or SIGTERM; the code that shells use for SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Returns the exit code of a command in the sandbox. A code that a process cannot have becomes 255.
pub(crate) fn of_command(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Returns the exit code of a failure that is not the command's.
pub(crate) fn of_failure(subcommand: &Subcommand) -> ExitCode {
    match subcommand {
        Subcommand::Exec(_) | Subcommand::Run(_) | Subcommand::Wait(_) | Subcommand::Shell(_) => {
            ExitCode::from(BACKEND_FAILED)
        }
        _ => ExitCode::FAILURE,
    }
}
