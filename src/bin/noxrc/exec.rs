//! `exec`.

use std::process::ExitCode;

use crate::args::{Args, ExecArgs};
use crate::client::client;
use crate::command::{self, backend_failed, print_result, with_stdin, with_timeout};
use crate::console::Console;
use crate::jobs;

pub(crate) fn exec(args: &Args, exec: &ExecArgs, console: &Console) -> ExitCode {
    let sandbox = match client(args).and_then(|client| client.sandbox(&exec.id)) {
        Ok(sandbox) => sandbox,
        Err(error) => return backend_failed(&error, console),
    };
    let options = &exec.options;
    if options.detach {
        return match jobs::start(args, &sandbox, &exec.cmd, options, console) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => backend_failed(&error, console),
        };
    }
    let command = with_timeout(&exec.cmd, options, console);
    let result = with_stdin(args, command, options)
        .and_then(|command| command::exec(&sandbox, command, console));
    print_result(result, options, console)
}
