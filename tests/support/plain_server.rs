//! The v1 server in Python: see `plain_server.py`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use noxrunner::Client;

/// It ends with this.
pub(crate) struct PlainServer {
    child: Child,
    pub(crate) url: String,
}

impl PlainServer {
    /// None, with a printed reason, where there is no Python for it.
    pub(crate) fn start(options: &[&str]) -> Option<PlainServer> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/plain_server.py");
        let works = "import os, sys; os.pidfd_open; sys.exit(sys.version_info < (3, 10))";
        let mut probe = Command::new("python3");
        let probe = probe.args(["-c", works]).stderr(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            let reason = "no python3 of version 3.10 or later with os.pidfd_open";
            let required = std::env::var_os("NOXRUNNER_REQUIRE_PYTHON").is_some();
            assert!(!required, "Python is required, and there is {reason}");
            println!("skipped: {reason}");
            return None;
        }
        let mut child = Command::new("python3")
            .arg(script)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut url).unwrap();
        let url = url.trim_end().to_owned();
        assert!(
            url.starts_with("http://"),
            "the server did not start: {url:?}"
        );
        Some(PlainServer { child, url })
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url).unwrap()
    }
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        // The end of its stdin is what it waits for, to clean up.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A PATH with busybox's programs alone; none, with a printed reason, where there is no busybox.
pub(crate) fn busybox() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let mut install = Command::new("busybox");
    let installed = install.args(["--install", "-s"]).arg(dir.path()).status();
    if installed.is_ok_and(|status| status.success()) {
        return Some(dir);
    }
    let required = std::env::var_os("NOXRUNNER_REQUIRE_BUSYBOX").is_some();
    assert!(!required, "busybox is required, and there is none");
    println!("skipped: no busybox");
    None
}
