//! Files and directories, in and out. Needs no server:
//!
//!     cargo run --example files

use std::fs;

use noxrunner::{Client, Contents, Extract, Files, SandboxSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::local()?;
    let sandbox = client.create(format!("files-{}", std::process::id()), SandboxSpec::new())?;
    let local = std::env::temp_dir().join(sandbox.id());
    let result = tour(&sandbox, &local);
    sandbox.delete()?;
    if local.exists() {
        fs::remove_dir_all(&local)?;
    }
    result
}

fn tour(
    sandbox: &noxrunner::Sandbox,
    local: &std::path::Path,
) -> Result<(), Box<dyn std::error::Error>> {
    // One file: text, bytes or a reader, with a mode if it is to be run.
    sandbox.write("notes/today.txt", "bytes and text\n")?;
    sandbox.write("bin/hi", Contents::from("#!/bin/sh\necho hi\n").mode(0o755))?;
    println!(
        "bin/hi says {:?}",
        sandbox.exec(["./bin/hi"])?.check()?.stdout()
    );
    println!(
        "notes exists: {}, notes/x exists: {}",
        sandbox.exists("notes")?,
        sandbox.exists("notes/x")?
    );

    // A whole local directory: modes, empty directories and links are kept.
    let project = local.join("project");
    fs::create_dir_all(project.join("src/empty"))?;
    fs::write(project.join("src/data.bin"), [0, 159, 146, 150])?;
    std::os::unix::fs::symlink("src", project.join("link"))?;
    sandbox.upload_dir(&project, "/workspace/project")?;
    print!(
        "{}",
        sandbox.exec(["ls", "-lR", "project"])?.check()?.stdout()
    );

    // A set of named contents and local paths, in one request.
    let set = Files::new()
        .add("a.txt", "one")
        .add("deep/copy", Contents::path(&project));
    sandbox.upload(set, "/workspace/set")?;

    // Back again. What a sandbox sends is not trusted: this link leads out, and is left out.
    sandbox.run(["ln", "-s", "/etc/passwd", "project/leak"])?;
    let out = local.join("out");
    let error = sandbox
        .download_dir("/workspace/project", &out)
        .unwrap_err();
    println!("refused: {error}");
    let done = sandbox.download_dir_with(
        "/workspace/project",
        &out,
        &Extract::new().skip_refused(true),
    )?;
    println!("{} entries, left out: {:?}", done.entries(), done.refused());

    // One file, binary-safe, to memory or to a writer.
    assert_eq!(sandbox.read("project/src/data.bin")?, [0, 159, 146, 150]);
    let mut copy = fs::File::create(local.join("copy.bin"))?;
    println!(
        "read {} bytes",
        sandbox.read_to("project/src/data.bin", &mut copy)?
    );

    // The archive itself, as a reader: here from one place to another.
    let archive = sandbox.download_archive("/workspace/project/src")?;
    sandbox.upload_archive(archive, "/workspace/copy")?;
    println!("copied: {}", sandbox.exists("copy/data.bin")?);
    Ok(())
}
