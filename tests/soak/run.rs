//! The soak of one backend.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Client, Retry};

use crate::backend::Backend;
use crate::ledger::{CREATE_TIMEOUT, Ledger, TIMEOUT, TRANSFER_TIMEOUT, WAIT_FOR};
use crate::losses::Losses;
use crate::proxy::FaultProxy;
use crate::random::Random;
use crate::samples::{Samples, Usage, enter_process, leave_process};
use crate::server::ServerProcess;
use crate::support::processes::unique_sleep;
use crate::worker::{SampleDir, Worker};
use crate::{disks, kills, leases, leftovers};

/// Number of workers per proxy.
const WORKERS: usize = 2;

/// The length of a soak, and its seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) length: Duration,
    pub(crate) seed: u64,
}

/// The state that all threads of a soak share.
pub(crate) struct Soak<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) server: ServerProcess,
    pub(crate) ledger: Ledger,
    pub(crate) losses: Losses,
    pub(crate) samples: Samples,
    pub(crate) started: Instant,
    settings: Settings,
    pub(crate) sample_dir: SampleDir,
}

impl<'a> Soak<'a> {
    fn start(backend: &'a Backend, settings: Settings) -> Soak<'a> {
        let server = ServerProcess::start(backend);
        for name in ["client", "sample"] {
            std::fs::create_dir(server.dir().join(name)).unwrap();
        }
        let mut random = Random::new(settings.seed);
        let sample_dir = SampleDir::create(server.dir().join("sample"), &mut random);
        Soak {
            backend,
            server,
            ledger: Ledger::new(backend.name(), settings.seed),
            losses: Losses::default(),
            samples: Samples::default(),
            started: Instant::now(),
            settings,
            sample_dir,
        }
    }

    pub(crate) fn length(&self) -> Duration {
        self.settings.length
    }

    /// Sleeps. Returns false at the end of the soak.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let left = self.length().saturating_sub(self.started.elapsed());
        thread::sleep(time.min(left));
        !left.is_zero()
    }

    /// Returns the argument of a process that marks a sandbox.
    pub(crate) fn marker(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1_000_000);
        unique_sleep(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn is_marker(&self, argument: &str) -> bool {
        let (seconds, of_this_process) = argument.split_once('.').unwrap_or_default();
        seconds.len() == 7 && of_this_process == std::process::id().to_string()
    }

    /// Returns the directory of the clients in processes of their own.
    pub(crate) fn client_home(&self) -> PathBuf {
        self.server.dir().join("client")
    }
}

/// Returns a client that gives up early.
pub(crate) fn client(url: &str) -> Client {
    Client::builder(url)
        .timeout(TIMEOUT)
        .create_timeout(CREATE_TIMEOUT)
        .transfer_timeout(TRANSFER_TIMEOUT)
        .retry(Retry::default().wait_for(WAIT_FOR))
        .build()
        .unwrap()
}

/// Soaks a backend. Prints the counts, and returns the promises that were broken.
pub(crate) fn soak(backend: &Backend, settings: Settings) -> Vec<String> {
    enter_process();
    let mut broken = use_and_break(backend, settings);
    broken.extend(leave_process());
    broken
}

fn use_and_break(backend: &Backend, settings: Settings) -> Vec<String> {
    let soak = Soak::start(backend, settings);
    // The server loads what it needs.
    use_once(&soak);
    let before = Usage::after_calls(soak.server.pid());
    let mut random = Random::new(settings.seed);
    let proxies = [false, true].map(|corrupts| {
        let random = Random::new(random.next());
        FaultProxy::start(&soak.server.socket(), corrupts, random)
    });
    run_threads(&soak, &proxies, &mut random);
    for proxy in proxies {
        for (fault, count) in proxy.stop() {
            soak.ledger.add(&format!("fault: {fault}"), count);
        }
    }
    finish(&soak, before);
    soak.ledger.print(settings.length.as_secs());
    soak.ledger.all_broken()
}

/// Makes calls through the proxies, and breaks what they use, until the end of the soak.
fn run_threads(soak: &Soak<'_>, proxies: &[FaultProxy; 2], random: &mut Random) {
    thread::scope(|scope| {
        let mut seeded = || Random::new(random.next());
        for (at, proxy) in proxies.iter().enumerate() {
            for number in 0..WORKERS {
                let worker = Worker::new(soak, proxy, at * WORKERS + number, seeded());
                scope.spawn(|| worker.work());
            }
        }
        let [faithful, _] = proxies;
        let [for_leases, for_disks, for_kills] = [seeded(), seeded(), seeded()];
        scope.spawn(move || leases::lease_all_along(soak, faithful, for_leases));
        scope.spawn(move || disks::fill_all_along(soak, for_disks));
        scope.spawn(move || kills::kill_all_along(soak, for_kills));
        scope.spawn(move || soak.samples.take_all_along(soak));
    });
}

/// Creates a sandbox, and deletes it. The server also removes what earlier ones have left.
pub(crate) fn use_once(soak: &Soak<'_>) {
    let client = soak.server.client();
    let id = format!("once-{}", std::process::id());
    let sandbox = client.create(&id, soak.backend.spec()).unwrap();
    sandbox.run(["true"]).unwrap();
    assert!(sandbox.delete().unwrap());
}

fn finish(soak: &Soak<'_>, before: Usage) {
    leftovers::check_server(soak, before);
    soak.samples.check_memory(soak);
    let ended = soak.server.stop();
    let log = soak.server.log();
    if log.contains("panicked") || (!ended.success() && soak.backend.is_served_by_command()) {
        soak.ledger.broken("server", &format!("{ended}: {log}"));
    }
    leftovers::check_machine(soak);
}
