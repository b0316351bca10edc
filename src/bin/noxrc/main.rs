//! The command `noxrc`.
//!
//! - `allocator`: settings of the memory allocator.
//! - `args`: the command line.
//! - `backend_args`, `kubernetes_args`, `parse`: the options that choose a backend, and parsers of option values.
//! - `client`: the client that the arguments ask for.
//! - `credentials`: tokens and headers, from the command line, files and the environment.
//! - `console`: what is printed, and where.
//! - `exit_code`, `file_error`, `interrupt`, `progress`: exit codes, errors of local files, signals and progress
//!   bars.
//! - `command`: the command to run in a sandbox, and its result.
//! - `sandboxes`, `exec`, `run`, `jobs`, `files`, `shell`, `serve`, `agent`, `kubernetes`, `conformance`,
//!   `doctor`: the subcommands.

#[cfg(target_os = "linux")]
mod agent;
mod allocator;
mod args;
mod backend_args;
mod client;
mod command;
mod conformance;
mod console;
mod credentials;
mod doctor;
mod exec;
mod exit_code;
mod file_error;
mod files;
mod interrupt;
mod jobs;
mod kubernetes;
mod kubernetes_args;
mod parse;
mod progress;
mod run;
mod sandboxes;
mod serve;
mod shell;
mod shell_syntax;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use noxrunner::Result;

use self::args::{Args, Subcommand};
use self::console::Console;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(why) = args.backend.check() {
        Args::command()
            .error(clap::error::ErrorKind::ArgumentConflict, why)
            .exit();
    }
    let console = Console::new(args.json, args.verbose, args.backend.kind());
    let Some(subcommand) = &args.subcommand else {
        // As the Python command does.
        console.data(Args::command().render_help().to_string().as_bytes());
        return ExitCode::FAILURE;
    };
    let code = dispatch(&args, subcommand, &console).unwrap_or_else(|error| {
        console.error(&error);
        ExitCode::FAILURE
    });
    match console.finish() {
        Ok(()) => code,
        Err(error) => {
            console.error_notice(&error);
            exit_code::of_failure(subcommand)
        }
    }
}

fn dispatch(args: &Args, subcommand: &Subcommand, console: &Console) -> Result<ExitCode> {
    let done = match subcommand {
        Subcommand::Exec(exec) => return Ok(exec::exec(args, exec, console)),
        Subcommand::Run(run) => return Ok(run::run(args, run, console)),
        Subcommand::Wait(wait) => return Ok(jobs::wait(args, wait, console)),
        Subcommand::Conformance(checks) => return conformance::conformance(args, checks, console),
        Subcommand::Shell(shell) => return shell::shell(args, shell, console),
        Subcommand::Health => sandboxes::health(args, console),
        Subcommand::Create(create) => sandboxes::create(args, create, console),
        Subcommand::Touch { id } => sandboxes::touch(args, id, console),
        Subcommand::Delete { id } => sandboxes::delete(args, id, console),
        Subcommand::Jobs { id } => jobs::list(args, id, console),
        Subcommand::Logs(logs) => jobs::logs(args, logs, console),
        Subcommand::Kill(job) => jobs::kill(args, job, console),
        Subcommand::Upload(upload) => files::upload(args, upload, console),
        Subcommand::Download(download) => files::download(args, download, console),
        Subcommand::Cp {
            source,
            target,
            pack,
        } => files::copy(args, source, target, pack, console),
        Subcommand::Cat { id, path } => files::cat(args, id, path, console),
        Subcommand::Serve(serve) => serve::serve(args, serve, console),
        #[cfg(target_os = "linux")]
        Subcommand::Agent(arguments) => agent::agent(args, arguments, console),
        Subcommand::Kubernetes(subcommand) => kubernetes::kubernetes(args, subcommand, console),
        Subcommand::Doctor => doctor::doctor(args, console),
        Subcommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "noxrc", &mut script);
            console.data(&script);
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}
