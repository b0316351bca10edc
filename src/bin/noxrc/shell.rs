//! `shell`: commands for one sandbox, as they are typed.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{self, BufRead, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use noxrunner::{Command, Error, ErrorKind, Output, Result, Sandbox};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

use crate::args::{Args, ShellArgs};
use crate::connect::client;
use crate::exec::show_streams;
use crate::run::Interrupt;
use crate::say::Say;

const WORDS: [&str; 8] = [
    "cd", "exit", "export", "help", "pwd", "quit", "touch", "unset",
];

const HELP: &str = "\
Commands:
  exit, quit     leave; so does Ctrl-D
  help           this help
  touch          start the sandbox's time again
  cd, pwd, export, unset
                 as in a shell: they last
  anything else  runs in the sandbox, by its shell
Ctrl-C drops the line, or ends the command that runs.
";

pub(crate) fn shell(args: &Args, shell: &ShellArgs, say: &Say) -> Result<()> {
    let mut session = Session {
        sandbox: client(args)?.sandbox(&shell.id)?,
        dir: shell.workdir.clone(),
        env: BTreeMap::new(),
        timeout: shell.timeout_seconds,
        code: 0,
        say,
    };
    match io::stdin().is_terminal() {
        true => session.type_in(),
        false => session.read_lines(io::stdin().lock()),
    }
}

/// What lasts from one line to the next.
struct Session<'a> {
    sandbox: Sandbox,
    dir: String,
    env: BTreeMap<String, String>,
    timeout: Duration,
    code: i32,
    say: &'a Say,
}

impl Session<'_> {
    fn type_in(&mut self) -> Result<()> {
        let failed = |e: ReadlineError| {
            Error::new(ErrorKind::Io, format!("cannot read from the terminal: {e}"))
        };
        let mut editor: Editor<Words, FileHistory> = Editor::new().map_err(failed)?;
        editor.set_helper(Some(Words));
        let history = history_file();
        if let Some(history) = &history {
            // There is none before the first time.
            let _ = editor.load_history(history);
        }
        self.say.info(&format!(
            "Interactive shell for session: {}",
            self.sandbox.id()
        ));
        self.say
            .info("Type 'exit' or 'quit' to exit, 'help' for help");
        loop {
            match editor.readline(&self.prompt()) {
                Ok(line) => {
                    let _ = editor.add_history_entry(line.trim());
                    if !self.take(&line) {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(failed(e)),
            }
        }
        let kept = history.map_or(Ok(()), |history| editor.save_history(&history));
        if let Err(e) = kept {
            self.say
                .warning(&format!("The history could not be kept: {e}"));
        }
        Ok(())
    }

    fn read_lines(&mut self, input: impl BufRead) -> Result<()> {
        let mut whole = String::new();
        for line in input.lines() {
            let line = line.map_err(|e| {
                Error::new(ErrorKind::Io, format!("cannot read from stdin: {e}")).with_source(e)
            })?;
            whole.push_str(&line);
            if is_open(&whole) {
                whole.push('\n');
            } else if !self.take(&std::mem::take(&mut whole)) {
                return Ok(());
            }
        }
        if !whole.is_empty() {
            self.take(&whole);
        }
        Ok(())
    }

    fn prompt(&self) -> String {
        match self.code {
            0 => format!("{}:{}$ ", self.sandbox.id(), self.dir),
            code => format!("{}:{} [{code}]$ ", self.sandbox.id(), self.dir),
        }
    }

    /// False at the end.
    fn take(&mut self, line: &str) -> bool {
        match line.trim() {
            "" => {}
            "exit" | "quit" => return false,
            "help" => self.say.data(HELP.as_bytes()),
            "pwd" => self.say.data(format!("{}\n", self.dir).as_bytes()),
            "touch" => match self.sandbox.touch() {
                Ok(()) => self.say.success("TTL extended"),
                Err(error) => self.say.error(&error),
            },
            line => self.run(line),
        }
        true
    }

    fn run(&mut self, line: &str) {
        let mark = format!("noxrc-{:x}-{}", std::process::id(), self.env.len());
        let script = format!(
            "trap 'printf \"\\0{mark}\\0%s\\0\" \"$PWD\"; env -0 2>/dev/null' EXIT\n{line}\n"
        );
        let command = Command::shell(script)
            .workdir(&self.dir)
            .envs(self.env.clone())
            .timeout(self.timeout);
        let result = match Interrupt::watch() {
            Ok(interrupt) => self.sandbox.exec(command.cancel_on(&interrupt.cancel)),
            Err(_) => self.sandbox.exec(command),
        };
        match result {
            Ok(out) => self.show(out, &mark),
            Err(error) => self.say.error(&error),
        }
    }

    fn show(&mut self, out: Output, mark: &str) {
        self.code = out.exit_code();
        let stdout = out.stdout_bytes();
        let mark = format!("\0{mark}\0");
        let at = stdout
            .windows(mark.len())
            .rposition(|part| part == mark.as_bytes());
        if let Some(at) = at {
            self.keep(&stdout[at + mark.len()..]);
        }
        let own = &stdout[..at.unwrap_or(stdout.len())];
        let shown = Output::new(out.exit_code(), own, out.stderr_bytes(), out.duration())
            .with_timed_out(out.timed_out())
            .with_truncated(out.truncated());
        show_streams(&shown, self.say);
        if self.code != 0 {
            self.say
                .warning(&format!("Command exited with code {}", self.code));
        }
    }

    /// The directory, and then the variables, each ended by a NUL.
    fn keep(&mut self, state: &[u8]) {
        const OF_THE_SHELL: [&str; 3] = ["PWD", "SHLVL", "_"];
        let text = String::from_utf8_lossy(state);
        let mut parts = text.split('\0');
        if let Some(dir) = parts.next().filter(|dir| dir.starts_with('/')) {
            self.dir = dir.to_owned();
        }
        let pairs = parts.filter_map(|pair| pair.split_once('='));
        let pairs = pairs.filter(|(name, _)| !OF_THE_SHELL.contains(name));
        let env: BTreeMap<String, String> =
            pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        // Without them there is no env that could say.
        if !env.is_empty() {
            self.env = env;
        }
    }
}

/// Whether a quote is open, or the last line end is escaped.
fn is_open(line: &str) -> bool {
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), '\\') if chars.next().is_none() => return true,
            _ => {}
        }
    }
    quote.is_some()
}

/// In the user's state directory, which is made if need be.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| {
        let dir = std::env::var_os(name).map(PathBuf::from);
        dir.filter(|dir| dir.is_absolute())
    };
    let state =
        absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let dir = state.join("noxrunner");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .ok()?;
    Some(dir.join("history"))
}

/// Completes the words of the shell itself.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let words = WORDS.iter().filter(|word| word.starts_with(typed));
        Ok((0, words.map(|word| format!("{word} ")).collect()))
    }
}

impl Validator for Words {
    fn validate(&self, input: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(input.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Helper for Words {}

#[test]
fn quotes_and_escapes_keep_a_line_open() {
    for open in ["'", "echo \"a", "a \\", "'a\" b", "\"a\\\"", "a 'b\nc"] {
        assert!(is_open(open), "{open}");
    }
    for closed in [
        "",
        "'a'",
        "\"it's\"",
        "a\\'b",
        "'\\'",
        "\"a\\\"b\"",
        "a \\\nb",
    ] {
        assert!(!is_open(closed), "{closed}");
    }
}
