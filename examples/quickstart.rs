//! The life of a sandbox, from the health check to its deletion. Needs no server:
//!
//!     cargo run --example quickstart
//!
//! With a server: cargo run --example quickstart -- http://127.0.0.1:8080

use std::time::Duration;

use noxrunner::{Client, Command, Result, SandboxSpec};

fn main() -> Result<()> {
    let client = match std::env::args().nth(1) {
        Some(url) => Client::new(url)?,
        // Local sandboxes.
        None => Client::local()?,
    };

    client.health()?;
    println!("health   the backend is healthy");

    let spec = SandboxSpec::new().ttl(Duration::from_secs(600));
    let sandbox = client.create(format!("quickstart-{}", std::process::id()), spec)?;
    let expires = sandbox.info().map_or("?", |info| info.expires_at());
    println!("create   sandbox {} expires at {expires}", sandbox.id());

    // The sandbox is deleted even if the tour fails.
    let result = tour(&sandbox);
    let deleted = sandbox.delete()?;
    println!("delete   the sandbox existed: {deleted}");
    result
}

fn tour(sandbox: &noxrunner::Sandbox) -> Result<()> {
    let out = sandbox.run(["echo", "hello from the sandbox"])?;
    println!("run      echo printed {:?}", out.stdout().trim_end());

    let greet = Command::shell(r#"echo "hello, $NAME" && exit 3"#).env("NAME", "world");
    let out = sandbox.exec(greet)?;
    println!(
        "shell    printed {:?}, exit code {}",
        out.stdout().trim_end(),
        out.exit_code()
    );

    sandbox.upload(
        [
            (
                "count.sh",
                "wc -w < words.txt > count.txt\nsort words.txt > sorted.txt\n",
            ),
            ("words.txt", "pear\napple\nfig\n"),
        ],
        "/workspace",
    )?;
    println!("upload   count.sh and words.txt");

    let run = Command::from(["sh", "count.sh"]).timeout(Duration::from_secs(60));
    let out = sandbox.run(run)?;
    println!(
        "run      sh count.sh took {} ms",
        out.duration().as_millis()
    );

    let target = std::env::temp_dir().join(sandbox.id());
    let extraction = sandbox.download_dir("/workspace", &target)?;
    println!(
        "download {} entries, {} bytes, to {}",
        extraction.entries(),
        extraction.bytes(),
        target.display()
    );
    let count = sandbox.read_to_string("count.txt")?;
    println!("read     count.txt contains {}", count.trim());
    if let Err(e) = std::fs::remove_dir_all(&target) {
        eprintln!("cannot remove {}: {e}", target.display());
    }

    sandbox.touch()?;
    println!("touch    the TTL is reset");
    Ok(())
}
