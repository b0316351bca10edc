//! A judge: runs each program in a directory against the same tests, in parallel, each in a sandbox with
//! limits. Needs no server:
//!
//!     cargo run --example judge
//!
//! With your own problem, server and timeout of each test in seconds:
//!
//!     cargo run --example judge -- --url http://127.0.0.1:8080 --time-limit 5 path/to/problem
//!
//! A problem is a directory with `submissions/*.{py,js,sh,c,cpp}`, and `tests/NAME.in` beside `tests/NAME.out`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, Error, KilledBy, Language, Result, SandboxSpec};

/// Default timeout of each test, in seconds.
const TIME_LIMIT: u64 = 2;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let client = match args.next_if_eq("--url") {
        Some(_) => Client::new(args.next().ok_or("--url needs a URL")?)?,
        None => Client::local()?,
    };
    let time_limit = match args.next_if_eq("--time-limit") {
        Some(_) => args.next().ok_or("--time-limit needs seconds")?.parse()?,
        None => TIME_LIMIT,
    };
    let timeout = Duration::from_secs(time_limit);
    let demo = || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/judge");
    let problem = args.next().map_or_else(demo, PathBuf::from);

    let tests = read_tests(&problem.join("tests"), timeout)?;
    let submissions = read_submissions(&problem.join("submissions"))?;
    let started = Instant::now();
    let verdicts = judge_all(&client, &submissions, &tests);
    println!(
        "{:<16} {:>6} {:>8} {:>8}  verdict",
        "submission", "passed", "time", "memory"
    );
    for (submission, (results, verdict)) in submissions.iter().zip(&verdicts) {
        let time = results.time.as_secs_f64();
        let mib = results.memory >> 20;
        println!(
            "{:<16} {:>3}/{:<2} {time:>6.2} s {mib:>4} MiB  {verdict}",
            submission.name,
            results.passed,
            tests.len()
        );
    }
    println!(
        "{} submissions, {} tests each, in {:.1} s",
        submissions.len(),
        tests.len(),
        started.elapsed().as_secs_f64()
    );
    let again = |(_, verdict): &&(Results, Verdict)| matches!(verdict, Verdict::BackendFailure(_));
    match verdicts.iter().filter(again).count() {
        0 => Ok(()),
        count => Err(format!("{count} submissions must be judged again").into()),
    }
}

struct Submission {
    name: String,
    language: Language,
    source: Vec<u8>,
}

struct Test {
    input: Vec<u8>,
    output: String,
    timeout: Duration,
}

/// The tests that a submission has passed, and the most that it has used in one test.
#[derive(Default)]
struct Results {
    passed: usize,
    /// CPU time.
    time: Duration,
    /// In bytes.
    memory: u64,
}

enum Verdict {
    Ok,
    WrongAnswer,
    RuntimeError(i32),
    TimeLimit,
    MemoryLimit,
    OutputLimit,
    /// Not the submission's fault: it must be judged again.
    BackendFailure(Error),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ok => write!(f, "ok"),
            Verdict::WrongAnswer => write!(f, "wrong answer"),
            Verdict::RuntimeError(code) => write!(f, "runtime error (exit code {code})"),
            Verdict::TimeLimit => write!(f, "time limit"),
            Verdict::MemoryLimit => write!(f, "memory limit"),
            Verdict::OutputLimit => write!(f, "output limit"),
            Verdict::BackendFailure(error) => write!(f, "backend failure: {error:#}"),
        }
    }
}

/// Judges all submissions with a pool of workers. Returns the verdicts in the order of the submissions.
fn judge_all(
    client: &Client,
    submissions: &[Submission],
    tests: &[Test],
) -> Vec<(Results, Verdict)> {
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get() * 2);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(submission) = submissions.get(at) else {
                return done;
            };
            let mut results = Results::default();
            let verdict = judge(client, submission, tests, &mut results);
            // An error of one submission does not affect the others.
            let verdict = verdict.unwrap_or_else(Verdict::BackendFailure);
            done.push((at, (results, verdict)));
        }
    };
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"));
        done.flatten().collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, verdict)| verdict).collect()
}

fn judge(
    client: &Client,
    submission: &Submission,
    tests: &[Test],
    results: &mut Results,
) -> Result<Verdict> {
    // Deleted when this function returns.
    let sandbox = client.lease_with(SandboxSpec::new().cpu("1").memory("256Mi").storage("64Mi"))?;
    sandbox.wait_until_ready(Duration::from_secs(60), None)?;
    for test in tests {
        let run = Command::code(submission.language.clone(), &*submission.source)
            .stdin(&*test.input)
            .timeout(test.timeout);
        let out = sandbox.exec(run)?;
        if let Some(usage) = out.usage() {
            results.time = results.time.max(usage.cpu_time());
            results.memory = results.memory.max(usage.peak_memory());
        }
        // First, because a program that writes endlessly times out as well.
        if out.truncated() {
            return Ok(Verdict::OutputLimit);
        }
        match out.killed_by() {
            Some(KilledBy::Timeout) => return Ok(Verdict::TimeLimit),
            Some(KilledBy::Memory) => return Ok(Verdict::MemoryLimit),
            _ => {}
        }
        if !out.success() {
            return Ok(Verdict::RuntimeError(out.exit_code()));
        }
        if out.stdout().trim_end() != test.output.trim_end() {
            return Ok(Verdict::WrongAnswer);
        }
        results.passed += 1;
    }
    Ok(Verdict::Ok)
}

fn files(dir: &Path) -> std::result::Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn read_tests(
    dir: &Path,
    timeout: Duration,
) -> std::result::Result<Vec<Test>, Box<dyn std::error::Error>> {
    let mut tests = Vec::new();
    for path in files(dir)? {
        if path.extension().is_some_and(|extension| extension == "in") {
            tests.push(Test {
                input: fs::read(&path)?,
                output: fs::read_to_string(path.with_extension("out"))?,
                timeout,
            });
        }
    }
    Ok(tests)
}

fn read_submissions(
    dir: &Path,
) -> std::result::Result<Vec<Submission>, Box<dyn std::error::Error>> {
    let mut submissions = Vec::new();
    for path in files(dir)? {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let language = match extension {
            Some("py") => Language::PYTHON,
            Some("js") => Language::NODE,
            Some("sh") => Language::SH,
            // The time of the compiler counts. A real judge would compile once.
            Some("c") => {
                let compile = "cc -O2 -o /tmp/main \"$0\" && exec /tmp/main";
                Language::new("main.c", ["sh", "-c", compile, "{file}"])?
            }
            Some("cpp") => {
                let compile = "c++ -O2 -o /tmp/main \"$0\" && exec /tmp/main";
                Language::new("main.cpp", ["sh", "-c", compile, "{file}"])?
            }
            _ => return Err(format!("{}: unknown language", path.display()).into()),
        };
        submissions.push(Submission {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            language,
            source: fs::read(&path)?,
        });
    }
    Ok(submissions)
}
