//! Local sandboxes compared with plain processes: `cargo bench --bench local`

mod common;

use std::fs;
use std::path::Path;
use std::process;
use std::time::Duration;

use common::{median, micros, ratio, time, verdict};
use noxrunner::{Client, Sandbox, SandboxSpec};

const PAIRS: usize = 1000;
const THREADS: usize = 64;

fn main() {
    let client = Client::local().expect("sandboxes on this machine");
    exec_and_create(&client, "");
    let resident = vec![1_u8; 1 << 30];
    exec_and_create(&client, ", 1 GiB resident");
    drop(resident);
    throughput(&client);
    memory(&client);
}

fn create(client: &Client, id: &str) -> Sandbox {
    client.create(id, SandboxSpec::new()).expect("created")
}

/// An absolute path, because searching PATH would dominate the time of a plain process.
const TRUE: &str = "/usr/bin/true";

fn plain() {
    // Cargo's variables would make the loader search more directories.
    let out = process::Command::new(TRUE).env_clear().output();
    let out = out.expect("started");
    assert!(out.status.success());
}

fn in_sandbox(sandbox: &Sandbox) {
    assert!(sandbox.exec([TRUE]).expect("ran").success());
}

/// The duration of each run in seconds, sorted.
fn alternating(count: usize, works: [&dyn Fn(); 2]) -> [Vec<f64>; 2] {
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..count {
        for (work, seconds) in works.iter().zip(&mut seconds) {
            seconds.push(time(work));
        }
    }
    for seconds in &mut seconds {
        seconds.sort_by(f64::total_cmp);
    }
    seconds
}

fn report(what: &str, [of, over]: &[Vec<f64>; 2], most: f64) {
    let at = |seconds: &[f64], percent: usize| seconds[seconds.len() * percent / 100];
    let ratio_at = |percent| at(of, percent) / at(over, percent);
    println!(
        "{what}: p10 {:.3}, median {:.3} (p10 at most {most}): {}; medians {:?} and {:?}",
        ratio_at(10),
        ratio_at(50),
        verdict(ratio_at(10) <= most),
        micros(at(of, 50)),
        micros(at(over, 50)),
    );
}

fn exec_and_create(client: &Client, host: &str) {
    let sandbox = create(client, "exec");
    let exec = alternating(PAIRS, [&|| in_sandbox(&sandbox), &plain]);
    report(&format!("exec of true over a plain one{host}"), &exec, 1.15);
    let life = || {
        let deleted = create(client, "life").delete();
        assert!(deleted.expect("deleted"));
    };
    let life = alternating(PAIRS / 2, [&life, &plain]);
    report(
        &format!("create and delete over a plain true{host}"),
        &life,
        4.4,
    );
    sandbox.delete().expect("deleted");
}

/// Calls per second with this many threads.
fn all_at_once(call: impl Fn(usize) + Sync) -> f64 {
    const EACH: usize = 20;
    let seconds = time(|| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let call = &call;
                scope.spawn(move || (0..EACH).for_each(|_| call(thread)));
            }
        });
    });
    (THREADS * EACH) as f64 / seconds
}

fn throughput(client: &Client) {
    const ROUNDS: usize = 15;
    let made = (0..THREADS).map(|thread| create(client, &format!("thread-{thread}")));
    let sandboxes: Vec<Sandbox> = made.collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(all_at_once(|thread| in_sandbox(&sandboxes[thread])));
        theirs.push(all_at_once(|_| plain()));
    }
    let share = ratio(&ours, &theirs);
    println!(
        "{THREADS} threads, a sandbox each, over plain ones: {share:.3} (at least 0.9): {}; {:.0}/s and {:.0}/s",
        verdict(share >= 0.9),
        median(ours),
        median(theirs),
    );
    for sandbox in sandboxes {
        sandbox.delete().expect("deleted");
    }
}

/// The number in a line such as `MemAvailable:  1234 kB`.
fn kilobytes(file: &Path, name: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    number.unwrap_or(f64::NAN)
}

fn holders() -> Vec<std::path::PathBuf> {
    let processes = fs::read_dir("/proc").expect("listed").flatten();
    let processes = processes.map(|entry| entry.path());
    let is_holder = |process: &std::path::PathBuf| {
        fs::read(process.join("cmdline")).is_ok_and(|line| line.starts_with(b"noxrunner-sandbox"))
    };
    processes.filter(is_holder).collect()
}

fn memory(client: &Client) {
    const COUNT: usize = 200;
    let machine = Path::new("/proc/meminfo");
    let lines = [
        "MemAvailable:",
        "Slab:",
        "PageTables:",
        "KernelStack:",
        "Percpu:",
        "Shmem:",
    ];
    let look = || lines.map(|line| kilobytes(machine, line));
    // By then, the kernel has filled its caches.
    for id in 0..COUNT {
        create(client, &format!("warm-{id}"))
            .delete()
            .expect("deleted");
    }
    std::thread::sleep(Duration::from_secs(2));
    let before = look();
    let made = (0..COUNT).map(|n| create(client, &format!("idle-{n}")));
    let sandboxes: Vec<Sandbox> = made.collect();
    std::thread::sleep(Duration::from_secs(2));
    let after = look();
    let per_sandbox = |n: usize| (after[n] - before[n]) / COUNT as f64;
    let taken = -per_sandbox(0) / 1024.0;
    println!(
        "memory of an idle sandbox: {taken:.2} MiB less is available (at most 3): {}",
        verdict(taken <= 3.0)
    );
    for (n, line) in lines.iter().enumerate().skip(1) {
        println!("  {line} {:.0} KiB", per_sandbox(n));
    }
    let holders = holders();
    for line in ["Rss:", "Pss:", "Private_Dirty:"] {
        let of_each = holders
            .iter()
            .map(|p| kilobytes(&p.join("smaps_rollup"), line));
        println!("  holder, {line} {:.0} KiB", median(of_each.collect()));
    }
    for sandbox in sandboxes {
        sandbox.delete().expect("deleted");
    }
}
