//! `conformance`.

use std::process::ExitCode;

use noxrunner::conformance::{Conformance, Finding, Level, Outcome, Report};
use noxrunner::{Error, ErrorKind, Result, printable};
use serde_json::{Map, Value, json};

use crate::args::{Args, ConformanceArgs};
use crate::backend_args::BackendKind;
use crate::client::remote;
use crate::console::Console;
use crate::exit_code::INTERRUPTED;
use crate::interrupt::Interrupt;

const LEVELS: [Level; 3] = [Level::Must, Level::Should, Level::May];
const OUTCOMES: [Outcome; 3] = [Outcome::Passed, Outcome::Failed, Outcome::Skipped];

pub(crate) fn conformance(
    args: &Args,
    checks: &ConformanceArgs,
    console: &Console,
) -> Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let report = match check(args, checks, &interrupt, console) {
        Ok(report) => report,
        Err(_) if interrupt.received() => return Ok(ExitCode::from(INTERRUPTED)),
        Err(error) => return Err(error),
    };
    if console.is_json() {
        console.value(&report_value(args, &report));
    } else {
        console.data(report_text(&report).as_bytes());
    }
    conclude(&report, console);
    Ok(if interrupt.received() {
        ExitCode::from(INTERRUPTED)
    } else if report.conforms() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check(
    args: &Args,
    checks: &ConformanceArgs,
    interrupt: &Interrupt,
    console: &Console,
) -> Result<Report> {
    if args.backend.kind() != BackendKind::Server {
        let message = "conformance checks a server: run `noxrc serve` and check that";
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let backend = remote(args)?;
    let mut conformance = Conformance::new(backend).cancel_on(&interrupt.cancel);
    if !checks.only.is_empty() {
        conformance = conformance.only(checks.only.iter().cloned())?;
    }
    conformance.run(|finding| {
        if !console.is_json() {
            print_finding(finding, console);
        }
    })
}

fn print_finding(finding: &Finding, console: &Console) {
    let (mark, color) = match (finding.outcome(), finding.level()) {
        (Outcome::Passed, _) => ("✓", "32"),
        (Outcome::Failed, Level::Must) => ("✗", "31"),
        (Outcome::Failed, Level::Should) => ("⚠", "33"),
        _ => ("-", "0"),
    };
    let (level, name, rule) = (finding.level().to_string(), finding.name(), finding.rule());
    let mut line = format!("{mark} {level:<6} {name:<24} {rule}");
    if finding.outcome() != Outcome::Passed {
        line.push_str(&format!("\n         seen: {}", printable(finding.seen())));
    }
    console.data(format!("{}\n", console.color(color, &line)).as_bytes());
}

fn report_text(report: &Report) -> String {
    let mut text = String::new();
    let abilities = report.abilities();
    if !abilities.is_empty() {
        text.push_str("\nAbilities:\n");
    }
    for (ability, supported) in abilities {
        let supported = if supported { "yes" } else { "no" };
        text.push_str(&format!("  {supported:<3} {ability}\n"));
    }
    text.push('\n');
    for level in LEVELS {
        let [passed, failed, skipped] = OUTCOMES.map(|outcome| report.count(level, outcome));
        text.push_str(&format!(
            "{level}: {passed} passed, {failed} failed, {skipped} skipped\n"
        ));
    }
    text
}

fn report_value(args: &Args, report: &Report) -> Value {
    let counts = LEVELS.map(|level| {
        let [passed, failed, skipped] = OUTCOMES.map(|outcome| report.count(level, outcome));
        let count = json!({"passed": passed, "failed": failed, "skipped": skipped});
        (level.to_string(), count)
    });
    let abilities = report.abilities().into_iter();
    let abilities = abilities.map(|(ability, supported)| (ability.to_owned(), json!(supported)));
    json!({
        "url": args.backend.base_url,
        "conforms": report.conforms(),
        "counts": Map::from_iter(counts),
        "abilities": Map::from_iter(abilities),
        "checks": report.findings(),
        "leftBehind": report.left_behind(),
    })
}

fn conclude(report: &Report, console: &Console) {
    if !report.left_behind().is_empty() {
        let ids = report.left_behind().join(", ");
        console.warning(&format!(
            "Cannot delete these sandboxes, which live until their TTL expires: {ids}"
        ));
    }
    if report.conforms() {
        console.success("The server passed every MUST check");
    } else if report.count(Level::Must, Outcome::Failed) == 0 {
        console.failure("Interrupted by user");
    } else {
        console.failure("The server does not conform to NoxRunner v1");
    }
}
