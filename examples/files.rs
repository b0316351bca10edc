//! Files and directories, into a sandbox and out of it. Needs no server:
//!
//!     cargo run --example files

use std::error::Error;
use std::fs;
use std::path::Path;

use noxrunner::{Client, Contents, Extract, Files, Sandbox};

fn main() -> Result<(), Box<dyn Error>> {
    // Both are deleted when they are dropped.
    let sandbox = Client::local()?.lease()?;
    let local = std::env::temp_dir().join(sandbox.id());
    let result = tour(&sandbox, &local);
    if local.exists() {
        fs::remove_dir_all(&local)?;
    }
    result
}

fn tour(sandbox: &Sandbox, local: &Path) -> Result<(), Box<dyn Error>> {
    // A file from text, bytes or a reader, with a mode if it should be executable.
    sandbox.write("notes/today.txt", "bytes and text\n")?;
    sandbox.write("bin/hi", Contents::from("#!/bin/sh\necho hi\n").mode(0o755))?;
    println!("bin/hi printed {:?}", sandbox.run(["./bin/hi"])?.stdout());
    println!(
        "notes exists: {}, notes/x exists: {}",
        sandbox.exists("notes")?,
        sandbox.exists("notes/x")?
    );

    // A local directory, with modes, empty directories and links.
    let project = local.join("project");
    fs::create_dir_all(project.join("src/empty"))?;
    fs::write(project.join("src/data.bin"), [0, 159, 146, 150])?;
    std::os::unix::fs::symlink("src", project.join("link"))?;
    sandbox.upload_dir(&project, "/workspace/project")?;
    print!("{}", sandbox.run(["ls", "-lR", "project"])?.stdout());

    // Named contents and local paths, in one request.
    let set = Files::new()
        .add("a.txt", "one")
        .add("deep/copy", Contents::path(&project));
    sandbox.upload(set, "/workspace/set")?;

    // A download is not trusted. This link leads out of the target and is refused.
    sandbox.run(["ln", "-s", "/etc/passwd", "project/leak"])?;
    let out = local.join("out");
    let error = sandbox.download_dir("project", &out).unwrap_err();
    println!("refused: {error}");
    let skip = Extract::new().skip_refused(true);
    let extraction = sandbox.download_dir_with("project", &out, &skip)?;
    println!("{} entries", extraction.entries());
    for refusal in extraction.refused() {
        println!("skipped {}: {}", refusal.name(), refusal.rule());
    }

    // A single file, to memory or to disk.
    assert_eq!(sandbox.read("project/src/data.bin")?, [0, 159, 146, 150]);
    let size = sandbox.download_file("project/src/data.bin", local.join("copy.bin"))?;
    println!("downloaded {size} bytes");

    // The archive itself, as a reader.
    let archive = sandbox.download_archive("project/src")?;
    sandbox.upload_archive(archive, "/workspace/copy")?;
    println!("copied: {}", sandbox.exists("copy/data.bin")?);
    Ok(())
}
