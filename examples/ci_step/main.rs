//! A step of a CI run: uploads a project, builds it in a sandbox, shows what the build says while it
//! runs, and fetches what it made. Needs no server:
//!
//!     cargo run --example ci_step
//!
//! With a project, a command, what to fetch, and a server of your own:
//!
//!     cargo run --example ci_step -- . 'make -j2 all' build http://127.0.0.1:8080
//!
//! It exits with the build's own code, and with 125 where there was no build: a red one and a broken CI
//! are not the same.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use noxrunner::{Client, Command, Result, SandboxSpec};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci_step/project");
    let project = args.next().map_or(demo, PathBuf::from);
    let build = args.next().unwrap_or_else(|| "sh build.sh".to_owned());
    let made = args.next().unwrap_or_else(|| "dist".to_owned());
    match step(&project, &build, &made, args.next()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("the step could not be done: {error}");
            ExitCode::from(125)
        }
    }
}

fn step(project: &Path, build: &str, made: &str, url: Option<String>) -> Result<i32> {
    let client = match url {
        Some(url) => Client::new(url)?,
        None => Client::local()?,
    };
    // Kept alive however long the build takes, and deleted in the end.
    let sandbox = client.lease_with(SandboxSpec::new().memory("1Gi"))?;
    sandbox.wait_until_ready(Duration::from_secs(120), None)?;
    sandbox.upload_dir(project, "/workspace")?;
    println!("uploaded {}", project.display());

    // As a job: no time limit, and its output as it comes.
    let job = sandbox.spawn(Command::shell(build).env("CI", "true"))?;
    let status = job.copy_to(&mut io::stdout(), &mut io::stderr())?;
    if !status.success() {
        eprintln!("{build:?} exited with {}", status.exit_code());
        return Ok(status.exit_code());
    }

    let target = std::env::temp_dir().join(format!("ci-step-{}", std::process::id()));
    let fetched = sandbox.download_dir(made, &target)?;
    println!(
        "fetched {} entries of {made} to {}",
        fetched.entries(),
        target.display()
    );
    sandbox.close()?;
    Ok(0)
}
