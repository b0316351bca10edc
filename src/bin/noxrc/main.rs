//! The command `noxrc`.
//!
//! - `args`: what can be typed.
//! - `connect`: the client that it asks for.
//! - `progress`: how far a transfer is.
//! - `say`: notices, data and errors, each where it belongs.
//! - `sandboxes`, `exec`, `files`, `run`, `shell`: the commands of those names.
//! - `jobs`: detached commands.
//! - `serve`, `doctor`, `conformance`: the server, what works here, and what works there.

mod args;
mod conformance;
mod connect;
mod doctor;
mod exec;
mod files;
mod jobs;
mod progress;
mod run;
mod sandboxes;
mod say;
mod serve;
mod shell;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Args, Command};
use self::say::Say;

/// Where the backend or the sandbox fails, so that it can't be taken for the command's own code.
const BACKEND_FAILED: u8 = 125;

fn main() -> ExitCode {
    let args = Args::parse();
    let say = Say::new(args.json, args.verbose);
    let Some(command) = &args.command else {
        // As the Python command does.
        say.data(Args::command().render_help().to_string().as_bytes());
        return ExitCode::FAILURE;
    };
    let result = match command {
        Command::Health => sandboxes::health(&args, &say),
        Command::Create(create) => sandboxes::create(&args, create, &say),
        Command::Touch { id } => sandboxes::touch(&args, id, &say),
        Command::Delete { id } => sandboxes::delete(&args, id, &say),
        Command::Exec(exec) => return exec::exec(&args, exec, &say),
        Command::Run(run) => return run::run(&args, run, &say),
        Command::Jobs { id } => jobs::list(&args, id, &say),
        Command::Logs(logs) => jobs::logs(&args, logs, &say),
        Command::Wait(wait) => return jobs::wait(&args, wait, &say),
        Command::Kill(of) => jobs::kill(&args, of, &say),
        Command::Shell(shell) => shell::shell(&args, shell, &say),
        Command::Upload(upload) => files::upload(&args, upload, &say),
        Command::Download(download) => files::download(&args, download, &say),
        Command::Cp { source, target } => files::copy(&args, source, target, &say),
        Command::Cat { id, path } => files::cat(&args, id, path, &say),
        Command::Serve(serve) => serve::serve(&args, serve, &say),
        Command::Conformance(of) => return conformance::conformance(&args, of, &say),
        Command::Doctor => doctor::doctor(&args, &say),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "noxrc", &mut script);
            say.data(&script);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say.error(&error);
            ExitCode::FAILURE
        }
    }
}
