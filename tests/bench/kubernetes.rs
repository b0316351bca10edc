//! Sandboxes in pods: `cargo bench --bench kubernetes --features kubernetes`, with the variables of
//! `tests/engines/k8s-up.sh`.
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

mod common;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{median, rounds, text, time, verdict};
use noxrunner::{Client, Contents, PodAccess, Sandbox, SandboxSpec};
use serde_json::{Value, json};
use support::kubernetes::Namespace;
use support::processes::wait_for;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn main() {
    let Some(namespace) = Namespace::new_or_skip("benchmarks on Kubernetes") else {
        return;
    };
    let client = |access| {
        let backend = namespace.builder().pod_access(access).build();
        Client::with_backend(backend.expect("a cluster"))
    };
    let ways = namespace.accesses();
    let through_proxy = client(PodAccess::ApiServer);
    let by_address = ways
        .contains(&PodAccess::Address)
        .then(|| client(PodAccess::Address));
    let nearest = by_address.as_ref().unwrap_or(&through_proxy);
    exec(&namespace, &through_proxy, by_address.as_ref());
    create(&namespace, nearest);
    transfer(&through_proxy);
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}

/// The median time of `true`, in a sandbox and by kubectl.
fn exec(namespace: &Namespace, through_proxy: &Client, by_address: Option<&Client>) {
    let created = through_proxy
        .create("bench", SandboxSpec::new())
        .expect("created");
    let pod = namespace.pods().remove(0);
    let run = |sandbox: &Sandbox| time(|| drop(sandbox.run(["true"]).expect("ran")));
    let direct = by_address.map(|client| client.sandbox("bench").expect("valid"));
    let mut by_proxy = || median((0..20).map(|_| run(&created)).collect());
    let mut by_address = || match &direct {
        Some(sandbox) => median((0..20).map(|_| run(sandbox)).collect()),
        None => f64::NAN,
    };
    let mut by_kubectl =
        || time(|| drop(namespace.kubectl(&["exec", &pod, "--container=sandbox", "--", "true"])));
    let times = rounds(15, &mut [&mut by_proxy, &mut by_address, &mut by_kubectl]);
    let [proxy, address, kubectl] = [0, 1, 2].map(|at: usize| median(times[at].clone()));
    println!(
        "exec of true by the pod's address:  {} (target 2.5 ms: {})",
        millis(address),
        verdict(address <= 0.0025)
    );
    println!(
        "exec of true by the API server:     {} (target 8 ms: {})",
        millis(proxy),
        verdict(proxy <= 0.008)
    );
    println!("kubectl exec:                       {}", millis(kubectl));
    let ratio = kubectl / proxy;
    println!(
        "kubectl exec takes {ratio:.0} times as long as by the API server (target 15: {})",
        verdict(ratio >= 15.0)
    );
    created.delete().expect("deleted");
}

/// The API server at a Unix socket, for requests without the start of a process.
struct Proxy {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Proxy {
    fn start(namespace: &Namespace) -> Proxy {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("kubectl.sock");
        let child = Command::new("kubectl")
            .args(["--kubeconfig", namespace.kubeconfig(), "proxy"])
            .arg(format!("--unix-socket={}", socket.display()))
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        wait_for("the proxy listens", || socket.exists());
        let _dir = dir;
        Proxy {
            child,
            socket,
            _dir,
        }
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = UnixStream::connect(&self.socket).expect("connected");
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        serde_json::from_str(body).expect("JSON")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// The median time from create to the first exec, and from the creation of a plain pod to its readiness.
fn create(namespace: &Namespace, client: &Client) {
    let mut sandbox = || {
        let took = time(|| {
            let sandbox = client.create("bench", SandboxSpec::new()).expect("created");
            sandbox.run(["true"]).expect("ran");
        });
        let sandbox = client.sandbox("bench").expect("valid");
        assert!(sandbox.delete().expect("deleted"));
        took
    };
    let container = json!({"name": "c", "image": namespace.image(), "command": ["sleep", "1000"]});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    });
    let proxy = Proxy::start(namespace);
    let pods = format!("/api/v1/namespaces/{}/pods", namespace.name);
    let path = format!("{pods}/plain");
    let mut plain = || {
        let took = time(|| {
            proxy.request("POST", &pods, &pod.to_string());
            while !is_ready(&proxy.request("GET", &path, "")) {
                thread::sleep(Duration::from_millis(20));
            }
        });
        proxy.request("DELETE", &path, r#"{"gracePeriodSeconds": 0}"#);
        took
    };
    let times = rounds(15, &mut [&mut sandbox, &mut plain]);
    let [sandbox, plain] = [0, 1].map(|at: usize| median(times[at].clone()));
    let ratio = sandbox / plain;
    println!("create until the first exec:   {}", millis(sandbox));
    println!("plain pod until Ready:         {}", millis(plain));
    println!(
        "create takes {ratio:.2} times as long as a plain pod (target 1.5: {})",
        verdict(ratio <= 1.5)
    );
}

/// Peak resident memory of a process, in MiB, since it was reset.
fn peak_memory(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.map(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>());
    kib.expect("a line of the peak").expect("a number") / 1024
}

fn own_peak() -> u64 {
    peak_memory(&fs::read_to_string("/proc/self/status").expect("read"))
}

fn agent_peak(sandbox: &Sandbox) -> u64 {
    let out = sandbox.run(["cat", "/proc/1/status"]).expect("ran");
    peak_memory(&out.stdout())
}

/// A reader of so many bytes that repeats a piece.
struct Repeated<'a> {
    piece: &'a [u8],
    left: u64,
}

impl Read for Repeated<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let at = usize::try_from(self.left).unwrap_or(usize::MAX) % self.piece.len();
        let count = buf.len().min(self.piece.len() - at);
        let count = count.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        buf[..count].copy_from_slice(&self.piece[at..at + count]);
        self.left -= count as u64;
        Ok(count)
    }
}

/// Uploads and downloads a file of 1 GiB through the API server.
fn transfer(client: &Client) {
    let spec = SandboxSpec::new().storage("4Gi");
    let sandbox = client.create("transfer", spec).expect("created");
    let piece = text(8 << 20);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("large");
    let mut file = fs::File::create(&path).expect("created");
    io::copy(
        &mut Repeated {
            piece: &piece,
            left: GIB,
        },
        &mut file,
    )
    .expect("written");
    drop(file);
    fs::write("/proc/self/clear_refs", "5").expect("the peak is reset");
    let before = own_peak();
    let up = time(|| {
        sandbox
            .upload([("large", Contents::path(&path))], ".")
            .expect("uploaded")
    });
    let target = dir.path().join("back");
    let down = time(|| {
        drop(
            sandbox
                .download_dir("/workspace", &target)
                .expect("downloaded"),
        )
    });
    let (client_peak, agent) = (own_peak(), agent_peak(&sandbox));
    assert_eq!(
        fs::metadata(target.join("large"))
            .expect("it is there")
            .len(),
        GIB
    );
    let rate = |seconds: f64| (GIB / MIB) as f64 / seconds;
    println!(
        "1 GiB of text up by the API server:   {:.0} MiB/s",
        rate(up)
    );
    println!(
        "1 GiB of text down by the API server: {:.0} MiB/s",
        rate(down)
    );
    println!(
        "peak memory of the client: {client_peak} MiB, {before} MiB before (target 32: {})",
        verdict(client_peak <= 32)
    );
    println!(
        "peak memory of the agent:  {agent} MiB (target 32: {})",
        verdict(agent <= 32)
    );
    assert!(sandbox.delete().expect("deleted"));
}
