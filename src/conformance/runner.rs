//! Running the checks.

use std::sync::Arc;
use std::time::Instant;

use super::probe::{Probe, RunState};
use super::report::{Finding, Outcome, Report};
use super::table::{CHECKS, Check};
use super::verdict::NotPassed;
use crate::cancel::Cancel;
use crate::error::{Error, Result, one_line};
use crate::http::HttpBackend;

/// A run of the checks against a server.
///
/// It creates some sandboxes, whose ids begin with `conformance-`, and deletes them at the end, also
/// after an interruption.
#[derive(Debug)]
#[must_use]
pub struct Conformance {
    backend: Arc<HttpBackend>,
    cancel: Cancel,
    only: Option<Vec<String>>,
}

impl Conformance {
    /// Prepares a run of all checks.
    pub fn new(backend: HttpBackend) -> Conformance {
        Conformance {
            backend: Arc::new(backend),
            cancel: Cancel::new(),
            only: None,
        }
    }

    /// Lets another thread interrupt the run. The remaining checks are skipped, and the sandboxes are
    /// deleted.
    ///
    /// ```
    /// # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
    /// # use noxrunner::HttpBackend;
    /// use noxrunner::Cancel;
    /// use noxrunner::conformance::Conformance;
    ///
    /// let cancel = Cancel::new();
    /// let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok", "exec-streams"])?;
    /// let report = checks.cancel_on(&cancel).run(|_| cancel.cancel())?;
    /// assert_eq!(report.findings()[1].seen(), "interrupted");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn cancel_on(mut self, cancel: &Cancel) -> Conformance {
        self.cancel = cancel.clone();
        self
    }

    /// Runs only the checks with these names.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for an unknown name.
    pub fn only<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Conformance> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        for name in &names {
            if !CHECKS.iter().any(|check| check.name == name) {
                return Err(Error::invalid(format!(
                    "no such check: {:?}",
                    one_line(name)
                )));
            }
        }
        self.only = Some(names);
        Ok(self)
    }

    /// Runs the checks. `on_finding` gets each finding as soon as possible, in the order of the checks.
    ///
    /// # Errors
    ///
    /// [`Connect`](crate::ErrorKind::Connect) or a similar kind if the server does not respond at all,
    /// and [`Unauthorized`](crate::ErrorKind::Unauthorized) if it refuses the token. Neither says
    /// anything about the protocol.
    ///
    /// # Panics
    ///
    /// If `on_finding` panics. The sandboxes are deleted even then.
    pub fn run(self, mut on_finding: impl FnMut(&Finding)) -> Result<Report> {
        let run = RunState::new(&self.backend, &self.cancel);
        run.check_access()?;
        let checks = self.checks();
        let mut findings = Vec::with_capacity(checks.len());
        std::thread::scope(|scope| {
            // Checks that mostly wait run beside the others.
            let mut waiting: Vec<_> = checks
                .iter()
                .filter(|check| check.waits)
                .map(|check| (check.name, scope.spawn(|| run_check(&run, check))))
                .collect();
            for check in &checks {
                let at = waiting.iter().position(|(name, _)| *name == check.name);
                let finding = match at.map(|at| waiting.remove(at).1.join()) {
                    None => run_check(&run, check),
                    Some(Ok(finding)) => finding,
                    Some(Err(panic)) => std::panic::resume_unwind(panic),
                };
                on_finding(&finding);
                findings.push(finding);
            }
        });
        Ok(Report {
            findings,
            interrupted: run.is_cancelled(),
            left_behind: run.clean_up(),
        })
    }

    fn checks(&self) -> Vec<&'static Check> {
        let is_chosen = |check: &&Check| {
            let only = self.only.as_ref();
            only.is_none_or(|names| names.iter().any(|name| name == check.name))
        };
        CHECKS.iter().filter(is_chosen).collect()
    }
}

fn run_check(run: &RunState<'_>, check: &'static Check) -> Finding {
    let started = Instant::now();
    let probe = Probe::new(run);
    let verdict = if run.is_cancelled() {
        Err(NotPassed::Skipped(String::new()))
    } else {
        probe
            .require(check.needs)
            .and_then(|()| (check.run)(&probe))
    };
    let (outcome, seen) = match verdict {
        _ if run.is_cancelled() => (Outcome::Skipped, "interrupted".to_owned()),
        Ok(seen) => (Outcome::Passed, seen),
        Err(NotPassed::Failed(seen)) => (Outcome::Failed, seen),
        Err(NotPassed::Skipped(reason)) => (Outcome::Skipped, reason),
    };
    Finding {
        check,
        outcome,
        seen: one_line(&seen),
        took: started.elapsed(),
    }
}
