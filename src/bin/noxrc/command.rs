//! The command to run in a sandbox, and its result.

use std::io::{self, Read};
use std::process::ExitCode;

use noxrunner::{Command, Error, ErrorKind, Output, Result, Sandbox, Stdin};
use serde_json::json;

use crate::args::{Args, ExecOptions};
use crate::backend_args::BackendKind;
use crate::console::Console;
use crate::exit_code;

/// Builds a command without a timeout from the arguments.
pub(crate) fn without_timeout(cmd: &[String], options: &ExecOptions, console: &Console) -> Command {
    let mut command = Command::from(cmd);
    for variable in &options.env {
        match variable.split_once('=') {
            Some((name, value)) => command = command.env(name, value),
            // Not an error for the Python command either.
            None => console.warning(&format!("Invalid env format (missing =): {variable}")),
        }
    }
    command.workdir(&options.workdir)
}

/// Builds a command from the arguments.
pub(crate) fn with_timeout(cmd: &[String], options: &ExecOptions, console: &Console) -> Command {
    without_timeout(cmd, options, console).timeout(options.timeout_seconds)
}

/// Maximum length of the stdin of a command on a server, in bytes.
const MAX_STDIN: u64 = 64 * 1024 * 1024;

/// Passes stdin to a command, if the options ask for it. For a server it is read to its end first, while
/// Ctrl-C still ends this process.
pub(crate) fn with_stdin(args: &Args, command: Command, options: &ExecOptions) -> Result<Command> {
    if !options.stdin {
        return Ok(command);
    }
    if args.backend.kind() == BackendKind::Local {
        return Ok(command.stdin(Stdin::reader(io::stdin())));
    }
    let mut input = Vec::new();
    let read = io::stdin()
        .lock()
        .take(MAX_STDIN + 1)
        .read_to_end(&mut input);
    read.map_err(|e| Error::new(ErrorKind::Io, "cannot read stdin").with_source(e))?;
    if input.len() as u64 > MAX_STDIN {
        let text =
            "stdin is longer than 64 MiB: upload it as a file, and redirect that in the sandbox";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(command.stdin(input))
}

/// Runs a command, and prints its output as it arrives. With `--json` the output is part of the result.
pub(crate) fn exec(sandbox: &Sandbox, command: Command, console: &Console) -> Result<Output> {
    if console.is_json() {
        return sandbox.exec(command);
    }
    sandbox.exec_live(command, |chunk| {
        console.chunk(chunk);
        Ok(())
    })
}

/// Prints the result of a command whose output was printed already, and returns the exit code.
pub(crate) fn print_result(
    result: Result<Output>,
    options: &ExecOptions,
    console: &Console,
) -> ExitCode {
    let out = match result {
        Ok(out) => out,
        Err(error) => return backend_failed(&error, console),
    };
    if console.is_json() {
        console.value(&json!(out));
    } else {
        console.warn_if_incomplete(&out);
    }
    if options.ignore_exit_code {
        ExitCode::SUCCESS
    } else {
        exit_code::of_command(out.exit_code())
    }
}

/// Prints an error of the backend, and returns its exit code.
pub(crate) fn backend_failed(error: &Error, console: &Console) -> ExitCode {
    console.error(error);
    ExitCode::from(exit_code::BACKEND_FAILED)
}
