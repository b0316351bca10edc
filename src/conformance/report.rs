//! Results of checks.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::level::Level;
use super::table::{ABILITIES, Check};

/// The outcome of a check. `Display` shows `passed`, `failed` or `skipped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// The backend satisfies the rule.
    Passed,
    /// The backend violates the rule.
    Failed,
    /// The check could not be made.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        })
    }
}

/// A check and its outcome.
///
/// As JSON it has the fields `name`, `level`, `outcome`, `rule`, `seen` and `millis`.
#[derive(Debug, Clone)]
pub struct Finding {
    pub(super) check: &'static Check,
    pub(super) outcome: Outcome,
    pub(super) seen: String,
    pub(super) took: Duration,
}

impl Finding {
    /// Returns the name of the check, such as `exec-streams`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.check.name
    }

    /// Returns the level of the rule.
    #[must_use]
    pub fn level(&self) -> Level {
        self.check.level
    }

    /// Returns the rule of the protocol.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        self.check.rule
    }

    /// Returns the outcome.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns what the backend did, or why the check was skipped, in one line.
    #[must_use]
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Returns how long the check took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            name: &'a str,
            level: Level,
            outcome: Outcome,
            rule: &'a str,
            seen: &'a str,
            millis: u64,
        }
        Json {
            name: self.name(),
            level: self.level(),
            outcome: self.outcome,
            rule: self.rule(),
            seen: &self.seen,
            millis: u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        }
        .serialize(serializer)
    }
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) interrupted: bool,
    pub(super) left_behind: Vec<String>,
}

impl Report {
    /// Returns the findings, in the order of the checks.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns true if no MUST check failed and the run was not interrupted.
    #[must_use]
    pub fn conforms(&self) -> bool {
        self.count(Level::Must, Outcome::Failed) == 0 && !self.interrupted
    }

    /// Returns the number of checks with a level and an outcome.
    #[must_use]
    pub fn count(&self, level: Level, outcome: Outcome) -> usize {
        let matches = |finding: &&Finding| (finding.level(), finding.outcome) == (level, outcome);
        self.findings.iter().filter(matches).count()
    }

    /// Returns the abilities that were checked, each with whether the backend has it. Empty after an
    /// interruption.
    #[must_use]
    pub fn abilities(&self) -> Vec<(&'static str, bool)> {
        if self.interrupted {
            return Vec::new();
        }
        let abilities = ABILITIES.iter().filter_map(|(ability, check)| {
            let mut findings = self.findings.iter();
            let finding = findings.find(|finding| finding.name() == *check)?;
            Some((*ability, finding.outcome == Outcome::Passed))
        });
        abilities.collect()
    }

    /// Returns the ids of the sandboxes that could not be deleted. They live until their TTL expires.
    #[must_use]
    pub fn left_behind(&self) -> &[String] {
        &self.left_behind
    }
}
