//! A job: a command that nobody has to wait for, followed live, found again by its id, and killed. Needs
//! no server:
//!
//!     cargo run --example job

use std::io::{BufRead, BufReader};
use std::time::Duration;

use noxrunner::{Client, Command, JobState};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::local()?;
    let sandbox = client.lease()?;

    let count = "for n in 1 2 3; do echo step $n; sleep 0.5; done; exit 4";
    let job = sandbox.spawn(Command::shell(count))?;
    println!("spawned  {} in {}", job.id(), sandbox.id());

    // As it comes; the end is where the job has ended.
    for line in BufReader::new(job.stdout()).lines() {
        println!("line     {}", line?);
    }
    println!("ended    exit code {}", job.wait()?.exit_code());

    // These two ids are all that another process needs, on any machine.
    let endless = sandbox.spawn(Command::shell("while :; do date; sleep 1; done"))?;
    let (sandbox_id, job_id) = (sandbox.id().to_owned(), endless.id().to_owned());
    let elsewhere = client.sandbox(sandbox_id)?.job(job_id)?;
    match elsewhere.wait_timeout(Duration::from_secs(2))? {
        Some(status) => println!("ended    exit code {}", status.exit_code()),
        None => println!("running  after 2 s"),
    }
    elsewhere.kill()?;
    println!("killed   exit code {}", elsewhere.wait()?.exit_code());
    let mut so_far = Vec::new();
    elsewhere.copy_so_far(&mut so_far, &mut std::io::sink())?;
    println!(
        "wrote    {} lines until then",
        so_far.split(|b| *b == b'\n').count() - 1
    );

    for job in sandbox.jobs()? {
        let state = match job.state() {
            JobState::Running => "running".to_owned(),
            JobState::Exited(status) => format!("exited with {}", status.exit_code()),
            _ => "lost".to_owned(),
        };
        println!("listed   {} {state}: {:?}", job.id(), job.command());
    }
    sandbox.close()?;
    Ok(())
}
