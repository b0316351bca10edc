//! Containers without an engine: namespaces with a root directory of their own, for the agent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noxrunner::{
    Backend, Client, Error, ErrorKind, HttpBackend, Output, Result, SandboxInfo, SandboxSpec,
    SessionId, Upload,
};

use super::is_root;

/// Mounts a root directory below `$1` and runs the agent in it as process 1. `$2` is the directory of the
/// program, `$3` its user.
const START: &str = r#"
set -e
root=$1 program=$2 user=$3
shift 3
mount -t tmpfs -o mode=755 none "$root"
for dir in /usr /bin /sbin /lib /lib64 /dev; do
  [ -e "$dir" ] || continue
  mkdir "$root$dir"
  mount --rbind "$dir" "$root$dir"
done
mkdir "$root/etc" "$root/proc" "$root/program" "$root/run"
mkdir -m 1777 "$root/tmp" "$root/workspace"
printf 'root:x:0:0::/root:/bin/sh\n' >"$root/etc/passwd"
mount -t proc none "$root/proc"
mount --bind "$program" "$root/program"
mount --bind "$root.run" "$root/run"
exec chroot --userspec="$user" "$root" /program/noxrc agent "$@"
"#;

/// A container that runs the agent. It ends when this is dropped.
pub(crate) struct Container {
    process: Child,
    dir: tempfile::TempDir,
}

impl Container {
    /// Starts the agent with these arguments, and a Unix socket. Returns `None` and prints the reason if
    /// this user cannot create containers.
    pub(crate) fn start(user: &str, args: &[&str]) -> Option<Container> {
        if !is_root() {
            let required = std::env::var_os("NOXRUNNER_REQUIRE_SANDBOX").is_some();
            assert!(!required, "containers need root");
            let _ = writeln!(std::io::stderr(), "skipped: containers need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        let run = dir.path().join("c.run");
        std::fs::create_dir(&run).unwrap();
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&run, everyone).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_noxrc")).parent().unwrap();
        let process = Command::new("unshare")
            .args([
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                START,
                "sh",
            ])
            .args([&dir.path().join("c"), program])
            .args([user, "--unix", "/run/agent.sock"])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("IMAGE_VARIABLE", "set")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Some(Container { process, dir })
    }

    /// Returns a client's backend for the agent, which may not have started yet.
    pub(crate) fn backend(&self) -> HttpBackend {
        let socket = self.socket();
        let end = Instant::now() + Duration::from_secs(60);
        while !socket.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        HttpBackend::new(format!("unix://{}", socket.display())).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::with_backend(self.backend())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("c.run/agent.sock")
    }

    /// Returns the id of the agent's process on the host.
    pub(crate) fn agent(&self) -> Option<u32> {
        let id = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        children.ok()?.trim().parse().ok()
    }

    /// Waits until the agent ends, and returns its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Ends all processes of the container.
        if let Some(agent) = self.agent() {
            let _ = Command::new("kill")
                .args(["-KILL", &agent.to_string()])
                .status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A backend with one container for each sandbox: the smallest engine.
#[derive(Default)]
pub(crate) struct ContainerBackend {
    containers: Mutex<HashMap<SessionId, Arc<Container>>>,
}

impl ContainerBackend {
    fn agent(&self, id: &SessionId) -> Result<HttpBackend> {
        let containers = self.containers.lock().unwrap();
        let container = containers
            .get(id)
            .filter(|container| container.socket().exists());
        let missing = || Error::new(ErrorKind::NotFound, "no such sandbox").with_sandbox_gone(true);
        Ok(container.ok_or_else(missing)?.backend())
    }

    /// Runs a call. A broken connection to an agent that has ended is the end of the sandbox.
    fn call<T>(&self, id: &SessionId, call: impl FnOnce(&HttpBackend) -> Result<T>) -> Result<T> {
        let result = call(&self.agent(id)?);
        result.map_err(|e| match self.agent(id) {
            Err(gone) if e.kind() == ErrorKind::Connect => gone,
            _ => e,
        })
    }
}

impl Backend for ContainerBackend {
    fn health(&self) -> Result<()> {
        Ok(())
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        let mut containers = self.containers.lock().unwrap();
        let running = containers
            .get(id)
            .filter(|container| container.socket().exists());
        let container = match running {
            Some(container) => Arc::clone(container),
            None => {
                let args = ["--session-id", id.as_str()];
                Arc::new(Container::start("1000:1000", &args).unwrap())
            }
        };
        containers.insert(id.clone(), Arc::clone(&container));
        drop(containers);
        container.backend().create(id, spec)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.call(id, |agent| agent.touch(id))
    }

    fn exec(&self, id: &SessionId, command: &noxrunner::Command) -> Result<Output> {
        self.call(id, |agent| agent.exec(id, command))
    }

    fn exec_live(
        &self,
        id: &SessionId,
        command: &noxrunner::Command,
        sink: &mut dyn FnMut(noxrunner::Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        self.call(id, |agent| agent.exec_live(id, command, sink))
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        self.call(id, |agent| agent.upload(id, dest, archive))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        self.call(id, |agent| agent.download(id, src))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        let container = self.containers.lock().unwrap().remove(id);
        Ok(container.is_some_and(|container| container.socket().exists()))
    }
}
