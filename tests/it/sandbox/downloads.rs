//! Downloads that outlive their sandbox.

use std::io::Read;

use super::*;

const SPARSE: &str = "truncate -s 1T f 2>/dev/null || truncate -s 8G f; dd if=/dev/urandom of=f bs=64k count=1 conv=notrunc 2>/dev/null";

/// Reads a download to its end, and returns the error that ended it.
fn end_of(mut archive: Box<dyn Read + Send>) -> String {
    let started = Instant::now();
    let ended = std::io::copy(&mut archive, &mut std::io::sink());
    assert!(started.elapsed() < Duration::from_secs(60));
    format!("{:#}", ended.expect_err("the download is complete"))
}

#[test]
fn download_ends_with_the_ttl_or_the_deletion() {
    let client = client();
    for expires in [true, false] {
        let sandbox = create(&client, "holes");
        shell(&sandbox, SPARSE);
        let mut archive = sandbox.download_archive("/workspace").unwrap();
        archive.read_exact(&mut [0; 100_000]).unwrap();
        if expires {
            let spec = SandboxSpec::new().ttl(Duration::from_secs(1));
            client.create("holes", spec).unwrap();
        } else {
            sandbox.delete().unwrap();
        }
        let error = end_of(archive);
        assert!(error.contains("was deleted or has expired"), "{error}");
    }
}
