//! Notices, data and errors, each where it belongs.

use std::io::{self, IsTerminal, Write};

use noxrunner::{Error, ErrorKind};
use serde_json::{Value, json};

/// Notices go to stderr and data to stdout. Whoever does not listen any more is no failure.
pub(crate) struct Say {
    json: bool,
    colour: bool,
    /// The same for stdout.
    data_colour: bool,
}

impl Say {
    pub(crate) fn new(json: bool, verbose: bool) -> Say {
        if verbose {
            show_log();
        }
        Say {
            json,
            colour: wants_colour(&io::stderr()),
            data_colour: wants_colour(&io::stdout()),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn success(&self, text: &str) {
        self.notice("✓", "32", text);
    }

    pub(crate) fn warning(&self, text: &str) {
        self.notice("⚠", "33", text);
    }

    pub(crate) fn info(&self, text: &str) {
        self.notice("ℹ", "34", text);
    }

    pub(crate) fn failure(&self, text: &str) {
        self.notice("✗", "31", text);
    }

    /// With what to do next.
    pub(crate) fn error_notice(&self, error: &Error) {
        self.failure(&error.to_string());
        if let Some(next) = next_step(error) {
            self.info(next);
        }
    }

    /// The same; as data, too, where programs read it.
    pub(crate) fn error(&self, error: &Error) {
        self.error_notice(error);
        if self.json {
            let kind = format!("{:?}", error.kind());
            self.value(&json!({"error": error.to_string(), "kind": kind}));
        }
    }

    /// For programs: one line of JSON, if it was asked for.
    pub(crate) fn value(&self, value: &Value) {
        if self.json {
            self.data(format!("{value}\n").as_bytes());
        }
    }

    pub(crate) fn data(&self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }

    /// A command's own stderr.
    pub(crate) fn error_data(&self, bytes: &[u8]) {
        let _ = io::stderr().lock().write_all(bytes);
    }

    pub(crate) fn coloured(&self, colour: &str, text: &str) -> String {
        painted(self.colour, colour, text)
    }

    pub(crate) fn coloured_data(&self, colour: &str, text: &str) -> String {
        painted(self.data_colour, colour, text)
    }

    fn notice(&self, mark: &str, colour: &str, text: &str) {
        let line = self.coloured(colour, &format!("{mark} {text}"));
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

fn painted(wanted: bool, colour: &str, text: &str) -> String {
    match wanted {
        true => format!("\x1b[{colour}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

fn wants_colour(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("NO_COLOR") {
        return false;
    }
    if std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0") {
        return true;
    }
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn next_step(error: &Error) -> Option<&'static str> {
    Some(match error.kind() {
        ErrorKind::Connect => {
            "start a server with `noxrc serve`, name another one with --base-url, or use --local"
        }
        ErrorKind::Unauthorized => "give the server's token with --token or NOXRUNNER_TOKEN",
        ErrorKind::NotFound => {
            "make the sandbox with `noxrc create ID`, if it is the one that is missing"
        }
        ErrorKind::Isolation | ErrorKind::Unsupported => "`noxrc doctor` says what works here",
        _ => return None,
    })
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("noxrunner")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(io::stderr().lock(), "{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// What the library logs, on stderr.
pub(crate) fn show_log() {
    static LOG: Log = Log;
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}
