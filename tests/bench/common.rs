//! Shared by the benchmarks: fast loopback servers, interleaved rounds and the Python client.
#![allow(dead_code, reason = "each benchmark uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Answers every request with an empty 200 as fast as it can, and counts connections.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Server {
    /// `download` is the body of a GET, repeated up to the given length.
    pub(crate) fn start(download: Option<(Arc<Vec<u8>>, u64)>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let download = download.clone();
                std::thread::spawn(move || answer(stream, download));
            }
        });
        Server { url, connections }
    }
}

fn answer(mut stream: TcpStream, download: Option<(Arc<Vec<u8>>, u64)>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0_u8; 256 * 1024];
    let mut held = 0;
    loop {
        let end = loop {
            if let Some(at) = find(&buffer[..held], b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buffer[held..]) {
                Ok(0) | Err(_) => return,
                Ok(got) => held += got,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .and_then(|l| l.split('\r').next()?.parse::<usize>().ok());
        let mut left = length.unwrap_or(0).saturating_sub(held - end);
        while left > 0 {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(got) => left = left.saturating_sub(got),
            }
        }
        held = 0;
        let ok = match (&download, head.starts_with("get")) {
            (Some((piece, length)), true) => send(&mut stream, piece, *length),
            _ => stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .is_ok(),
        };
        if !ok {
            return;
        }
    }
}

fn send(stream: &mut TcpStream, piece: &[u8], length: u64) -> bool {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let mut left = length;
    let mut ok = stream.write_all(head.as_bytes()).is_ok();
    while ok && left > 0 {
        let part = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        ok = stream.write_all(part).is_ok();
        left -= part.len() as u64;
    }
    ok
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Runs all tasks once per round, so that a slow moment affects all of them. Returns the seconds of each
/// task, by round.
pub(crate) fn rounds(count: usize, works: &mut [&mut dyn FnMut() -> f64]) -> Vec<Vec<f64>> {
    let mut seconds = vec![Vec::new(); works.len()];
    for round in 0..=count {
        for (work, seconds) in works.iter_mut().zip(&mut seconds) {
            let took = work();
            // The first round warms up.
            if round > 0 {
                seconds.push(took);
            }
        }
    }
    seconds
}

/// The median, over all rounds, of the ratio of two times of the same round.
pub(crate) fn ratio(of: &[f64], over: &[f64]) -> f64 {
    median(of.iter().zip(over).map(|(a, b)| a / b).collect())
}

pub(crate) fn verdict(holds: bool) -> &'static str {
    if holds { "reached" } else { "NOT REACHED" }
}

/// Incompressible bytes.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Bytes as compressible as a log: words from a list, and numbers.
pub(crate) fn text(size: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "sandbox",
        "request",
        "the",
        "of",
        "exec",
        "finished",
        "with",
        "status",
        "warning:",
        "in",
        "file",
        "/workspace/src/main.rs",
        "connection",
        "from",
        "error",
        "and",
    ];
    let noise = noise(size / 4 + 8);
    let mut bytes = Vec::with_capacity(size + 32);
    for byte in noise {
        if byte < 40 {
            bytes.extend_from_slice(format!("{}\n", u32::from(byte) * 7919).as_bytes());
        } else {
            bytes.extend_from_slice(WORDS[usize::from(byte % 16)].as_bytes());
            bytes.push(b' ');
        }
        if bytes.len() >= size {
            break;
        }
    }
    bytes.truncate(size);
    bytes
}

/// The Python client in a separate process, which measures itself.
pub(crate) struct Python {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

const SCRIPT: &str = r#"
import sys, time
from noxrunner import NoxRunnerClient
client, files = None, {}
for line in sys.stdin:
    words = line.split()
    if words[0] == "client":
        client = NoxRunnerClient(words[1], timeout=600)
        took = 0.0
    elif words[0] == "load":
        files = {"data": open(words[1], "rb").read()}
        took = 0.0
    elif words[0] == "touch":
        start = time.perf_counter()
        for _ in range(int(words[1])):
            client.touch("bench")
        took = time.perf_counter() - start
    elif words[0] == "upload":
        start = time.perf_counter()
        client.upload_files("bench", files)
        took = time.perf_counter() - start
    print(took, flush=True)
"#;

/// Returns a Python that has the Python package. Prints the reason if it cannot be installed.
pub(crate) fn python() -> Option<String> {
    let venv = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = venv.join("bin/python");
    let run = |program: &std::path::Path, args: &[&str]| {
        let mut command = Command::new(program);
        let status = command.args(args).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let works = || run(&python, &["-c", "import noxrunner"]);
    let make = || run("python3".as_ref(), &["-m", "venv", &venv.to_string_lossy()]);
    let install = ["-m", "pip", "install", "--quiet", "noxrunner==2.0.0"];
    if works() || (make() && run(&python, &install) && works()) {
        return Some(python.to_string_lossy().into_owned());
    }
    println!("skipped: no python3 that can `pip install noxrunner==2.0.0`");
    None
}

impl Python {
    /// Returns `None` and prints the reason if the Python package cannot be installed.
    pub(crate) fn start(url: &str) -> Option<Python> {
        let python = python()?;
        let mut child = Command::new(python)
            .args(["-u", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (stdin, stdout) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut python = Python {
            child,
            stdin,
            stdout,
        };
        python.ask(&format!("client {url}"));
        Some(python)
    }

    /// The duration in seconds.
    pub(crate) fn ask(&mut self, line: &str) -> f64 {
        writeln!(self.stdin, "{line}").expect("the Python client runs");
        let mut answer = String::new();
        self.stdout
            .read_line(&mut answer)
            .expect("the Python client answers");
        answer.trim().parse().expect("a number of seconds")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn micros(seconds: f64) -> Duration {
    Duration::from_nanos((seconds * 1e9) as u64)
}
