//! The server and the command: `cargo bench --bench serve --features cli`
#![allow(clippy::excessive_nesting, reason = "closures of threads add levels")]

mod common;

use std::convert::Infallible;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use common::{median, micros, ratio, time, verdict};
use hyper::service::service_fn;
use noxrunner::server::Server;
use noxrunner::{
    Backend, Client, Command, LocalBackend, Output, SandboxInfo, SandboxSpec, SessionId, Upload,
};

const GIB: u64 = 1 << 30;
const NOXRC: &str = env!("CARGO_BIN_EXE_noxrc");

fn main() {
    if std::env::var_os("NX_BENCH_SERVER").is_some() {
        return serve();
    }
    exec();
    health();
    transfer();
    many_calls();
    command();
}

/// A backend that only transfers bytes.
struct Null;

impl Backend for Null {
    fn health(&self) -> noxrunner::Result<()> {
        Ok(())
    }
    fn create(&self, _: &SessionId, _: &SandboxSpec) -> noxrunner::Result<SandboxInfo> {
        Ok(SandboxInfo::new("null", "2026-01-01T00:00:00Z"))
    }
    fn touch(&self, _: &SessionId) -> noxrunner::Result<()> {
        Ok(())
    }
    fn exec(&self, _: &SessionId, _: &Command) -> noxrunner::Result<Output> {
        Ok(Output::new(0, "", "", Duration::ZERO))
    }
    fn upload(&self, _: &SessionId, _: &str, mut archive: Upload<'_>) -> noxrunner::Result<()> {
        assert_eq!(io::copy(&mut archive, &mut io::sink()).expect("read"), GIB);
        Ok(())
    }
    fn download(&self, _: &SessionId, _: &str) -> noxrunner::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::repeat(7).take(GIB)))
    }
    fn delete(&self, _: &SessionId) -> noxrunner::Result<bool> {
        Ok(true)
    }
}

fn serve() {
    let server = Server::builder(Null).tcp("127.0.0.1:0").no_auth();
    let server = server.bind().expect("bound");
    println!("{}", server.local_addr().expect("an address"));
    server.run().expect("served");
}

/// A server in a separate process.
struct Serving(Child, SocketAddr);

impl Serving {
    fn start() -> Serving {
        let this = std::env::current_exe().expect("this program has a path");
        let mut child = Process::new(this)
            .env("NX_BENCH_SERVER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("an address");
        Serving(child, line.trim().parse().expect("an address"))
    }

    fn status(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.0.id());
        let text = fs::read_to_string(path).expect("it runs");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect(name);
        line.trim().trim_end_matches(" kB").parse().expect(line)
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id()))
            .expect("it runs")
            .count()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn exec() {
    const PAIRS: usize = 1000;
    let backend = LocalBackend::builder()
        .build()
        .expect("sandboxes on this machine");
    let direct = Client::with_backend(backend);
    let server = Server::builder(std::sync::Arc::clone(direct.backend()));
    let server = server.tcp("127.0.0.1:0").bind().expect("bound");
    let url = format!("http://{}", server.local_addr().expect("an address"));
    let client = Client::builder(url).token(server.token().expect("one is made"));
    let client = client.build().expect("a client");
    let stopper = server.stopper();
    let running = std::thread::spawn(move || server.run());
    let near = direct.create("bench", SandboxSpec::new()).expect("created");
    let far = client.sandbox("bench").expect("a handle");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        ours.push(time(|| {
            assert!(far.exec(["/usr/bin/true"]).expect("ran").success())
        }));
        theirs.push(time(|| {
            assert!(near.exec(["/usr/bin/true"]).expect("ran").success())
        }));
    }
    let over = median(ours.clone()) / median(theirs.clone());
    println!(
        "exec of true through the server over the backend itself: median {over:.3} (at most 1.5): {}; {:?} and {:?}",
        verdict(over <= 1.5),
        micros(median(ours)),
        micros(median(theirs)),
    );
    stopper.stop();
    running.join().expect("no panic").expect("stopped");
}

/// A plain hyper server that answers OK.
fn bare() -> SocketAddr {
    let (sender, addr) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("bound");
            sender
                .send(listener.local_addr().expect("an address"))
                .expect("sent");
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                stream.set_nodelay(true).expect("set");
                let answer = service_fn(|_| async {
                    Ok::<_, Infallible>(hyper::Response::new("OK".to_owned()))
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(stream, answer));
            }
        });
    });
    addr.recv().expect("it listens")
}

/// Requests per second over this many connections.
fn rate(addr: SocketAddr, connections: usize) -> f64 {
    const REQUESTS: usize = 20_000;
    let each = REQUESTS / connections;
    let seconds = time(|| {
        std::thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(|| {
                    let mut stream = TcpStream::connect(addr).expect("connected");
                    stream.set_nodelay(true).expect("set");
                    let mut answer = [0; 1024];
                    for _ in 0..each {
                        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
                        stream.write_all(request).expect("sent");
                        let got = stream.read(&mut answer).expect("answered");
                        assert!(answer[..got].ends_with(b"OK"));
                    }
                });
            }
        });
    });
    (each * connections) as f64 / seconds
}

fn health() {
    const ROUNDS: usize = 11;
    let server = Server::builder(Null)
        .tcp("127.0.0.1:0")
        .no_auth()
        .bind()
        .expect("bound");
    let ours = server.local_addr().expect("an address");
    let stopper = server.stopper();
    let running = std::thread::spawn(move || server.run());
    let bare = bare();
    for connections in [1, 64] {
        let (mut of, mut over) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of.push(rate(ours, connections));
            over.push(rate(bare, connections));
        }
        let share = ratio(&of, &over);
        println!(
            "healthz, {connections} connections, over a bare hyper server: {share:.3} (at least 0.8): {}; {:.0}/s and {:.0}/s",
            verdict(share >= 0.8),
            median(of),
            median(over),
        );
    }
    stopper.stop();
    running.join().expect("no panic").expect("stopped");
}

fn transfer() {
    let server = Serving::start();
    let client = Client::new(format!("http://{}", server.1)).expect("a client");
    let sandbox = client.sandbox("bench").expect("a handle");
    let up = time(|| {
        let archive = io::repeat(7).take(GIB);
        sandbox
            .upload_archive(archive, "/workspace")
            .expect("uploaded");
    });
    let down = time(|| {
        let mut archive = sandbox.download_archive("/workspace").expect("an answer");
        assert_eq!(
            io::copy(&mut archive, &mut io::sink()).expect("downloaded"),
            GIB
        );
    });
    let peak = server.status("VmHWM:") as f64 / 1024.0;
    println!(
        "1 GiB up and down: peak memory of the server {peak:.1} MiB (at most 32): {}; {up:.2} s and {down:.2} s",
        verdict(peak <= 32.0)
    );
}

fn many_calls() {
    const CALLS: usize = 100_000;
    const CONNECTIONS: usize = 64;
    let server = Serving::start();
    let url = format!("http://{}", server.1);
    let work = |calls: usize| {
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let client = Client::new(&url).expect("a client");
                    let sandbox = client.sandbox("bench").expect("a handle");
                    for n in 0..calls / CONNECTIONS {
                        match n % 2 {
                            0 => sandbox.touch().expect("touched"),
                            _ => assert!(sandbox.exec(["true"]).expect("ran").success()),
                        }
                    }
                });
            }
        });
    };
    let look = || {
        (
            server.descriptors(),
            server.status("Threads:"),
            server.status("VmRSS:"),
        )
    };
    work(CALLS / 2);
    let before = look();
    let seconds = time(|| work(CALLS));
    let after = look();
    println!(
        "{CALLS} calls over {CONNECTIONS} connections: no failures, {:.0}/s; descriptors, threads, KiB: {before:?} and then {after:?}",
        CALLS as f64 / seconds
    );
}

fn command() {
    const RUNS: usize = 40;
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve-home");
    fs::create_dir_all(&home).expect("made");
    let run = |program: &Path, args: &[&str]| {
        let mut command = Process::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &home);
        let out = command.output().expect("started");
        assert!(out.status.success(), "{out:?}");
    };
    let noxrc = Path::new(NOXRC);
    let (mut help, mut nothing) = (Vec::new(), Vec::new());
    for _ in 0..RUNS * 5 {
        help.push(time(|| run(noxrc, &["--help"])));
        nothing.push(time(|| run(Path::new("/usr/bin/true"), &[])));
    }
    let over = (median(help) - median(nothing)) * 1000.0;
    println!(
        "noxrc --help over an empty program: {over:.2} ms (at most 3): {}",
        verdict(over <= 3.0)
    );

    let Some(python) = python() else { return };
    run(noxrc, &["--local", "create", "bench"]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(time(|| run(noxrc, &["--local", "exec", "bench", "true"])));
        theirs.push(time(|| {
            run(&python, &["--local-test", "exec", "bench", "true"])
        }));
    }
    run(noxrc, &["--local", "delete", "bench"]);
    let faster = ratio(&theirs, &ours);
    println!(
        "noxrc --local exec of true: {faster:.1} times faster than the Python command (at least 20): {}; {:?} and {:?}",
        verdict(faster >= 20.0),
        micros(median(ours)),
        micros(median(theirs)),
    );
}

/// The Python command, if it can be installed.
fn python() -> Option<PathBuf> {
    common::Python::start("http://127.0.0.1:1")?;
    Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("python/bin/noxrc"))
}
