//! Commands: what to run in a sandbox, and how.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::language::{FILE_PLACEHOLDER, Language, SourceCode};
use crate::output::Output;
use crate::sandbox_path::{SandboxPath, WORKSPACE};
use crate::stdin::Stdin;
use crate::validate::{check_duration, check_no_nul};

/// Timeout of a command that does not set one: 30 s.
pub const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum length of an argument or of `NAME=value` in the environment, in bytes. Linux allows
/// 128 KiB including the closing NUL. Put longer data into a file.
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Longest path of a working directory, in bytes.
const MAX_WORKDIR: usize = 4095;

/// A program with its arguments, and how to run it.
///
/// Built like [`std::process::Command`], from a list of arguments, or from a line for `sh` with
/// [`Command::shell`]. A plain string is not a command, because it does not say which of the two is
/// meant.
///
/// ```
/// use noxrunner::Command;
/// use std::time::Duration;
///
/// let build = Command::new("make")
///     .args(["-j", "4"])
///     .workdir("src")
///     .env("CFLAGS", "-O2")
///     .timeout(Duration::from_secs(120));
/// assert_eq!(build.get_args(), ["make", "-j", "4"]);
/// assert_eq!(build.get_workdir(), "/workspace/src");
/// assert_eq!(Command::shell("make && ./run").get_args(), ["/bin/sh", "-c", "make && ./run"]);
/// assert_eq!(Command::from(["ls", "-l"]).get_args(), ["ls", "-l"]);
/// ```
#[derive(Clone)]
pub struct Command {
    args: Vec<String>,
    workdir: String,
    env: BTreeMap<String, String>,
    pub(crate) timeout: Option<Duration>,
    cancel: Option<Cancel>,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) code: Option<SourceCode>,
    /// Set by callers that repeat the command: how long they wait for the response, even if the command's
    /// own timeout has not passed. They also wait themselves if the server limits the rate.
    pub(crate) give_up_after: Option<Duration>,
    /// The first argument that is not UTF-8, reported by [`check`](Command::check).
    not_utf8: Option<String>,
}

impl Command {
    /// Creates a command from the name or path of a program. The sandbox looks up a name in its
    /// `PATH`.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command::empty().arg(program)
    }

    fn empty() -> Command {
        Command {
            args: Vec::new(),
            workdir: WORKSPACE.to_owned(),
            env: BTreeMap::new(),
            timeout: None,
            cancel: None,
            stdin: None,
            code: None,
            give_up_after: None,
            not_utf8: None,
        }
    }

    /// Creates a command that runs a line in a shell: `/bin/sh -c LINE`. Quote arguments with
    /// [`shell_quote`](crate::shell_quote). Some servers expand variables in the arguments of a plain `sh`
    /// before it starts.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// assert_eq!(sandbox.run(Command::shell("echo a b | wc -w"))?.stdout().trim(), "2");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "exec_shell")]
    #[must_use]
    pub fn shell(line: impl AsRef<OsStr>) -> Command {
        Command::new("/bin/sh").arg("-c").arg(line)
    }

    /// Creates a command that runs a line in bash: `/usr/bin/env bash -c LINE`. Small images often have no
    /// bash.
    #[must_use]
    pub fn bash(line: impl AsRef<OsStr>) -> Command {
        Command::new("/usr/bin/env").args(["bash", "-c"]).arg(line)
    }

    /// Creates a command that runs source code. The code is written to a file for the run, so it may
    /// have any length and error messages show its line numbers. Arguments that
    /// [`arg`](Command::arg) adds are passed to the program. Needs `sh` in the sandbox.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Command, Language};
    ///
    /// let source = "read number; echo $((number * $1))";
    /// let out = sandbox.run(Command::code(Language::SH, source).arg("7").stdin("6\n"))?;
    /// assert_eq!(out.stdout(), "42\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn code(language: Language, source: impl Into<Vec<u8>>) -> Command {
        let mut command = Command::empty().args(language.command());
        command.code = Some(SourceCode {
            file_name: language.file_name().to_owned(),
            text: source.into().into(),
            language_args: command.args.len(),
        });
        command
    }

    /// Adds an argument. It must be UTF-8, because NoxRunner v1 sends arguments as text.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        let what = format!("argument {} of the command", self.args.len());
        let arg = self.utf8(&what, arg.as_ref());
        self.args.push(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Command {
        args.into_iter().fold(self, Command::arg)
    }

    /// Sets the working directory. A relative path is resolved against `/workspace`. The local backend
    /// requires that the directory exists. Defaults to `/workspace`.
    #[must_use]
    pub fn workdir(mut self, workdir: impl AsRef<Path>) -> Command {
        let path = self.utf8("workdir", workdir.as_ref().as_os_str());
        self.workdir = match &*path {
            // Refused by `check`.
            "" => path,
            _ if path.starts_with('/') => path,
            "." => WORKSPACE.to_owned(),
            _ => format!("{WORKSPACE}/{path}"),
        };
        self
    }

    /// Same as [`workdir`](Command::workdir), under the name that [`std::process::Command`] uses.
    #[must_use]
    pub fn current_dir(self, workdir: impl AsRef<Path>) -> Command {
        self.workdir(workdir)
    }

    /// Sets an environment variable. Defaults to none beyond those of the sandbox.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        let name = self.utf8("name of an environment variable", name.as_ref());
        let what = format!("environment variable {:?}", one_line(&name));
        let value = self.utf8(&what, value.as_ref());
        self.env.insert(name, value);
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        self,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Command {
        let vars = vars.into_iter();
        vars.fold(self, |command, (name, value)| command.env(name, value))
    }

    /// Sets how long the command may run. The request rounds this *up* to whole seconds. The backend
    /// kills a command that exceeds it; the backends of this crate then report exit code 124 and the
    /// output so far. At most 365 days; defaults to 30 s.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    /// use std::time::Duration;
    ///
    /// let out = sandbox.exec(Command::shell("echo started; sleep 100").timeout(Duration::from_secs(1)))?;
    /// assert!(out.timed_out());
    /// assert_eq!((out.exit_code(), &*out.stdout()), (124, "started\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "timeout_seconds")]
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Command {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the command's standard input. Defaults to an empty input.
    ///
    /// The local backend streams it: the command reads it while it runs, and need not read all of it.
    /// A reader is then read on another thread, which may outlive the call if a read blocks. NoxRunner
    /// v1 has no field for stdin, so over HTTP it is read to its end and uploaded to a temporary file
    /// before the command starts. That needs `sh` in the sandbox.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// let out = sandbox.run(Command::new("sort").stdin("b\na\n"))?;
    /// assert_eq!(out.stdout(), "a\nb\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdin>) -> Command {
        self.stdin = Some(stdin.into());
        self
    }

    /// Lets another thread cancel this exec, which then fails with
    /// [`Cancelled`](ErrorKind::Cancelled). The local backend kills the command's process group; the
    /// error holds the output so far. Over HTTP the command may keep running: NoxRunner v1 has no call
    /// that ends it, and only some servers notice the closed connection.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Cancel, Command};
    ///
    /// let cancel = Cancel::new();
    /// let result = std::thread::scope(|scope| {
    ///     scope.spawn(|| cancel.cancel());
    ///     sandbox.exec(Command::from(["sleep", "100"]).cancel_on(&cancel))
    /// });
    /// assert!(result.unwrap_err().is_cancelled());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn cancel_on(mut self, cancel: &Cancel) -> Command {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Returns the program and its arguments.
    #[must_use]
    pub fn get_args(&self) -> &[String] {
        &self.args
    }

    /// Returns the standard input, if set.
    #[must_use]
    pub fn get_stdin(&self) -> Option<&Stdin> {
        self.stdin.as_ref()
    }

    /// Returns the working directory as an absolute path in the sandbox.
    #[must_use]
    pub fn get_workdir(&self) -> &str {
        &self.workdir
    }

    /// Returns the environment variables that were set.
    #[must_use]
    pub fn get_envs(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Returns how long the command may run.
    #[must_use]
    pub fn get_timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_COMMAND_TIMEOUT)
    }

    /// Returns what can cancel the exec, if set.
    #[must_use]
    pub fn get_cancel(&self) -> Option<&Cancel> {
        self.cancel.as_ref()
    }

    fn utf8(&mut self, what: &str, text: &OsStr) -> String {
        let lossy = text.to_string_lossy();
        if text.to_str().is_none() {
            let shown = one_line(&lossy);
            let problem =
                format!("{what}: {shown:?} is not UTF-8, and NoxRunner v1 sends it as text");
            self.not_utf8.get_or_insert(problem);
        }
        lossy.into_owned()
    }

    /// Refuses what no backend can run, before anything is sent.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(problem) = &self.not_utf8 {
            return Err(Error::invalid(problem.as_str()));
        }
        let Some(program) = self.args.first() else {
            return Err(Error::invalid("the command is empty: it needs a program"));
        };
        if program.is_empty() {
            return Err(Error::invalid("the command's program is an empty string"));
        }
        for (at, arg) in self.args.iter().enumerate() {
            let what = || format!("argument {at} of the command");
            check_no_nul(what, arg)?;
            check_argument_length(what, arg.len())?;
        }
        self.env.iter().try_for_each(check_env)?;
        self.check_workdir()?;
        check_duration("the command's timeout", self.get_timeout())
    }

    fn check_workdir(&self) -> Result<()> {
        let length = self.workdir.len();
        if length > MAX_WORKDIR {
            return Err(Error::invalid(format!(
                "workdir is {length} bytes long, the limit is {MAX_WORKDIR}"
            )));
        }
        SandboxPath::new("workdir", &self.workdir).map(drop)
    }

    /// Returns true if the command needs files in the sandbox, which [`Backend::exec`] cannot send.
    /// `streams_stdin` is true if the backend needs no file for stdin.
    ///
    /// [`Backend::exec`]: crate::Backend::exec
    pub(crate) fn needs_files(&self, streams_stdin: bool) -> bool {
        self.code.is_some() || (self.stdin.is_some() && !streams_stdin)
    }

    /// Refuses commands that need files: only [`Sandbox`](crate::Sandbox) can upload them.
    pub(crate) fn check_no_files(&self, streams_stdin: bool) -> Result<()> {
        if self.needs_files(streams_stdin) {
            let kinds = if streams_stdin {
                "source code"
            } else {
                "stdin or source code"
            };
            let message = format!("a backend cannot run a command with {kinds}: use Sandbox::exec");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    /// Creates a command with other arguments and environment that otherwise runs like `self`.
    pub(crate) fn derive(&self, args: Vec<String>, env: BTreeMap<String, String>) -> Command {
        Command {
            args,
            env,
            stdin: None,
            code: None,
            ..self.clone()
        }
    }

    /// Adds to an output what its error message and its inference of a timeout need.
    pub(crate) fn describe(&self, output: Output) -> Output {
        output.with_command(self.to_string(), self.get_timeout())
    }
}

pub(crate) fn check_env((name, value): (&String, &String)) -> Result<()> {
    let what = || format!("environment variable {:?}", one_line(name));
    if name.is_empty() {
        return Err(Error::invalid("an environment variable has an empty name"));
    }
    if name.contains('=') {
        return Err(Error::invalid(format!("{}: the name contains '='", what())));
    }
    check_no_nul(what, name)?;
    check_no_nul(what, value)?;
    check_argument_length(what, name.len() + 1 + value.len())
}

fn check_argument_length(what: impl Fn() -> String, length: usize) -> Result<()> {
    if length > MAX_ARGUMENT {
        return Err(Error::invalid(format!(
            "{} is {length} bytes long, the limit is {MAX_ARGUMENT}: write it to a file in the sandbox instead",
            what()
        )));
    }
    Ok(())
}

/// Shows the names of the environment variables only, because a value may be a secret.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("args", &self.args)
            .field("workdir", &self.workdir)
            .field("env", &self.env.keys())
            .field("timeout", &self.get_timeout())
            .field("stdin", &self.stdin)
            .finish_non_exhaustive()
    }
}

/// Shows the arguments in one line. Of source code it shows the file's name.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut args = self.args.clone();
        if let Some(code) = &self.code {
            for arg in args.iter_mut().take(code.language_args) {
                *arg = arg.replacen(FILE_PLACEHOLDER, &code.file_name, 1);
            }
        }
        f.write_str(&one_line(&format!("{args:?}")))
    }
}

impl<S: AsRef<OsStr>> FromIterator<S> for Command {
    fn from_iter<I: IntoIterator<Item = S>>(args: I) -> Command {
        Command::empty().args(args)
    }
}

/// A command, or a list of words that is one.
///
/// ```compile_fail
/// # let sandbox = noxrunner::Client::local()?.create("demo", noxrunner::SandboxSpec::new())?;
/// sandbox.exec("ls -l")?; // a shell line? a program's name?
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a command",
    label = "expected a `Command` or a list of words",
    note = "for a shell line use `Command::shell(\"ls -l\")`",
    note = "for a program and its arguments use a list: `[\"ls\", \"-l\"]`"
)]
pub trait IntoCommand {
    /// Converts into a command.
    fn into_command(self) -> Command;
}

impl IntoCommand for Command {
    fn into_command(self) -> Command {
        self
    }
}

macro_rules! impl_command_from {
    ($([$($generics:tt)*] $list:ty => |$args:ident| $words:expr;)*) => {$(
        impl<$($generics)*> From<$list> for Command {
            fn from($args: $list) -> Command {
                $words
            }
        }

        impl<$($generics)*> IntoCommand for $list {
            fn into_command(self) -> Command {
                self.into()
            }
        }
    )*};
}

impl_command_from! {
    [] &Command => |command| command.clone();
    [S: AsRef<OsStr>, const N: usize] [S; N] => |args| args.iter().collect();
    [S: AsRef<OsStr>, const N: usize] &[S; N] => |args| args.iter().collect();
    [S: AsRef<OsStr>] &[S] => |args| args.iter().collect();
    [S: AsRef<OsStr>] Vec<S> => |args| args.iter().collect();
    [S: AsRef<OsStr>] &Vec<S> => |args| args.iter().collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    #[test]
    fn invalid_commands_are_refused_by_name() {
        let odd = OsStr::from_bytes(b"a\xff");
        let long = "x".repeat(MAX_ARGUMENT + 1);
        let a = || Command::new("a");
        for (command, reason) in [
            (Vec::<String>::new().into(), "the command is empty"),
            (Command::new(""), "empty string"),
            (a().arg("b\0c"), "argument 1 of the command contains a NUL"),
            (a().env("A=B", ""), "\"A=B\": the name contains '='"),
            (a().env("", "x"), "empty name"),
            (a().env("A\0", "x"), "NUL"),
            (a().env("A", "x\0"), "NUL"),
            (a().workdir(""), "workdir \"\" is an empty path"),
            (a().workdir("/workspace/../etc"), "has a \"..\" component"),
            (a().workdir("/".repeat(5000)), "5000 bytes"),
            (a().arg(&long), "131072 bytes long"),
            (a().arg(&long), "write it to a file"),
            (a().env("A", &long[1..]), "131073"),
            (a().arg(odd), "argument 1 of the command"),
            (a().workdir(odd), "workdir"),
            (a().env("A", odd), "\"A\""),
            (a().timeout(Duration::ZERO), "timeout is zero"),
            (a().timeout(Duration::MAX), "365 days"),
        ] {
            let error = command.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(reason), "{error}");
        }
        a().arg(&long[1..]).check().unwrap();
        a().timeout(Duration::from_nanos(1)).check().unwrap();
    }

    #[test]
    fn relative_workdirs_are_below_the_workspace() {
        for (workdir, expected) in [
            ("src", "/workspace/src"),
            (".", "/workspace"),
            ("/tmp", "/tmp"),
        ] {
            assert_eq!(
                Command::new("a").current_dir(workdir).get_workdir(),
                expected
            );
        }
    }

    #[test]
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "references are tested, too"
    )]
    fn lists_of_words_are_commands() {
        fn words(command: impl IntoCommand) -> Vec<String> {
            command.into_command().get_args().to_vec()
        }
        let list = vec!["ls".to_owned(), "-l".to_owned()];
        for args in [
            words(["ls", "-l"]),
            words(&["ls", "-l"]),
            words(&list),
            words(&list[..]),
            words(list.clone()),
            words(&Command::from(&list)),
            words(Command::new("ls").args(["-l"])),
            words([PathBuf::from("ls"), PathBuf::from("-l")]),
        ] {
            assert_eq!(args, ["ls", "-l"]);
        }
    }

    #[test]
    fn source_code_is_shown_by_its_file_name() {
        let command = Command::code(Language::PYTHON, "x").arg("{file}");
        assert_eq!(command.to_string(), r#"["python3", "main.py", "{file}"]"#);
    }
}
