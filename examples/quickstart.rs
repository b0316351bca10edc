//! The life of a sandbox, from health to delete. Needs no server:
//!
//!     cargo run --example quickstart
//!
//! With a server: cargo run --example quickstart -- http://127.0.0.1:8080

use std::time::Duration;

use noxrunner::{Client, Command, Result, SandboxSpec};

fn main() -> Result<()> {
    let client = match std::env::args().nth(1) {
        Some(url) => Client::new(url)?,
        // Sandboxes on this machine, in namespaces of their own.
        None => Client::local()?,
    };

    client.health()?;
    println!("health   the backend is well");

    let spec = SandboxSpec::new().ttl(Duration::from_secs(600));
    let sandbox = client.create(format!("quickstart-{}", std::process::id()), spec)?;
    let expires = sandbox.info().map_or("?", |info| info.expires_at());
    println!("create   sandbox {} lives until {expires}", sandbox.id());

    // Whatever happens below, the sandbox is not left behind.
    let result = tour(&sandbox);
    let deleted = sandbox.delete()?;
    println!("delete   the sandbox is gone: {deleted}");
    result
}

fn tour(sandbox: &noxrunner::Sandbox) -> Result<()> {
    let out = sandbox.exec(["echo", "hello from the sandbox"])?.check()?;
    println!("exec     echo said {:?}", out.stdout().trim_end());

    let greet = Command::shell(r#"echo "hello, $NAME" && exit 3"#).env("NAME", "world");
    let out = sandbox.exec(greet)?;
    println!(
        "shell    said {:?}, exit code {}",
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
    let out = sandbox.exec(run)?.check()?;
    println!(
        "run      sh count.sh took {} ms",
        out.duration().as_millis()
    );

    let target = std::env::temp_dir().join(sandbox.id());
    let done = sandbox.download_dir("/workspace", &target)?;
    println!(
        "download {} entries, {} bytes, to {}",
        done.entries(),
        done.bytes(),
        target.display()
    );
    let count = sandbox.read("count.txt")?;
    println!(
        "read     count.txt holds {}",
        String::from_utf8_lossy(&count).trim()
    );
    if let Err(e) = std::fs::remove_dir_all(&target) {
        eprintln!("cannot remove {}: {e}", target.display());
    }

    sandbox.touch()?;
    println!("touch    its time starts again");
    Ok(())
}
