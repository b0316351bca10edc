//! The v1 server in Python: see `plain_server.py`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use noxrunner::Client;

/// A running server, which ends when this is dropped.
pub(crate) struct PlainServer {
    child: Child,
    pub(crate) url: String,
}

impl PlainServer {
    /// Returns `None` and prints the reason if there is no suitable Python.
    pub(crate) fn start(options: &[&str]) -> Option<PlainServer> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/plain_server.py");
        let Some(python) = python() else {
            let reason = "no python3 of version 3.10 or later with os.pidfd_open";
            let required = std::env::var_os("NOXRUNNER_REQUIRE_PYTHON").is_some();
            assert!(!required, "Python is required, but there is {reason}");
            println!("skipped: {reason}");
            return None;
        };
        let mut child = Command::new(python)
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
        // The server cleans up at the end of its stdin.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The interpreter itself, because launchers such as pyenv's take longer to start than the server.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let probe = "import os, sys; os.pidfd_open; assert sys.version_info >= (3, 10); print(sys.executable)";
        let out = Command::new("python3").args(["-c", probe]).output().ok()?;
        let path = String::from_utf8(out.stdout).ok()?;
        out.status.success().then(|| path.trim_end().into())
    });
    python.as_deref()
}

/// A directory with only busybox's programs. Returns `None` and prints the reason if there is none.
pub(crate) fn busybox() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let mut install = Command::new("busybox");
    let installed = install.args(["--install", "-s"]).arg(dir.path()).status();
    if installed.is_ok_and(|status| status.success()) {
        return Some(dir);
    }
    let required = std::env::var_os("NOXRUNNER_REQUIRE_BUSYBOX").is_some();
    assert!(!required, "busybox is required but not installed");
    println!("skipped: no busybox");
    None
}
