//! A job: a command that runs without a caller. It is followed live, found again by its id, and killed.
//! Needs no server:
//!
//!     cargo run --example job

use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use noxrunner::{Client, Command};

fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::local()?;
    let sandbox = client.lease()?;

    let count = "for n in 1 2 3; do echo step $n; sleep 0.5; done; exit 4";
    let job = sandbox.spawn(Command::shell(count))?;
    println!("spawned   {} in {}", job.id(), sandbox.id());

    // As it is written, until the job finishes.
    for line in BufReader::new(job.stdout()).lines() {
        println!("line      {}", line?);
    }
    println!("finished  exit code {}", job.wait()?.exit_code());

    // Another process, on any machine, needs only these two ids.
    let endless = sandbox.spawn(Command::shell("while :; do date; sleep 1; done"))?;
    let (sandbox_id, job_id) = (sandbox.id().to_owned(), endless.id().to_owned());
    let elsewhere = client.sandbox(sandbox_id)?.job(job_id)?;
    match elsewhere.wait_timeout(Duration::from_secs(2))? {
        Some(status) => println!("finished  exit code {}", status.exit_code()),
        None => println!("running   after 2 s"),
    }
    elsewhere.kill()?;
    println!("killed    exit code {}", elsewhere.wait()?.exit_code());
    let mut output = Vec::new();
    elsewhere.copy_so_far(&mut output, io::sink())?;
    println!(
        "output    {} lines",
        output.split(|b| *b == b'\n').count() - 1
    );

    for job in sandbox.jobs()? {
        println!(
            "listed    {} {}: {:?}",
            job.id(),
            job.state(),
            job.command()
        );
    }
    sandbox.close()?;
    Ok(())
}
