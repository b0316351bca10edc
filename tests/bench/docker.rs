//! Sandboxes in containers, beside the command `docker`: `cargo bench --bench docker --features docker`
//!
//! `NOXRUNNER_TEST_DOCKER` is the engine's socket, `NOXRUNNER_TEST_AGENT` a static `noxrc`, and
//! `NOXRUNNER_TEST_IMAGE` an image with a shell. `tests/engines` has scripts that provide these. `docker` must be
//! on `PATH`.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::{median, ratio, rounds, time, verdict};
use noxrunner::{Client, DockerBackend, SandboxSpec};

const SANDBOXES: u32 = 200;
const AT_ONCE: u32 = 8;

struct Engine {
    socket: String,
    image: String,
    client: Client,
}

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(socket) = variable("NOXRUNNER_TEST_DOCKER") else {
        println!("skipped without NOXRUNNER_TEST_DOCKER");
        return;
    };
    let image = variable("NOXRUNNER_TEST_IMAGE");
    let image = image.unwrap_or_else(|| "localhost/noxrunner/busybox:1".to_owned());
    let mut builder = DockerBackend::builder().socket(&socket).image(&image);
    if let Some(agent) = variable("NOXRUNNER_TEST_AGENT") {
        builder = builder.agent(agent);
    }
    let backend = builder.build().expect("an engine");
    println!("{}", backend.engine());
    let client = Client::with_backend(backend);
    let engine = Engine {
        socket,
        image,
        client,
    };
    exec(&engine);
    create(&engine);
    many(&engine);
}

/// Runs the command `docker` until it ends.
fn docker(engine: &Engine, args: &[&str]) {
    let mut child = start_docker(engine, args);
    assert!(child.wait().expect("docker ends").success(), "{args:?}");
}

fn start_docker(engine: &Engine, args: &[&str]) -> Child {
    let mut docker = Process::new("docker");
    docker.args(["--host", &engine.socket]).args(args);
    docker
        .stdout(Stdio::piped())
        .spawn()
        .expect("docker is on PATH")
}

fn exec(engine: &Engine) {
    let sandbox = engine.client.create("bench-exec", SandboxSpec::new());
    let sandbox = sandbox.expect("created");
    let name = sandbox.info().expect("created here").pod_name().to_owned();
    println!("agent, idle: {}", memory_of_agent(&name));
    let ours = &mut || time(|| drop(sandbox.run(["true"]).expect("it runs")));
    let cli = &mut || time(|| docker(engine, &["exec", &name, "true"]));
    let seconds = rounds(30, &mut [ours, cli]);
    let ratio = ratio(&seconds[1], &seconds[0]);
    let [ours, cli] = [0, 1].map(|n| median(seconds[n].clone()) * 1e3);
    println!(
        "exec of true: {ours:.2} ms (at most 2: {})",
        verdict(ours <= 2.0)
    );
    println!(
        "docker exec: {cli:.1} ms, {ratio:.0} times as long (at least 25: {})",
        verdict(ratio >= 25.0)
    );
    assert!(sandbox.delete().expect("deleted"));
}

/// Returns the memory of the agent in a container, if this process sees it.
fn memory_of_agent(container: &str) -> String {
    let pid = find_agent(container);
    let status = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let Some(status) = status else {
        return "not visible".to_owned();
    };
    let mib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    };
    let (resident, private) = (mib("VmRSS:"), mib("RssAnon:"));
    let reached = verdict(resident <= 8.0);
    format!("{resident:.1} MiB, {private:.1} MiB of it private (at most 8: {reached})")
}

/// Returns the process whose cgroup is that of the container, and which runs the agent.
fn find_agent(container: &str) -> Option<String> {
    let docker_args = ["inspect", "--format", "{{.State.Pid}}", container];
    let socket = std::env::var("NOXRUNNER_TEST_DOCKER").ok()?;
    let out = Process::new("docker")
        .args(["--host", &socket])
        .args(docker_args)
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn create(engine: &Engine) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let ours = &mut || {
        let id = format!("bench-create-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        let sandbox = engine
            .client
            .create(id, SandboxSpec::new())
            .expect("created");
        sandbox.run(["echo", "x"]).expect("it runs");
        let seconds = start.elapsed().as_secs_f64();
        assert!(sandbox.delete().expect("deleted"));
        seconds
    };
    let cli = &mut || {
        let start = Instant::now();
        let run = [
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "echo",
            &engine.image,
            "x",
        ];
        let mut child = start_docker(engine, &run);
        let mut first = [0];
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_exact(&mut first).expect("output");
        let seconds = start.elapsed().as_secs_f64();
        child.wait().expect("docker ends");
        seconds
    };
    let seconds = rounds(20, &mut [ours, cli]);
    let ratio = ratio(&seconds[0], &seconds[1]);
    let [ours, cli] = [0, 1].map(|n| median(seconds[n].clone()) * 1e3);
    println!("create until the first exec has ended: {ours:.0} ms");
    println!(
        "docker run until its first output: {cli:.0} ms; create takes {ratio:.2} times as long (at most 1.2: {})",
        verdict(ratio <= 1.2)
    );
}

/// Creates, uses and deletes many sandboxes, some at the same time.
fn many(engine: &Engine) {
    let next = AtomicU32::new(0);
    let work = || {
        while let number @ 0..SANDBOXES = next.fetch_add(1, Ordering::Relaxed) {
            let id = format!("bench-many-{number}");
            let sandbox = engine
                .client
                .create(id, SandboxSpec::new())
                .expect("created");
            sandbox.run(["true"]).expect("it runs");
            assert!(sandbox.delete().expect("deleted"));
        }
    };
    let seconds = time(|| {
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
    });
    let filter = [
        "ps",
        "--all",
        "--quiet",
        "--filter",
        "label=noxrunner.session-id",
    ];
    let mut child = start_docker(engine, &filter);
    let mut left = String::new();
    child
        .stdout
        .take()
        .expect("a pipe")
        .read_to_string(&mut left)
        .expect("a list");
    child.wait().expect("docker ends");
    let left = left.lines().count();
    println!(
        "{SANDBOXES} sandboxes, {AT_ONCE} at a time: {seconds:.1} s; containers left: {left} ({})",
        verdict(left == 0)
    );
}
