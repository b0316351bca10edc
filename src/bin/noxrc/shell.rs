//! `shell`: an interactive prompt for a sandbox.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{self, BufRead, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use noxrunner::{Command, Error, ErrorKind, Output, Result, Sandbox, printable};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

use crate::args::{Args, ShellArgs};
use crate::client::client;
use crate::console::Console;
use crate::exit_code::{self, BACKEND_FAILED, INTERRUPTED};
use crate::interrupt::{Idle, Interrupt};
use crate::shell_syntax::is_incomplete;

/// Words that the prompt completes.
const COMPLETIONS: [&str; 8] = [
    "cd", "exit", "export", "help", "pwd", "quit", "touch", "unset",
];

const HELP: &str = "\
Commands:
  exit, quit     exit with the last command's code, as does Ctrl-D
  help           show this help
  touch          reset the sandbox's TTL
  cd, pwd, export, unset
                 apply to later commands, as in a shell
  anything else  runs in the sandbox's shell
Ctrl-C discards the line, or cancels the running command.
";

/// Lets `cd` without a directory go to the workspace. Some servers set another HOME.
const CD: &str = "cd() { if [ $# = 0 ]; then command cd \"${NOX_WORKSPACE:-/workspace}\"; else command cd \"$@\"; fi; }\n";

pub(crate) fn shell(args: &Args, shell: &ShellArgs, console: &Console) -> Result<ExitCode> {
    let at_terminal = io::stdin().is_terminal();
    let mut session = Session {
        sandbox: client(args)?.sandbox(&shell.id)?,
        idle: Idle::new(at_terminal)?,
        dir: shell.workdir.clone(),
        env: BTreeMap::new(),
        timeout: shell.timeout_seconds,
        code: 0,
        console,
    };
    if at_terminal {
        session.prompt_for_lines()?;
    } else {
        session.read_lines(io::stdin().lock())?;
    }
    Ok(exit_code::of_command(session.code))
}

/// Reported by a line that has exited the shell.
const EXITED: &str = "exit";

/// The state between two lines.
struct Session<'a> {
    sandbox: Sandbox,
    /// Signals end the process, except while a command runs.
    idle: Idle,
    dir: String,
    env: BTreeMap<String, String>,
    timeout: Duration,
    /// The exit code of the last command.
    code: i32,
    console: &'a Console,
}

impl Session<'_> {
    fn prompt_for_lines(&mut self) -> Result<()> {
        let failed = |e: ReadlineError| {
            Error::new(ErrorKind::Io, "cannot read from the terminal").with_source(e)
        };
        let mut editor: Editor<PromptHelper, FileHistory> = Editor::new().map_err(failed)?;
        editor.set_helper(Some(PromptHelper));
        let history = history_file();
        if let Some(history) = &history {
            // The file does not exist before the first session.
            let _ = editor.load_history(history);
        }
        let id = self.sandbox.id();
        self.console
            .info(&format!("Interactive shell for session: {id}"));
        self.console
            .info("Type 'exit' or 'quit' to exit, 'help' for help");
        self.handle_lines(&mut editor).map_err(failed)?;
        let saved = history.map_or(Ok(()), |history| editor.save_history(&history));
        if let Err(e) = saved {
            self.console
                .warning(&format!("Cannot save the history: {e}"));
        }
        Ok(())
    }

    /// Handles lines until the user ends the session.
    fn handle_lines(
        &mut self,
        editor: &mut Editor<PromptHelper, FileHistory>,
    ) -> std::result::Result<(), ReadlineError> {
        loop {
            let line = match editor.readline(&self.prompt()) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e),
            };
            let _ = editor.add_history_entry(line.trim());
            if !self.handle(&line) {
                return Ok(());
            }
        }
    }

    fn read_lines(&mut self, input: impl BufRead) -> Result<()> {
        let mut input_so_far = String::new();
        for line in input.lines() {
            let line = line
                .map_err(|e| Error::new(ErrorKind::Io, "cannot read from stdin").with_source(e))?;
            input_so_far.push_str(&line);
            if is_incomplete(&input_so_far) {
                input_so_far.push('\n');
            } else if !self.handle(&std::mem::take(&mut input_so_far)) {
                return Ok(());
            }
        }
        if !input_so_far.is_empty() {
            self.handle(&input_so_far);
        }
        Ok(())
    }

    fn prompt(&self) -> String {
        // The sandbox chooses the names of its directories.
        let place = format!("{}:{}", self.sandbox.id(), self.dir);
        let place = printable(&place);
        match self.code {
            0 => format!("{place}$ "),
            code => format!("{place} [{code}]$ "),
        }
    }

    /// Handles a line. Returns false if it ends the session.
    fn handle(&mut self, line: &str) -> bool {
        match line.trim() {
            "" => return true,
            "exit" | "quit" => return false,
            "help" => self.console.data(HELP.as_bytes()),
            "pwd" => self
                .console
                .data(format!("{}\n", printable(&self.dir)).as_bytes()),
            "touch" => match self.sandbox.touch() {
                Ok(()) => self.console.success("TTL extended"),
                Err(error) => {
                    self.failed(&error);
                    return true;
                }
            },
            line => return self.run(line),
        }
        self.code = 0;
        true
    }

    fn failed(&mut self, error: &Error) {
        self.code = BACKEND_FAILED.into();
        self.console.error(error);
    }

    /// Runs a line in the sandbox's shell, which prints its state when it exits: after a marker, whether
    /// the line ended by itself, the directory and the environment. Returns false if the line or a
    /// signal ends the session.
    fn run(&mut self, line: &str) -> bool {
        let mark = format!("noxrc-{:x}-{}", std::process::id(), self.env.len());
        let report = |ended| {
            format!(
                "trap 'printf \"\\0{mark}\\0{ended}\\0%s\\0\" \"$PWD\"; env -0 2>/dev/null' EXIT"
            )
        };
        let (exited, ended) = (report(EXITED), report("end"));
        let script = format!("{CD}{exited}\n{line}\nnx_code=$?\n{ended}\nexit \"$nx_code\"\n");
        let command = Command::shell(script)
            .workdir(&self.dir)
            .envs(self.env.clone())
            .timeout(self.timeout);
        let interrupt = match Interrupt::watch() {
            Ok(interrupt) => interrupt,
            Err(error) => {
                self.failed(&error);
                return true;
            }
        };
        let running = self.idle.pause();
        let result = self.sandbox.exec(command.cancel_on(&interrupt.cancel));
        drop(running);
        let goes_on = match result {
            Ok(out) => self.show(&out, &mark),
            Err(error) => {
                self.failed(&error);
                true
            }
        };
        if interrupt.received() {
            self.code = INTERRUPTED.into();
        }
        goes_on && !self.ends_on(&interrupt)
    }

    /// Returns true if a signal ends the session: any but Ctrl-C at a prompt, which only ends the command.
    fn ends_on(&self, interrupt: &Interrupt) -> bool {
        interrupt.received() && !(interrupt.by_ctrl_c() && io::stdin().is_terminal())
    }

    /// Shows the output of a command. Returns false if the command has exited the shell.
    fn show(&mut self, out: &Output, mark: &str) -> bool {
        self.code = out.exit_code();
        let stdout = out.stdout_bytes();
        let mark = format!("\0{mark}\0");
        let at = stdout
            .windows(mark.len())
            .rposition(|part| part == mark.as_bytes());
        let exited = at.is_some_and(|at| self.update_state(&stdout[at + mark.len()..]));
        let own = &stdout[..at.unwrap_or(stdout.len())];
        let shown = Output::new(out.exit_code(), own, out.stderr_bytes(), out.duration())
            .with_timed_out(out.timed_out())
            .with_truncated(out.truncated());
        self.console.streams(&shown);
        if self.code != 0 && !exited {
            let code = self.code;
            self.console
                .warning(&format!("Command exited with code {code}"));
        }
        !exited
    }

    /// Parses how the line ended, the directory and the variables, each followed by a NUL. Returns true
    /// if the line has exited the shell.
    fn update_state(&mut self, state: &[u8]) -> bool {
        const SHELL_VARIABLES: [&str; 4] = ["PWD", "SHLVL", "_", "nx_code"];
        let text = String::from_utf8_lossy(state);
        let mut parts = text.split('\0');
        let exited = parts.next() == Some(EXITED);
        if let Some(dir) = parts.next().filter(|dir| dir.starts_with('/')) {
            self.dir = dir.to_owned();
        }
        let pairs = parts.filter_map(|pair| pair.split_once('='));
        let pairs = pairs.filter(|(name, _)| !SHELL_VARIABLES.contains(name));
        let env: BTreeMap<String, String> =
            pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        // Empty if the sandbox has no `env -0`.
        if !env.is_empty() {
            self.env = env;
        }
        exited
    }
}

/// Returns the path of the history in the user's state directory, which is created.
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

/// Completes words, and continues incomplete lines.
struct PromptHelper;

impl Completer for PromptHelper {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let words = COMPLETIONS.iter().filter(|word| word.starts_with(typed));
        Ok((0, words.map(|word| format!("{word} ")).collect()))
    }
}

impl Validator for PromptHelper {
    fn validate(&self, input: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_incomplete(input.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Hinter for PromptHelper {
    type Hint = String;
}
impl Highlighter for PromptHelper {}
impl Helper for PromptHelper {}
