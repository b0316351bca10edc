//! This crate beside what people use otherwise: `tests/engines/side-by-side.sh`, which starts the engines and runs
//! `cargo bench --bench side_by_side --features cli`.
//!
//! Prints one line per number: group, name and value, separated by tabs. Leaves out what is not installed: `bwrap`,
//! `docker`, `podman`, `kubectl`, the Python package, and engines whose variable (see `tests/support`) is not set.
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

mod common;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use common::{Python, median, noise, rounds, time};
use noxrunner::server::{Server, Stopper};
use noxrunner::{Client, Contents, PodAccess, Sandbox, SandboxSpec};
use support::docker::{DOCKER, Engine, PODMAN};
use support::kubernetes::Namespace;

const MIB: usize = 1 << 20;

/// Size of the file that is copied.
const FILE: usize = 128 * MIB;

const IMAGE: &str = "localhost/noxrunner/busybox:1";

/// A measurement: its name, and a function that returns the seconds of one run.
type Contestant<'a> = (String, Box<dyn FnMut() -> f64 + 'a>);

fn main() {
    let local = Client::local().expect("local sandboxes");
    let served = Served::start(&local);
    let docker = Engine::new_or_skip(DOCKER, "Docker");
    let podman = Engine::new_or_skip(PODMAN, "Podman");
    let kubernetes = Namespace::new_or_skip("Kubernetes");

    let mut ours = vec![
        Ours::new("local sandbox", local),
        Ours::new("server on loopback", served.client()),
    ];
    ours.extend(docker.iter().map(|one| Ours::new("Docker", one.client())));
    ours.extend(podman.iter().map(|one| Ours::new("Podman", one.client())));
    let mut commands = Vec::new();
    commands.extend(docker.iter().filter_map(Cli::docker));
    commands.extend(podman.iter().filter_map(Cli::podman));
    if let Some(namespace) = &kubernetes {
        for (name, access) in [
            ("pod, by address", PodAccess::Address),
            ("pod, by API server", PodAccess::ApiServer),
        ] {
            let backend = namespace.builder().pod_access(access).build();
            ours.push(Ours::new(
                name,
                Client::with_backend(backend.expect("a cluster")),
            ));
        }
        commands.push(Cli::kubectl(namespace));
    }

    exec(&ours, &commands);
    create(&ours, &commands);
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let file = dir.path().join("data");
    fs::write(&file, noise(FILE)).expect("written");
    copy(&ours, &commands, &served, &file);
    memory(&commands, &served, &file);
}

/// Runs all contestants alternately, and prints the median of each.
fn compare(group: &str, count: usize, value: fn(f64) -> f64, contestants: Vec<Contestant<'_>>) {
    let (names, mut works): (Vec<_>, Vec<_>) = contestants.into_iter().unzip();
    let mut works: Vec<_> = works.iter_mut().map(|work| &mut **work as _).collect();
    for (name, seconds) in names.iter().zip(rounds(count, &mut works)) {
        println!("{group}\t{name}\t{:.3}", value(median(seconds)));
    }
}

fn millis(seconds: f64) -> f64 {
    seconds * 1e3
}

fn mib_per_second(seconds: f64) -> f64 {
    (FILE / MIB) as f64 / seconds
}

/// A backend of this crate, and a sandbox of it.
struct Ours {
    name: String,
    client: Client,
    sandbox: Sandbox,
}

impl Ours {
    fn new(name: &str, client: Client) -> Ours {
        let spec = SandboxSpec::new().storage("512Mi");
        let sandbox = client.create(format!("side by side, {name}"), spec);
        Ours {
            name: format!("noxrunner: {name}"),
            sandbox: sandbox.expect("created"),
            client,
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.sandbox.delete();
    }
}

/// A server over local sandboxes, in this process.
struct Served {
    url: String,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(local: &Client) -> Served {
        let server = Server::builder(Arc::clone(local.backend())).no_auth();
        let server = server.tcp("127.0.0.1:0").bind().expect("bound");
        Served {
            url: format!("http://{}", server.local_addr().expect("an address")),
            stopper: server.stopper(),
            thread: Some(std::thread::spawn(move || server.run().expect("served"))),
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.url).expect("a client")
    }

    /// Creates a sandbox with room for the file.
    fn create(&self, id: &str) -> Sandbox {
        let spec = SandboxSpec::new().storage("512Mi");
        self.client().create(id, spec).expect("created")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The command line of an engine.
struct Cli {
    /// The program with the options that select the engine.
    program: Vec<String>,
    /// Arguments before the command that runs in [`Cli::target`].
    exec: Vec<String>,
    /// A container or pod.
    target: String,
}

impl Cli {
    fn docker(engine: &Engine) -> Option<Cli> {
        Cli::containers(["docker", "--host", engine.socket()])
    }

    fn podman(engine: &Engine) -> Option<Cli> {
        Cli::containers(["podman", "--url", engine.socket()])
    }

    /// Starts a container. Returns `None` if the program is not installed.
    fn containers(program: [&str; 3]) -> Option<Cli> {
        if !is_installed(program[0]) {
            return None;
        }
        let target = "side-by-side";
        let cli = Cli {
            program: program.map(str::to_owned).to_vec(),
            exec: ["exec", target].map(str::to_owned).to_vec(),
            target: target.to_owned(),
        };
        let _ = cli.command(&["rm", "--force", target]).status();
        let sleep = ["--network", "none", IMAGE, "sleep", "100000"];
        cli.run(&[&["run", "--detach", "--name", target][..], &sleep].concat());
        Some(cli)
    }

    /// Uses the pod of the first sandbox in the namespace.
    fn kubectl(namespace: &Namespace) -> Cli {
        let options = ["--kubeconfig", namespace.kubeconfig(), "--namespace"];
        let program = [&["kubectl"][..], &options, &[&*namespace.name]].concat();
        let pod = namespace.pods().remove(0);
        let target = pod.trim_start_matches("pod/").to_owned();
        let exec = ["exec", &target, "--container=sandbox", "--"];
        Cli {
            program: program.into_iter().map(str::to_owned).collect(),
            exec: exec.map(str::to_owned).to_vec(),
            target,
        }
    }

    fn name(&self) -> &str {
        &self.program[0]
    }

    fn is_kubectl(&self) -> bool {
        self.name() == "kubectl"
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) {
        let status = self.command(args).status().expect("started");
        assert!(status.success(), "{} {args:?}", self.name());
    }

    /// Arguments that run `true` in a new container or pod.
    fn run_args(&self) -> Vec<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("run-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let args = if self.is_kubectl() {
            let pod = ["--restart=Never", "--attach", "--rm", "--quiet"];
            [&["run", &name, "--image", IMAGE][..], &pod, &["--", "true"]].concat()
        } else {
            vec!["run", "--rm", "--network", "none", IMAGE, "true"]
        };
        args.into_iter().map(str::to_owned).collect()
    }

    /// Arguments that copy a file to the target.
    fn copy_args(&self, file: &Path) -> Vec<String> {
        let dir = if self.is_kubectl() {
            "workspace"
        } else {
            "root"
        };
        let mut args = vec!["cp".to_owned(), file.display().to_string()];
        args.push(format!("{}:/{dir}/data", self.target));
        if self.is_kubectl() {
            args.push("--container=sandbox".to_owned());
        }
        args
    }
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null());
    let found = command.stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped without {program}");
    }
    found
}

fn words(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

const BWRAP: [&str; 9] = [
    "--unshare-all",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
    "/usr/bin/true",
];

fn plain(program: &'static str, args: &'static [&str]) -> Contestant<'static> {
    let name = if args.is_empty() {
        "plain process"
    } else {
        program
    };
    let run = move || {
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", "/usr/bin");
        time(|| assert!(command.output().expect("started").status.success()))
    };
    (name.to_owned(), Box::new(run))
}

/// The time of `true`.
fn exec(ours: &[Ours], commands: &[Cli]) {
    let mut contestants = vec![plain("/usr/bin/true", &[])];
    if is_installed("bwrap") {
        contestants.push(plain("bwrap", &BWRAP));
    }
    for one in ours {
        let run = || time(|| drop(one.sandbox.run(["true"]).expect("ran")));
        contestants.push((one.name.clone(), Box::new(run)));
    }
    for cli in commands {
        let args = [&cli.exec[..], &["true".to_owned()]].concat();
        let run = move || time(|| cli.run(&words(&args)));
        contestants.push((format!("{} exec", cli.name()), Box::new(run)));
    }
    compare("exec of true, ms", 40, millis, contestants);
}

/// The time until `true` has ended in a new sandbox.
fn create(ours: &[Ours], commands: &[Cli]) {
    let mut contestants = Vec::<Contestant<'_>>::new();
    for one in ours {
        let run = || {
            let id = format!("created, {}", one.name);
            let create = || one.client.create(&id, SandboxSpec::new()).expect("created");
            let seconds = time(|| drop(create().run(["true"]).expect("ran")));
            let sandbox = one.client.sandbox(&id).expect("valid");
            assert!(sandbox.delete().expect("deleted"));
            seconds
        };
        contestants.push((one.name.clone(), Box::new(run)));
    }
    for cli in commands {
        let run = || time(|| cli.run(&words(&cli.run_args())));
        contestants.push((format!("{} run", cli.name()), Box::new(run)));
    }
    compare(
        "create until the first command has ended, ms",
        15,
        millis,
        contestants,
    );
}

/// The speed of copying random bytes to a sandbox.
fn copy(ours: &[Ours], commands: &[Cli], served: &Served, file: &Path) {
    let mut contestants = Vec::<Contestant<'_>>::new();
    for one in ours {
        let upload = || {
            let files = [("data", Contents::path(file))];
            one.sandbox.upload(files, "/workspace").expect("uploaded");
        };
        let run = move || time(upload);
        contestants.push((one.name.clone(), Box::new(run)));
    }
    let of_python = served.create("bench");
    if let Some(mut python) = Python::start(&served.url) {
        python.ask(&format!("load {}", file.display()));
        let run = move || python.ask("upload");
        contestants.push((
            "Python client, server on loopback".to_owned(),
            Box::new(run),
        ));
    }
    for cli in commands {
        let args = cli.copy_args(file);
        let run = move || time(|| cli.run(&words(&args)));
        contestants.push((format!("{} cp", cli.name()), Box::new(run)));
    }
    compare(
        "upload of 128 MiB of random bytes, MiB/s",
        3,
        mib_per_second,
        contestants,
    );
    of_python.delete().expect("deleted");
}

const UPLOAD_IN_PYTHON: &str = "import sys; from noxrunner import NoxRunnerClient
client = NoxRunnerClient(sys.argv[1], timeout=600)
client.upload_files(sys.argv[2], {'data': open(sys.argv[3], 'rb').read()})";

/// The peak memory of the program that copies the file.
fn memory(commands: &[Cli], served: &Served, file: &Path) {
    let mut rows = Vec::new();
    let (id, file) = ("memory", file.to_str().expect("UTF-8"));
    let sandbox = served.create(id);
    let noxrc = env!("CARGO_BIN_EXE_noxrc");
    let upload = [noxrc, "--base-url", &served.url, "upload", id, file];
    rows.push((
        "noxrc upload".to_owned(),
        upload.map(str::to_owned).to_vec(),
    ));
    if let Some(python) = common::python() {
        let upload = [&python, "-c", UPLOAD_IN_PYTHON, &served.url, id, file];
        rows.push((
            "Python client".to_owned(),
            upload.map(str::to_owned).to_vec(),
        ));
    }
    for cli in commands {
        let args = [cli.program.clone(), cli.copy_args(Path::new(file))].concat();
        rows.push((format!("{} cp", cli.name()), args));
    }
    for (name, args) in rows {
        println!(
            "peak memory of the uploading program, MiB\t{name}\t{:.1}",
            peak_memory(&args)
        );
    }
    sandbox.delete().expect("deleted");
}

/// Runs a program, and returns its peak memory in MiB as GNU time reports it.
fn peak_memory(args: &[String]) -> f64 {
    let mut time = Command::new("/usr/bin/time");
    let out = time
        .args(["--format", "%M"])
        .args(args)
        .output()
        .expect("GNU time");
    let report = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {report}");
    let kib = report
        .lines()
        .last()
        .and_then(|line| line.parse::<f64>().ok());
    kib.expect("a number") / 1024.0
}
