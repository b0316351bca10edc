//! Asks any v1 server whether it keeps the protocol: seventy named checks, each with the sentence
//! of the protocol that it is about and what was seen.
//!
//! ```
//! use noxrunner::HttpBackend;
//! use noxrunner::conformance::{Conformance, Level};
//!
//! # #[cfg(feature = "server")] {
//! # let backend = noxrunner::LocalBackend::builder().build()?;
//! # let server = noxrunner::server::Server::builder(backend).tcp("127.0.0.1:0").no_auth().bind()?;
//! # let (url, stopper) = (format!("http://{}", server.local_addr().unwrap()), server.stopper());
//! # let running = std::thread::spawn(move || server.run());
//! let backend = HttpBackend::new(url)?;
//! let report = Conformance::new(backend).only(["health-ok", "exec-streams"])?.run(|finding| {
//!     println!("{:?} {}: {}", finding.outcome(), finding.name(), finding.seen());
//! })?;
//! assert!(report.conforms());
//! assert_eq!(report.findings()[1].level(), Level::Must);
//! # stopper.stop();
//! # running.join().unwrap()?;
//! # }
//! # Ok::<_, noxrunner::Error>(())
//! ```
//!
//! - `table`: the checks, each with its level, its sentence and its code.
//! - `sandboxes`, `exec`, `files`: that code, by resource.
//! - `probe`: how it asks.

mod exec;
mod files;
mod probe;
mod sandboxes;
mod table;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::probe::{Miss, Probe, Run, Verdict};
use self::table::CHECKS;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::HttpBackend;

/// How much a rule binds a backend, in the words of RFC 2119.
///
/// ```
/// use noxrunner::conformance::Level;
///
/// assert_eq!(Level::Must.to_string(), "MUST");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// A backend that does not is no v1 backend.
    Must,
    /// Clients expect it, and there are reasons to do without.
    Should,
    /// A thing that some backends can do.
    May,
}

/// What came of a check.
///
/// ```
/// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
/// # use noxrunner::HttpBackend;
/// # use noxrunner::conformance::{Conformance, Level, Outcome};
/// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
/// let report = checks.run(|_| {})?;
/// assert_eq!(report.findings()[0].outcome(), Outcome::Passed);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The backend keeps the rule.
    Passed,
    /// It does not.
    Failed,
    /// It could not be asked: the text says why.
    Skipped,
}

/// One check and what came of it.
///
/// ```
/// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
/// # use noxrunner::HttpBackend;
/// # use noxrunner::conformance::{Conformance, Level, Outcome};
/// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
/// checks.run(|finding| assert_eq!(finding.name(), "health-ok"))?;
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Finding {
    check: &'static Check,
    outcome: Outcome,
    seen: String,
    took: Duration,
}

/// All that was found.
///
/// ```
/// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
/// # use noxrunner::HttpBackend;
/// # use noxrunner::conformance::{Conformance, Level, Outcome};
/// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
/// let report = checks.run(|_| {})?;
/// assert!(report.conforms());
/// assert_eq!(report.count(Level::Must, Outcome::Passed), 1);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Report {
    findings: Vec<Finding>,
    interrupted: bool,
    left_behind: Vec<String>,
}

/// One row of the table.
struct Check {
    name: &'static str,
    level: Level,
    /// The sentence of the protocol.
    rule: &'static str,
    /// A minimal backend has not all calls.
    needs: &'static [Call],
    /// Waits for time to pass, in sandboxes of its own: runs beside the others.
    waits: bool,
    run: fn(&Probe) -> Verdict,
}

/// The calls that a minimal backend does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Touch,
    Upload,
    Download,
}

/// A run of the checks, to be set up. It makes some sandboxes, whose ids begin with `conformance-`, and
/// deletes them in the end, also after an interruption.
///
/// ```
/// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
/// # use noxrunner::HttpBackend;
/// # use noxrunner::conformance::{Conformance, Level, Outcome};
/// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
/// let report = checks.run(|finding| println!("{}: {:?}", finding.rule(), finding.outcome()))?;
/// assert!(report.conforms());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Conformance {
    backend: Arc<HttpBackend>,
    cancel: Cancel,
    only: Option<Vec<String>>,
}

impl Conformance {
    /// All checks, on this backend.
    ///
    /// ```
    /// use noxrunner::HttpBackend;
    /// use noxrunner::conformance::Conformance;
    ///
    /// let checks = Conformance::new(HttpBackend::new("http://127.0.0.1:1")?);
    /// assert!(checks.run(|_| {}).is_err(), "nobody is there");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn new(backend: HttpBackend) -> Conformance {
        Conformance {
            backend: Arc::new(backend),
            cancel: Cancel::new(),
            only: None,
        }
    }

    /// Lets another thread, or a signal, end the run early: what has not run yet is skipped, and the
    /// sandboxes are deleted.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// use noxrunner::Cancel;
    ///
    /// let cancel = Cancel::new();
    /// let checks = checks.cancel_on(&cancel).only(["health-ok", "exec-streams"])?;
    /// let report = checks.run(|_| cancel.cancel())?;
    /// assert_eq!(report.findings()[1].seen(), "interrupted");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn cancel_on(mut self, cancel: &Cancel) -> Conformance {
        self.cancel = cancel.clone();
        self
    }

    /// These checks alone, by name.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a name that no check has.
    ///
    /// # Example
    ///
    /// ```
    /// use noxrunner::HttpBackend;
    /// use noxrunner::conformance::Conformance;
    ///
    /// let backend = HttpBackend::new("http://127.0.0.1:8080")?;
    /// assert!(Conformance::new(backend).only(["no-such-check"]).is_err());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn only<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Conformance> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        for name in &names {
            if !CHECKS.iter().any(|check| check.name == name) {
                let text = format!("there is no check {:?}", one_line(name));
                return Err(Error::invalid(text));
            }
        }
        self.only = Some(names);
        Ok(self)
    }

    /// Runs them, and gives each finding to `each` as soon as it is there, in the order of the table.
    ///
    /// # Errors
    ///
    /// [`Connect`](ErrorKind::Connect) and the like where nothing answers at all, and
    /// [`Unauthorized`](ErrorKind::Unauthorized): these say nothing of the protocol.
    ///
    /// # Panics
    ///
    /// Where `each` does; the sandboxes are deleted all the same.
    ///
    /// # Example
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let mut passed = 0;
    /// checks.run(|finding| passed += usize::from(finding.outcome() == Outcome::Passed))?;
    /// assert_eq!(passed, 1);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn run(self, mut each: impl FnMut(&Finding)) -> Result<Report> {
        let run = Run::new(&self.backend, &self.cancel);
        run.reach()?;
        let chosen: Vec<&'static Check> = CHECKS
            .iter()
            .filter(|check| {
                let only = self.only.as_ref();
                only.is_none_or(|names| names.iter().any(|name| name == check.name))
            })
            .collect();
        let mut findings = Vec::with_capacity(chosen.len());
        std::thread::scope(|scope| {
            let mut waiting: Vec<_> = chosen
                .iter()
                .filter(|check| check.waits)
                .map(|check| (check.name, scope.spawn(|| ask(&run, check))))
                .collect();
            for check in &chosen {
                let at = waiting.iter().position(|(name, _)| *name == check.name);
                let finding = match at.map(|at| waiting.remove(at).1.join()) {
                    None => ask(&run, check),
                    Some(Ok(finding)) => finding,
                    Some(Err(panic)) => std::panic::resume_unwind(panic),
                };
                each(&finding);
                findings.push(finding);
            }
        });
        Ok(Report {
            findings,
            interrupted: run.is_cancelled(),
            left_behind: run.clean_up(),
        })
    }
}

fn ask(run: &Run, check: &'static Check) -> Finding {
    let started = Instant::now();
    let probe = Probe::new(run);
    let verdict = match run.is_cancelled() {
        true => Err(Miss::Skipped(String::new())),
        false => probe.need(check.needs).and_then(|()| (check.run)(&probe)),
    };
    let (outcome, seen) = match verdict {
        _ if run.is_cancelled() => (Outcome::Skipped, "interrupted".to_owned()),
        Ok(seen) => (Outcome::Passed, seen),
        Err(Miss::Failed(seen)) => (Outcome::Failed, seen),
        Err(Miss::Skipped(why)) => (Outcome::Skipped, why),
    };
    Finding {
        check,
        outcome,
        seen: one_line(&seen),
        took: started.elapsed(),
    }
}

impl Finding {
    /// The check's name, like `exec-streams`.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.findings()[0].name(), "health-ok");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.check.name
    }

    /// How much its rule binds.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.findings()[0].level(), Level::Must);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn level(&self) -> Level {
        self.check.level
    }

    /// The sentence of the protocol, in our words.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert!(report.findings()[0].rule().starts_with("GET /healthz answers 200"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn rule(&self) -> &'static str {
        self.check.rule
    }

    /// What came of it.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.findings()[0].outcome(), Outcome::Passed);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What the backend did, or why it could not be asked, in one line.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.findings()[0].seen(), r#"answered 200 "OK""#);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// How long it took.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert!(report.findings()[0].took().as_secs() < 60);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }
}

impl Report {
    /// What was found, in the order of the table.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.findings().len(), 1);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether no MUST has failed, and none was left out by an interruption.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert!(report.conforms());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn conforms(&self) -> bool {
        self.count(Level::Must, Outcome::Failed) == 0 && !self.interrupted
    }

    /// How many checks of a level came out so.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert_eq!(report.count(Level::Must, Outcome::Failed), 0);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn count(&self, level: Level, outcome: Outcome) -> usize {
        let counted = |finding: &&Finding| (finding.level(), finding.outcome) == (level, outcome);
        self.findings.iter().filter(counted).count()
    }

    /// What the backend can do, each with whether that was seen; what was not asked is left out.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert!(report.abilities().is_empty(), "none of them was asked for");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn abilities(&self) -> Vec<(&'static str, bool)> {
        let of = |(ability, name): &(&'static str, &str)| {
            let mut findings = self.findings.iter();
            let finding = findings.find(|finding| finding.name() == *name)?;
            Some((*ability, finding.outcome == Outcome::Passed))
        };
        match self.interrupted {
            true => Vec::new(),
            false => table::ABILITIES.iter().filter_map(of).collect(),
        }
    }

    /// The sandboxes that could not be deleted, by id; they go when their TTL is over.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// # use noxrunner::conformance::{Conformance, Level, Outcome};
    /// # let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
    /// let report = checks.run(|_| {})?;
    /// assert!(report.left_behind().is_empty());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn left_behind(&self) -> &[String] {
        &self.left_behind
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Must => "MUST",
            Level::Should => "SHOULD",
            Level::May => "MAY",
        })
    }
}

/// What says nothing of the protocol, but that it can't be asked.
fn is_no_answer(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::OutcomeUnknown
    )
}
