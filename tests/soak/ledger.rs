//! The record of a soak of one backend: calls by outcome, other events, and broken promises.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use noxrunner::Result;

/// Timeouts of the clients.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const WAIT_FOR: Duration = Duration::from_secs(5);
/// Timeout of the commands.
pub(crate) const EXEC_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that an exec may take in addition to its command.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// The delay after its deadline with which a call may end on a busy machine.
const SLACK: Duration = Duration::from_secs(30);

/// Most broken promises that are printed.
const MAX_SHOWN: usize = 50;

/// Outcomes that explain themselves.
const USUAL: [&str; 6] = [
    "ok",
    "gone",
    "killed",
    "Connect",
    "OutcomeUnknown",
    "Timeout",
];

/// Most texts that are kept of the errors of a call with the same outcome.
const MAX_TEXTS: usize = 3;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Create,
    Touch,
    Exec,
    ExecLive,
    /// `noxrc exec` in a process of its own.
    ExecProcess,
    Write,
    Read,
    UploadDir,
    Spawn,
    WaitForJob,
    Lease,
    CloseLease,
    Delete,
}

impl Call {
    /// Returns the time by which a call must have ended, as documented under "Deadlines" in the crate's docs, and
    /// in the docs of each call for those that consist of several.
    fn deadline(self) -> Duration {
        let exec = EXEC_TIMEOUT + EXEC_GRACE + WAIT_FOR;
        let short = TIMEOUT + WAIT_FOR;
        let transfer = TRANSFER_TIMEOUT + WAIT_FOR;
        match self {
            Call::Create | Call::Lease => CREATE_TIMEOUT + WAIT_FOR,
            Call::Touch | Call::Delete => short,
            Call::Exec | Call::ExecLive | Call::ExecProcess => exec,
            // After a 404 an exec finds out whether the sandbox or the call is missing.
            Call::Write | Call::UploadDir => transfer + exec,
            // A server that cannot archive single files is asked for a copy, with two execs.
            Call::Read => 2 * transfer + 2 * exec,
            Call::Spawn => transfer + 3 * exec,
            // 10 s, 5 s for a server that does not respond, and a touch.
            Call::WaitForJob => JOB_WAIT + Duration::from_secs(5) + short,
            // A renewal may be in progress.
            Call::CloseLease => 2 * short,
        }
    }
}

/// The timeout of waiting for a job.
pub(crate) const JOB_WAIT: Duration = Duration::from_secs(10);

pub(crate) struct Ledger {
    name: String,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<Call, BTreeMap<String, u64>>,
    counts: BTreeMap<String, u64>,
    longest: BTreeMap<Call, Duration>,
    /// Texts of unusual errors, by call and outcome.
    texts: BTreeMap<(Call, String), Vec<String>>,
    broken: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(name: &str, seed: u64) -> Ledger {
        Ledger {
            name: name.to_owned(),
            seed,
            state: Mutex::default(),
        }
    }

    /// Makes a call, counts its outcome and checks its deadline.
    pub(crate) fn call<T>(
        &self,
        call: Call,
        id: &str,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = run();
        let (outcome, error) = match &result {
            Ok(_) => ("ok".to_owned(), String::new()),
            Err(e) if e.is_sandbox_gone() => ("gone".to_owned(), e.to_string()),
            Err(e) => (e.kind().to_string(), format!("{e:#}")),
        };
        self.ended(call, id, started.elapsed(), outcome, &error);
        result
    }

    /// Counts the outcome of a call, and checks its deadline.
    pub(crate) fn ended(&self, call: Call, id: &str, took: Duration, outcome: String, error: &str) {
        {
            let mut state = self.state.lock().unwrap();
            if !USUAL.contains(&&*outcome) && !error.is_empty() {
                let texts = state.texts.entry((call, outcome.clone())).or_default();
                if texts.len() < MAX_TEXTS {
                    texts.push(format!("{id}: {error}"));
                }
            }
            let calls = state.calls.entry(call).or_default();
            *calls.entry(outcome).or_default() += 1;
            let longest = state.longest.entry(call).or_default();
            *longest = took.max(*longest);
        }
        if took > call.deadline() + SLACK {
            self.broken(id, &format!("{call:?} took {took:?}: {error}"));
        }
    }

    pub(crate) fn count(&self, what: &str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: &str, number: u64) {
        let mut state = self.state.lock().unwrap();
        *state.counts.entry(what.to_owned()).or_default() += number;
    }

    /// Records a promise that was not kept.
    pub(crate) fn broken(&self, id: &str, text: &str) {
        let line = format!("{} (seed {}) {id}: {text}", self.name, self.seed);
        let mut state = self.state.lock().unwrap();
        state.broken.push(line.clone());
        if state.broken.len() <= MAX_SHOWN {
            println!("BROKEN {line}");
        }
    }

    pub(crate) fn all_broken(&self) -> Vec<String> {
        self.state.lock().unwrap().broken.clone()
    }

    /// Prints all counts.
    pub(crate) fn print(&self, seconds: u64) {
        let state = self.state.lock().unwrap();
        println!("\n== {}: {seconds} s, seed {}", self.name, self.seed);
        for (call, outcomes) in &state.calls {
            let outcomes = outcomes
                .iter()
                .map(|(name, count)| format!("{name} {count}"));
            let longest = state.longest.get(call).copied().unwrap_or_default();
            println!(
                "{:<12} {}; longest {:.1} s of {} s",
                format!("{call:?}"),
                outcomes.collect::<Vec<_>>().join(", "),
                longest.as_secs_f64(),
                call.deadline().as_secs()
            );
        }
        for (what, number) in &state.counts {
            println!("{what}: {number}");
        }
        for ((call, outcome), texts) in &state.texts {
            for text in texts {
                println!("{call:?} {outcome}: {text}");
            }
        }
        println!("broken promises: {}", state.broken.len());
    }
}
