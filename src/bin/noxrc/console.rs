//! Printing: data to stdout, notices and errors to stderr.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};

use noxrunner::{Chunk, Error, ErrorKind, KilledBy, Output, Result, Stream, printable};
use serde_json::{Value, json};

use crate::backend_args::BackendKind;
use crate::credentials;

/// Prints the output of the command. If the reader of stdout or stderr is gone, the rest is discarded.
pub(crate) struct Console {
    json: bool,
    /// For hints.
    backend: BackendKind,
    /// The first failure to write data.
    failure: Cell<Option<io::Error>>,
    color_stderr: bool,
    color_stdout: bool,
}

impl Console {
    pub(crate) fn new(json: bool, verbose: bool, backend: BackendKind) -> Console {
        if verbose {
            log_to_stderr(log::LevelFilter::Debug);
        }
        Console {
            json,
            backend,
            failure: Cell::new(None),
            color_stderr: supports_color(&io::stderr()),
            color_stdout: supports_color(&io::stdout()),
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

    /// Prints an error as a notice, with a hint if there is one.
    pub(crate) fn error_notice(&self, error: &Error) {
        // An error may have several lines, and is escaped already.
        self.line("✗", "31", &format!("{error:#}"));
        if let Some(hint) = hint(error, self.backend) {
            self.info(hint);
        }
    }

    /// Prints an error as a notice, and with `--json` also as the value.
    pub(crate) fn error(&self, error: &Error) {
        self.error_notice(error);
        let kind = error.kind().to_string();
        let mut value = json!({"error": format!("{error:#}"), "kind": kind});
        for (name, text) in [("code", error.code()), ("requestId", error.request_id())] {
            if let Some(text) = text {
                value[name] = text.into();
            }
        }
        self.value(&value);
    }

    /// Prints the value of `--json`, if that was given.
    pub(crate) fn value(&self, value: &Value) {
        if self.json {
            self.data(format!("{}\n", ascii_escapes(&value.to_string())).as_bytes());
        }
    }

    pub(crate) fn data(&self, bytes: &[u8]) {
        self.write(&mut io::stdout().lock(), bytes);
    }

    fn write(&self, stream: &mut dyn Write, bytes: &[u8]) {
        match stream.write_all(bytes).and_then(|()| stream.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                self.failure.set(self.failure.take().or(Some(e)));
            }
            _ => {}
        }
    }

    /// Returns an error if data was lost.
    pub(crate) fn finish(&self) -> Result<()> {
        self.failure.take().map_or(Ok(()), |e| {
            Err(Error::new(ErrorKind::Io, "cannot write the output").with_source(e))
        })
    }

    /// Prints the streams of a command, and warns if they are incomplete.
    pub(crate) fn streams(&self, out: &Output) {
        self.data(out.stdout_bytes());
        self.write(&mut io::stderr().lock(), out.stderr_bytes());
        self.warn_if_incomplete(out);
    }

    /// Prints a part of the output of a command.
    pub(crate) fn chunk(&self, chunk: Chunk<'_>) {
        match chunk.stream() {
            Stream::Stdout => self.data(chunk.bytes()),
            Stream::Stderr => self.write(&mut io::stderr().lock(), chunk.bytes()),
        }
    }

    /// Warns if the output of a command is incomplete, or a limit has ended it.
    pub(crate) fn warn_if_incomplete(&self, out: &Output) {
        if out.lost_output() {
            self.warning("The output was truncated: write it to a file and download that");
        }
        if let Some(killed_by) = out.killed_by() {
            self.warning(match killed_by {
                KilledBy::Timeout => "The command timed out: raise --timeout-seconds",
                KilledBy::Memory => {
                    "The memory limit was exceeded, and a process killed: raise --mem"
                }
                KilledBy::Storage => {
                    "The storage limit was exceeded, and all processes killed: raise --storage"
                }
                _ => "A limit was exceeded, and a process killed",
            });
        }
    }

    /// Colors text for stdout.
    pub(crate) fn color(&self, color: &str, text: &str) -> String {
        paint(self.color_stdout, color, text)
    }

    /// Prints a line, any of which may come from the server or the sandbox.
    fn notice(&self, mark: &str, color: &str, text: &str) {
        self.line(mark, color, &printable(text));
    }

    fn line(&self, mark: &str, color: &str, text: &str) {
        let line = paint(self.color_stderr, color, &format!("{mark} {text}"));
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

/// Escapes the hidden characters that JSON allows in a string.
fn ascii_escapes(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        // JSON itself has no characters that need an escape, other than in strings.
        if printable(c.encode_utf8(&mut [0; 4])).starts_with('\\') && c != '\\' {
            for unit in c.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn paint(enabled: bool, color: &str, text: &str) -> String {
    if enabled {
        format!("\x1b[{color}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn supports_color(stream: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if variable("NO_COLOR").is_some() {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn hint(error: &Error, backend: BackendKind) -> Option<&'static str> {
    Some(match error.kind() {
        ErrorKind::Connect if backend == BackendKind::Docker => {
            "Start Docker, or Podman with `systemctl --user start podman.socket`"
        }
        ErrorKind::Connect if backend == BackendKind::Kubernetes => {
            "Check the connection with `noxrc --kubernetes doctor`"
        }
        ErrorKind::Connect => "Start a server with `noxrc serve`, set --base-url, or use --local",
        ErrorKind::Unauthorized => credentials::HINT,
        ErrorKind::NotFound => "If the sandbox is missing, create it with `noxrc create ID`",
        ErrorKind::Isolation | ErrorKind::Unsupported => {
            "Run `noxrc doctor` to check this machine's setup"
        }
        _ => return None,
    })
}

struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("noxrunner")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = record.args().to_string();
            let _ = writeln!(io::stderr().lock(), "{}", printable(&line));
        }
    }

    fn flush(&self) {}
}

/// Prints the library's log to stderr.
pub(crate) fn log_to_stderr(level: log::LevelFilter) {
    static LOG: StderrLog = StderrLog;
    // Fails only if the log is printed already.
    let _ = log::set_logger(&LOG);
    log::set_max_level(level);
}
