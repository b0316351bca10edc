//! The published Python client against this crate's server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use noxrunner::server::Server;
use noxrunner::{Backend, Isolation};

use super::RunningServer;
use crate::support::local_backend;

const SCRIPT: &str = r#"
import io, os, sys, tarfile, tempfile
from noxrunner import NoxRunnerClient, NoxRunnerHTTPError, NoxRunnerError
url, image, shell = sys.argv[1:]
client = NoxRunnerClient(url)
assert client.health_check() is True
made = client.create_sandbox("py", ttl_seconds=300, image=image or None, cpu_limit="1",
                             memory_limit="256Mi", ephemeral_storage_limit="64Mi")
assert made["podName"] and made["expiresAt"].endswith("Z"), made
assert client.wait_for_pod_ready("py", timeout=10)
assert client.touch("py") is True
result = client.exec("py", ["sh", "-c", "echo out; echo err >&2; echo $A; exit 3"], env={"A": "b c"})
assert (result["exitCode"], result["stdout"], result["stderr"]) == (3, "out\nb c\n", "err\n"), result
assert isinstance(result["durationMs"], int)
assert client.exec_shell("py", f"echo $0 | grep -c {shell}", shell=shell)["stdout"] == "1\n"
assert client.exec("py", ["pwd"], workdir="/workspace")["exitCode"] == 0
assert client.exec("py", ["sleep", "9"], timeout_seconds=1)["exitCode"] == 124
assert client.exec("py", ["nosuchcommand"])["exitCode"] == 127
binary = bytes(range(256)) * 1000
assert client.upload_files("py", {"a.txt": "text", "sub dir/b+c.bin": binary}, dest="/workspace/in put+x")
archive = client.download_files("py", src="/workspace/in put+x")
with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
    names = sorted(m.name.removeprefix("./") for m in tar.getmembers() if m.isfile())
assert names == ["a.txt", "sub dir/b+c.bin"], names
with tempfile.TemporaryDirectory() as target:
    assert client.download_workspace("py", target, src="/workspace/in put+x")
    assert open(os.path.join(target, "sub dir/b+c.bin"), "rb").read() == binary
client.exec_shell("py", "sleep 5 >/dev/null 2>&1 & echo started")
try:
    client.exec("missing", ["true"])
    raise SystemExit("no error for a missing sandbox")
except NoxRunnerHTTPError as e:
    assert e.status_code == 404, e
try:
    client.exec("py", [])
    raise SystemExit("no error for an empty command")
except NoxRunnerError:
    pass
assert client.delete_sandbox("py") is True
print("all of it")
"#;

/// Returns `None` and prints the reason if the Python package cannot be installed.
fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-client");
    let python = venv.join("bin/python");
    let succeeds = |command: &mut Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let has_it = || succeeds(Command::new(&python).args(["-c", "import noxrunner"]));
    let pip = ["-m", "pip", "install", "--quiet", "noxrunner==2.0.0"];
    let there = has_it()
        || (succeeds(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            && succeeds(Command::new(&python).args(pip))
            && has_it());
    if !there {
        let reason = "no python3 that can `pip install noxrunner==2.0.0`";
        let required = std::env::var_os("NOXRUNNER_REQUIRE_PYTHON").is_some();
        assert!(!required, "Python is required, but there is {reason}");
        println!("skipped: {reason}");
    }
    there.then_some(python)
}

/// Runs the Python package's calls against a server over this backend.
fn check(backend: impl Backend + 'static, image: &str, shell: &str) {
    let Some(python) = python() else { return };
    // The Python client cannot send a token.
    let server = RunningServer::start(Server::builder(backend).tcp("127.0.0.1:0").no_auth());
    let url = format!("http://{}", server.addr());
    let out = Command::new(&python)
        .args(["-c", SCRIPT, &url, image, shell])
        .env("no_proxy", "*")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
    assert_eq!(text, "all of it\n");
}

#[test]
fn published_python_client_works() {
    for isolation in [Isolation::None, Isolation::Namespaces] {
        let (backend, _dir) = local_backend(isolation);
        check(backend, "python:3.12", "bash");
    }
}

#[cfg(feature = "docker")]
#[test]
fn published_python_client_works_on_docker_and_podman() {
    use crate::support::docker::{DOCKER, Engine, PODMAN};

    for variable in [DOCKER, PODMAN] {
        if let Some(engine) = Engine::new_or_skip(variable, "the Python client on containers") {
            check(engine.builder().build().unwrap(), "", "sh");
        }
    }
}

#[cfg(feature = "kubernetes")]
#[test]
fn published_python_client_works_on_kubernetes() {
    use crate::support::kubernetes::Namespace;

    if let Some(namespace) = Namespace::new_or_skip("the Python client on pods") {
        check(namespace.builder().build().unwrap(), "", "sh");
    }
}
