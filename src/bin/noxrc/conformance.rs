//! `conformance`: whether a server keeps NoxRunner v1.

use std::process::ExitCode;

use noxrunner::conformance::{Conformance, Finding, Level, Outcome, Report};
use noxrunner::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::args::{Args, ConformanceArgs};
use crate::connect::remote;
use crate::run::{INTERRUPTED, Interrupt};
use crate::say::Say;

pub(crate) fn conformance(args: &Args, of: &ConformanceArgs, say: &Say) -> ExitCode {
    let interrupt = match Interrupt::watch() {
        Ok(interrupt) => interrupt,
        Err(e) => {
            let text = format!("cannot watch signals: {e}");
            say.error(&Error::new(ErrorKind::Io, text));
            return ExitCode::FAILURE;
        }
    };
    let report = match check(args, of, &interrupt, say) {
        Ok(report) => report,
        Err(_) if interrupt.came() => return ExitCode::from(INTERRUPTED),
        Err(error) => {
            say.error(&error);
            return ExitCode::FAILURE;
        }
    };
    summarize(args, &report, say);
    match (interrupt.came(), report.conforms()) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    }
}

fn check(args: &Args, of: &ConformanceArgs, interrupt: &Interrupt, say: &Say) -> Result<Report> {
    if args.local {
        let text = "the protocol is what a server speaks: run `noxrc serve`, and check that";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let backend = remote(args, &args.base_url)?;
    let mut checks = Conformance::new(backend).cancel_on(&interrupt.cancel);
    if !of.only.is_empty() {
        checks = checks.only(of.only.iter().cloned())?;
    }
    checks.run(|finding| {
        if !say.is_json() {
            show(finding, say);
        }
    })
}

fn show(finding: &Finding, say: &Say) {
    let (mark, colour) = match (finding.outcome(), finding.level()) {
        (Outcome::Passed, _) => ("✓", "32"),
        (Outcome::Failed, Level::Must) => ("✗", "31"),
        (Outcome::Failed, Level::Should) => ("⚠", "33"),
        _ => ("-", "0"),
    };
    let level = finding.level().to_string();
    let name = finding.name();
    let line = match finding.outcome() {
        Outcome::Passed => format!("{mark} {level:<6} {name:<24} {}", finding.rule()),
        _ => {
            let (rule, seen) = (finding.rule(), finding.seen());
            format!("{mark} {level:<6} {name:<24} {rule}\n         seen: {seen}")
        }
    };
    say.data(format!("{}\n", say.coloured_data(colour, &line)).as_bytes());
}

fn summarize(args: &Args, report: &Report, say: &Say) {
    let counts = [Level::Must, Level::Should, Level::May].map(|level| {
        let [passed, failed, skipped] = [Outcome::Passed, Outcome::Failed, Outcome::Skipped]
            .map(|outcome| report.count(level, outcome));
        (level, passed, failed, skipped)
    });
    let abilities = report.abilities();
    if say.is_json() {
        let checks: Vec<Value> = report.findings().iter().map(described).collect();
        let counts: serde_json::Map<String, Value> = counts
            .iter()
            .map(|(level, passed, failed, skipped)| {
                let counted = json!({"passed": passed, "failed": failed, "skipped": skipped});
                (level.to_string(), counted)
            })
            .collect();
        let abilities: serde_json::Map<String, Value> = abilities
            .iter()
            .map(|(ability, has)| ((*ability).to_owned(), json!(has)))
            .collect();
        say.value(&json!({
            "url": args.base_url, "conforms": report.conforms(), "counts": counts,
            "abilities": abilities, "checks": checks, "leftBehind": report.left_behind(),
        }));
    } else {
        let mut text = String::new();
        if !abilities.is_empty() {
            text.push_str("\nWhat it can do:\n");
        }
        for (ability, has) in abilities {
            text.push_str(&format!(
                "  {:<3} {ability}\n",
                if has { "yes" } else { "no" }
            ));
        }
        text.push('\n');
        for (level, passed, failed, skipped) in counts {
            text.push_str(&format!(
                "{level}: {passed} passed, {failed} failed, {skipped} skipped\n"
            ));
        }
        say.data(text.as_bytes());
    }
    if !report.left_behind().is_empty() {
        let ids = report.left_behind().join(", ");
        say.warning(&format!(
            "These sandboxes could not be deleted, and stay until their time is over: {ids}"
        ));
    }
    match (
        report.conforms(),
        report.count(Level::Must, Outcome::Failed),
    ) {
        (true, _) => say.success("The server keeps every MUST that was asked"),
        (false, 0) => say.failure("Interrupted by user"),
        (false, _) => say.failure("The server does not keep NoxRunner v1"),
    }
}

fn described(finding: &Finding) -> Value {
    json!({
        "name": finding.name(),
        "level": finding.level().to_string(),
        "outcome": format!("{:?}", finding.outcome()).to_lowercase(),
        "rule": finding.rule(),
        "seen": finding.seen(),
        "millis": u64::try_from(finding.took().as_millis()).unwrap_or(u64::MAX),
    })
}
