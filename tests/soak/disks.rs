//! Fills the disks of sandboxes and of the server.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Write};
use std::path::Path;
use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, Result, Sandbox};

use crate::random::Random;
use crate::run::Soak;

/// More than the storage limit of the sandbox that is filled.
const FILL: &str = "head -c 20000000 /dev/zero > fill";

/// Fills disks until the end of the soak.
pub(crate) fn fill_all_along(soak: &Soak<'_>, mut random: Random) {
    let client = soak.server.client();
    let mut number = 0;
    while soak.sleep(random.millis(2000..10_000)) {
        number += 1;
        let id = format!("disk-{}-{number}", std::process::id());
        // The server is not killed meanwhile.
        let _running = soak.server.running();
        if soak.backend.reports_full_sandbox() {
            note(
                soak,
                &id,
                "fill a sandbox",
                fill_sandbox(soak, &client, &id),
            );
        }
        if soak.backend.has_small_disk() {
            note(
                soak,
                &id,
                "fill the server's disk",
                fill_server(soak, &client, &id),
            );
        }
    }
}

fn note(soak: &Soak<'_>, id: &str, what: &str, result: std::result::Result<(), String>) {
    match result {
        Ok(()) => soak.ledger.count(&format!("disks filled: {what}")),
        Err(e) => soak.ledger.broken(id, &format!("{what}: {e}")),
    }
}

fn shell(sandbox: &Sandbox, script: &str) -> Result<(i32, String)> {
    let command = Command::shell(script).timeout(Duration::from_secs(20));
    let out = sandbox.exec(command)?;
    Ok((out.exit_code(), format!("{}{}", out.stdout(), out.stderr())))
}

/// A full sandbox fails commands and writes, and works again when there is room.
fn fill_sandbox(soak: &Soak<'_>, client: &Client, id: &str) -> std::result::Result<(), String> {
    let text = |e: noxrunner::Error| format!("{e:#}");
    let spec = soak
        .backend
        .spec()
        .storage("4Mi")
        .ttl(Duration::from_secs(60));
    let sandbox = client.create(id, spec).map_err(text)?;
    let (code, output) = shell(&sandbox, FILL).map_err(text)?;
    if code == 0 {
        return Err(format!("{FILL} succeeded: {output}"));
    }
    let written = sandbox.write("more", vec![7; 8 << 20]);
    match written.as_ref().map_err(noxrunner::Error::kind) {
        Ok(()) => return Err("8 MiB were written to 4 MiB".to_owned()),
        Err(ErrorKind::OutcomeUnknown | ErrorKind::Timeout | ErrorKind::Protocol) => {
            return Err(format!("{:#}", written.unwrap_err()));
        }
        Err(_) => {}
    }
    let (code, output) = shell(&sandbox, "rm -f fill more; echo ok > f && cat f").map_err(text)?;
    if (code, &*output) != (0, "ok\n") {
        return Err(format!("not usable again: {code} {output}"));
    }
    sandbox.write("after", "after").map_err(text)?;
    sandbox.delete().map(drop).map_err(text)
}

/// A server whose disk is full serves sandboxes in memory, and the others when there is room.
fn fill_server(soak: &Soak<'_>, client: &Client, id: &str) -> std::result::Result<(), String> {
    let text = |e: noxrunner::Error| format!("{e:#}");
    let ttl = Duration::from_secs(60);
    let in_memory = client
        .create(id, soak.backend.spec().ttl(ttl))
        .map_err(text)?;
    let on_disk = soak.backend.spec().ttl(ttl).storage("100Mi");
    let disk_id = format!("{id}-on-disk");
    let path = soak.server.disk().join("filler");
    fill(&path).map_err(|e| e.to_string())?;
    let created = client.create(&disk_id, on_disk.clone());
    let full = created.and_then(|sandbox| shell(&sandbox, FILL));
    let used = shell(&in_memory, "echo ok > f && cat f");
    let written = in_memory.write("g", vec![7; 1 << 20]);
    std::fs::remove_file(&path).map_err(|e| e.to_string())?;
    if let Ok((0, output)) = full {
        return Err(format!("{FILL} succeeded on a full disk: {output}"));
    }
    if used.map_err(text)? != (0, "ok\n".to_owned()) {
        return Err("the sandbox in memory does not work".to_owned());
    }
    written.map_err(text)?;
    let sandbox = client.create(&disk_id, on_disk).map_err(text)?;
    let (code, output) = shell(&sandbox, "rm -f fill; echo ok > f && cat f").map_err(text)?;
    if (code, &*output) != (0, "ok\n") {
        return Err(format!("not usable with room: {code} {output}"));
    }
    sandbox.delete().map_err(text)?;
    in_memory.delete().map(drop).map_err(text)
}

/// Writes a file until nothing more fits on its disk.
fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for block in [64 * 1024, 512] {
        loop {
            match file.write(&vec![0; block]) {
                Ok(_) => {}
                Err(e) if e.kind() == IoKind::StorageFull => break,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
