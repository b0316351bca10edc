//! Live output through the server: `cargo bench --bench live --features local,server`

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{median, noise, verdict};
use noxrunner::server::Server;
use noxrunner::{Client, Command, LocalBackend, Sandbox, SandboxSpec};

/// Size of the file that the command writes again and again. Lost and doubled output shows, because
/// no buffer is as long.
const PIECE: usize = 1_000_003;
const PIECES: usize = (1 << 30) / PIECE + 1;

fn main() {
    match std::env::var("NX_BENCH_ROLE").as_deref() {
        Ok("server") => serve(),
        Ok(url) => throughput(&sandbox(url)),
        Err(_) => measure(),
    }
}

fn serve() {
    let backend = LocalBackend::builder().build().expect("local sandboxes");
    let server = Server::builder(backend).tcp("127.0.0.1:0").no_auth();
    let server = server.bind().expect("bound");
    println!("http://{}", server.local_addr().expect("an address"));
    server.run().expect("served");
}

fn sandbox(url: &str) -> Sandbox {
    let client = Client::new(url).expect("a client");
    client.create("bench", SandboxSpec::new()).expect("created")
}

/// A process of this program, and the first line that it writes.
fn start(role: &str) -> (Child, String) {
    let this = std::env::current_exe().expect("this program has a path");
    let mut child = Process::new(this)
        .env("NX_BENCH_ROLE", role)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    (child, line.trim().to_owned())
}

/// Peak memory of a process, in MiB.
fn peak(pid: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.expect("a peak").trim().trim_end_matches(" kB");
    kib.parse::<f64>().expect("a number") / 1024.0
}

fn measure() {
    let (mut server, url) = start("server");
    let sandbox = sandbox(&url);
    latency(&sandbox);
    sandbox.write("f", noise(PIECE)).expect("written");
    let (mut client, line) = start(&url);
    client.wait().expect("ended");
    println!("{line}");
    let server_peak = peak(&server.id().to_string());
    println!(
        "peak memory of the server: {server_peak:.1} MiB (at most 16): {}",
        verdict(server_peak <= 16.0)
    );
    server.kill().expect("killed");
    server.wait().expect("ended");
}

fn latency(sandbox: &Sandbox) {
    const RUNS: usize = 300;
    let mut delays = Vec::new();
    for _ in 0..RUNS {
        // The time at which it writes.
        let mut written = String::new();
        let mut arrived = None;
        let out = sandbox.exec_live(["date", "+%s.%N"], |chunk| {
            arrived.get_or_insert_with(SystemTime::now);
            written += &chunk.text();
            Ok(())
        });
        assert!(out.expect("ran").success());
        let written = Duration::from_secs_f64(written.trim().parse().expect("a time"));
        let arrived = arrived.expect("output").duration_since(UNIX_EPOCH);
        delays.push(arrived.expect("after 1970").as_secs_f64() - written.as_secs_f64());
    }
    let millis = median(delays) * 1000.0;
    println!(
        "first byte after the command writes it: median {millis:.2} ms (at most 5): {}",
        verdict(millis <= 5.0)
    );
}

fn throughput(sandbox: &Sandbox) {
    let expected = noise(PIECE);
    let mut at = 0;
    let command = Command::new("cat")
        .args(vec!["f"; PIECES])
        .timeout(Duration::from_secs(600));
    let started = Instant::now();
    let out = sandbox.exec_live(command, |chunk| {
        let mut rest = chunk.bytes();
        while !rest.is_empty() {
            let piece = &expected[at % PIECE..];
            let (same, more) = rest.split_at(rest.len().min(piece.len()));
            assert!(
                same == &piece[..same.len()],
                "lost or doubled near byte {at}"
            );
            at += same.len();
            rest = more;
        }
        Ok(())
    });
    assert!(out.expect("ran").success());
    assert_eq!(at, PIECE * PIECES);
    let rate = at as f64 / 1e6 / started.elapsed().as_secs_f64();
    let client_peak = peak("self");
    println!(
        "1 GiB of live output: {rate:.0} MB/s (at least 200): {}; peak memory of the client: {client_peak:.1} MiB (at most 16): {}",
        verdict(rate >= 200.0),
        verdict(client_peak <= 16.0),
    );
}
