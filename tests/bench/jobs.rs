//! Jobs followed through the server: `cargo bench --bench jobs --features cli`

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{median, verdict};
use noxrunner::{Client, Command, Sandbox, SandboxSpec};

fn main() {
    log::set_logger(&CALLS).expect("the only logger");
    log::set_max_level(log::LevelFilter::Debug);
    let server = Serving::start();
    let client = Client::new(&server.url).expect("a client");
    speed(&client, &server);
    latency(&client);
    idle(&client);
}

/// `noxrc serve` with local sandboxes.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start() -> Serving {
        let mut child = Process::new(env!("CARGO_BIN_EXE_noxrc"))
            .args(["--json", "serve", "--no-auth", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let url = said["url"].as_str().expect("a URL").to_owned();
        Serving { child, url }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of the library's log, one per request.
struct Calls(Mutex<Vec<String>>);

static CALLS: Calls = Calls(Mutex::new(Vec::new()));

impl Calls {
    fn to(&self, sandbox: &str) -> usize {
        let lines = self.0.lock().expect("no panic");
        let path = format!("/{sandbox}/");
        lines.iter().filter(|line| line.contains(&path)).count()
    }
}

impl log::Log for Calls {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("noxrunner")
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = record.args().to_string();
            self.0.lock().expect("no panic").push(line);
        }
    }
    fn flush(&self) {}
}

fn create(client: &Client, id: &str) -> Sandbox {
    let spec = SandboxSpec::new().storage("1Gi");
    client.create(id, spec).expect("created")
}

/// In MiB.
fn peak(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|line| line.split_whitespace().next());
    kib.expect("a peak").parse::<f64>().expect("a number") / 1024.0
}

fn speed(client: &Client, server: &Serving) {
    const LAST: u64 = 12_600_000;
    let sandbox = create(client, "speed");
    for round in 1..=3 {
        let started = Instant::now();
        let job = sandbox
            .spawn(["seq", "1", &LAST.to_string()])
            .expect("spawned");
        let mut lines = BufReader::with_capacity(64 * 1024, job.stdout());
        let (mut number, mut bytes, mut line) = (0, 0, String::new());
        while lines.read_line(&mut line).expect("read") > 0 {
            number += 1;
            bytes += line.len();
            assert_eq!(
                line.trim_end().parse(),
                Ok(number),
                "lost, doubled or changed"
            );
            line.clear();
        }
        let rate = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
        assert_eq!(number, LAST);
        assert!(job.wait().expect("ended").success());
        println!(
            "{:.1} MB of a job followed live, every byte compared, run {round}: {rate:.1} MB/s (at least 20): {}; peak memory {:.1} MiB here, {:.1} MiB in the server",
            bytes as f64 / 1e6,
            verdict(rate >= 20.0),
            peak(std::process::id()),
            peak(server.child.id()),
        );
        let _ = sandbox.exec(["rm", "-rf", ".noxrunner"]);
    }
    sandbox.delete().expect("deleted");
}

fn latency(client: &Client) {
    let sandbox = create(client, "latency");
    let line = "for n in $(seq 30); do date +%s%N; sleep 1; done";
    let job = sandbox.spawn(Command::shell(line)).expect("spawned");
    let mut late = Vec::new();
    for line in BufReader::new(job.stdout()).lines() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a date");
        let printed = line.expect("read").parse().expect("nanoseconds");
        let took = now.saturating_sub(Duration::from_nanos(printed));
        late.push(took.as_secs_f64() * 1000.0);
    }
    let most = late.iter().copied().fold(0.0, f64::max);
    println!(
        "a line a second, {} lines, from the job's clock to the follower's read: median {:.0} ms, longest {most:.0} ms (at most 300): {}",
        late.len(),
        median(late.clone()),
        verdict(most <= 300.0),
    );
    sandbox.delete().expect("deleted");
}

/// The first minute, in which polling is most frequent.
fn idle(client: &Client) {
    let made = create(client, "idle-of-a-known-ttl");
    create(client, "idle-of-an-unknown-ttl");
    let found = client.sandbox("idle-of-an-unknown-ttl").expect("a handle");
    std::thread::scope(|scope| {
        for sandbox in [&made, &found] {
            scope.spawn(|| {
                let job = sandbox.spawn(["sleep", "1000"]).expect("spawned");
                let before = CALLS.to(sandbox.id());
                let waited = job.wait_timeout(Duration::from_secs(60)).expect("waited");
                let calls = CALLS.to(sandbox.id()) - before;
                assert!(waited.is_none());
                println!(
                    "calls of an {} follower in its first minute: {calls} (at most 40): {}",
                    sandbox.id(),
                    verdict(calls <= 40),
                );
                // A waiting reader polls at the same rate.
                let mut out = job.stdout();
                drop(sandbox.delete());
                assert!(out.read(&mut [0]).is_err());
            });
        }
    });
}
