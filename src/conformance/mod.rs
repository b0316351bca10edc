//! Checks a v1 server against the protocol: 71 named checks, each with the rule that it checks and what
//! was seen.
//!
//! ```
//! # let url = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_server.rs"));
//! use noxrunner::HttpBackend;
//! use noxrunner::conformance::{Conformance, Level, Outcome};
//!
//! let checks = Conformance::new(HttpBackend::new(url)?).only(["health-ok"])?;
//! let report = checks.run(|finding| {
//!     println!("{} {}: {}", finding.outcome(), finding.name(), finding.seen());
//! })?;
//! assert!(report.conforms());
//! assert_eq!(report.count(Level::Must, Outcome::Passed), 1);
//! # Ok::<_, noxrunner::Error>(())
//! ```

mod entries;
mod exec;
mod files;
mod level;
mod probe;
mod report;
mod runner;
mod sandboxes;
mod table;
mod verdict;

pub use self::level::Level;
pub use self::report::{Finding, Outcome, Report};
pub use self::runner::Conformance;
