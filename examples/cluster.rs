//! The same program on this machine, in containers, and in pods of a cluster. Only the line that creates the
//! client differs. Eight sandboxes count primes at the same time:
//!
//!     cargo run --example cluster --features docker,kubernetes -- local
//!     cargo run --example cluster --features docker,kubernetes -- docker IMAGE
//!     cargo run --example cluster --features docker,kubernetes -- kubernetes IMAGE AGENT_IMAGE
//!
//! The image needs `sh` and `awk`. The guides `docker` and `kubernetes` say how to build the agent.

use std::env;
use std::error::Error;
use std::thread;

use noxrunner::{Client, Command, DockerBackend, KubernetesBackend};

/// Numbers per sandbox, and sandboxes.
const SHARE: u32 = 5_000;
const SANDBOXES: u32 = 8;

const COUNT_PRIMES: &str = r#"awk -v from="$FROM" -v to="$TO" 'BEGIN {
    for (n = from; n < to; n++) {
        prime = n > 1
        for (d = 2; d * d <= n; d++) if (n % d == 0) { prime = 0; break }
        count += prime
    }
    print count + 0
}'"#;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let client = match args[..] {
        ["local"] => Client::local()?,
        ["docker", image] => Client::with_backend(DockerBackend::builder().image(image).build()?),
        ["kubernetes", image, agent_image] => Client::with_backend(
            KubernetesBackend::builder()
                .image(image)
                .agent_image(agent_image)
                .build()?,
        ),
        _ => {
            return Err(
                "usage: cluster local | docker IMAGE | kubernetes IMAGE AGENT_IMAGE".into(),
            );
        }
    };
    let counts = thread::scope(|scope| {
        let client = &client;
        let start = |share| scope.spawn(move || count(client, share));
        let running: Vec<_> = (0..SANDBOXES).map(start).collect();
        let results = running
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        results.collect::<noxrunner::Result<Vec<u32>>>()
    })?;
    let (total, end) = (counts.iter().sum::<u32>(), SHARE * SANDBOXES);
    println!("{total} primes below {end}, in {SANDBOXES} sandboxes: {counts:?}");
    Ok(())
}

/// Counts the primes of a share in a sandbox, which is deleted afterwards.
fn count(client: &Client, share: u32) -> noxrunner::Result<u32> {
    let sandbox = client.lease()?;
    let command = Command::shell(COUNT_PRIMES)
        .env("FROM", (share * SHARE).to_string())
        .env("TO", ((share + 1) * SHARE).to_string());
    let out = sandbox.run(command)?;
    let count = out.stdout().trim().parse();
    let count = count.map_err(|_| {
        noxrunner::Error::new(
            noxrunner::ErrorKind::Protocol,
            format!("awk printed {:?}", out.stdout()),
        )
    })?;
    sandbox.close()?;
    Ok(count)
}
