//! The server process.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, RwLock, RwLockReadGuard};

use noxrunner::Client;

use crate::backend::{Backend, disk};
use crate::support::processes::{send_signal, wait_for};

pub(crate) struct ServerProcess {
    dir: tempfile::TempDir,
    child: Mutex<Child>,
    /// Written while the server or its engine does not run.
    outages: RwLock<()>,
}

impl ServerProcess {
    pub(crate) fn start(backend: &Backend) -> ServerProcess {
        let dir = tempfile::Builder::new().prefix("soak-").tempdir().unwrap();
        for name in ["home", "disk"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let child = spawn(backend, dir.path());
        let server = ServerProcess {
            dir,
            child: Mutex::new(child),
            outages: RwLock::new(()),
        };
        server.wait_until_healthy();
        server
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.dir())
    }

    /// Returns the directory of the server's files, as the server sees it.
    pub(crate) fn disk(&self) -> PathBuf {
        let path = disk(self.dir());
        let path = path.strip_prefix("/").unwrap();
        Path::new(&format!("/proc/{}/root", self.pid())).join(path)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Returns a client without a proxy in between.
    pub(crate) fn client(&self) -> Client {
        Client::new(format!("unix://{}", self.socket().display())).unwrap()
    }

    /// Waits for the end of an outage, and prevents others meanwhile.
    pub(crate) fn running(&self) -> RwLockReadGuard<'_, ()> {
        self.outages.read().unwrap()
    }

    /// Lets `outage` happen, when no one relies on the server.
    pub(crate) fn during_outage(&self, outage: impl FnOnce()) {
        let _outage = self.outages.write().unwrap();
        outage();
        self.wait_until_healthy();
    }

    /// Kills the server, and starts another one after `pause`. Only during an outage.
    pub(crate) fn kill_and_restart(&self, backend: &Backend, pause: impl FnOnce()) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        pause();
        *child = spawn(backend, self.dir());
    }

    fn wait_until_healthy(&self) {
        let client = self.client();
        wait_for("the server is healthy", || client.health().is_ok());
    }

    /// Ends the server as an operator does.
    pub(crate) fn stop(&self) -> ExitStatus {
        let mut child = self.child.lock().unwrap();
        send_signal(child.id(), "TERM");
        child.wait().unwrap()
    }

    /// Returns the log of all servers so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log(self.dir())).unwrap()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(|e| e.into_inner());
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("server.sock")
}

fn log(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

fn spawn(backend: &Backend, dir: &Path) -> Child {
    let log: File = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log(dir))
        .unwrap();
    let mut command = backend.serve(dir, &socket(dir));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log).spawn().unwrap()
}
