//! A CI step: uploads a project, builds it in a sandbox, shows the build's output while it runs, and
//! downloads the result. Needs no server:
//!
//!     cargo run --example ci_step
//!
//! With your own project, build command, result and server:
//!
//!     cargo run --example ci_step -- . 'make -j2 all' build http://127.0.0.1:8080
//!
//! It exits with the build's exit code, or with 125 if the backend failed, so that a failed build can be
//! told from a broken CI.

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
    let result = args.next().unwrap_or_else(|| "dist".to_owned());
    match step(&project, &build, &result, args.next()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("the CI step failed: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn step(project: &Path, build: &str, result: &str, url: Option<String>) -> Result<i32> {
    let client = match url {
        Some(url) => Client::new(url)?,
        None => Client::local()?,
    };
    // Kept alive for as long as the build takes, then deleted.
    let sandbox = client.lease_with(SandboxSpec::new().memory("1Gi"))?;
    sandbox.wait_until_ready(Duration::from_secs(120), None)?;
    sandbox.upload_dir(project, "/workspace")?;
    println!("uploaded {}", project.display());

    // A job has no timeout, and its output can be followed.
    let job = sandbox.spawn(Command::shell(build).env("CI", "true"))?;
    let status = job.copy_to(io::stdout(), io::stderr())?;
    if !status.success() {
        eprintln!("{build:?} exited with {}", status.exit_code());
        return Ok(status.exit_code());
    }

    let target = std::env::temp_dir().join(format!("ci-step-{}", std::process::id()));
    let extraction = sandbox.download_dir(result, &target)?;
    println!(
        "downloaded {} entries of {result} to {}",
        extraction.entries(),
        target.display()
    );
    sandbox.close()?;
    Ok(0)
}
