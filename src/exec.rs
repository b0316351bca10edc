//! `POST /v1/sandboxes/{id}/exec`: commands and what came of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::os::time::MAX_TIME;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::staging::{Code, Stdin};

/// Where a command runs unless it says otherwise, and what relative paths are relative to.
///
/// ```
/// assert_eq!(noxrunner::Command::new("ls").working_directory(), noxrunner::WORKSPACE);
/// ```
pub const WORKSPACE: &str = "/workspace";

/// How long a command may run unless it says otherwise.
///
/// ```
/// use noxrunner::{Command, DEFAULT_COMMAND_TIMEOUT};
///
/// assert_eq!(Command::new("ls").time_limit(), DEFAULT_COMMAND_TIMEOUT);
/// ```
pub const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest single argument, or `NAME=value` of the environment, in bytes. Linux allows
/// 128 KiB with the closing NUL; longer data belongs in a file.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::{Command, MAX_ARGUMENT};
///
/// let longer = Command::new("echo").arg("x".repeat(MAX_ARGUMENT + 1));
/// assert!(sandbox.exec(longer).unwrap_err().to_string().contains("write it to a file"));
/// # Ok::<_, noxrunner::Error>(())
/// ```
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// A program with its arguments, and how it is to run.
///
/// Made from a list of arguments, or with [`Command::shell`] from a line for `sh`. A bare string
/// is not a command, on purpose: it does not say which of the two is meant.
///
/// ```
/// use noxrunner::Command;
/// use std::time::Duration;
///
/// let build = Command::shell("make && ./run")
///     .workdir("/workspace/src")
///     .env("CFLAGS", "-O2")
///     .timeout(Duration::from_secs(120));
/// assert_eq!(build.args()[..2], ["sh", "-c"]);
/// assert_eq!(Command::from(["ls", "-l"]).args(), ["ls", "-l"]);
/// ```
#[derive(Clone)]
pub struct Command {
    args: Vec<String>,
    workdir: String,
    env: BTreeMap<String, String>,
    /// None is the default.
    timeout: Option<Duration>,
    cancel: Option<Cancel>,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) code: Option<Code>,
    /// When nobody waits for the answer any more, even if the command's own time is not over.
    pub(crate) give_up_after: Option<Duration>,
}

impl Command {
    /// The program alone; add to it with [`arg`](Command::arg). It is looked up in the sandbox's `PATH`.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::new("ls").arg("-l").args(), ["ls", "-l"]);
    /// ```
    #[must_use]
    pub fn new(program: impl Into<String>) -> Command {
        Command {
            args: vec![program.into()],
            workdir: WORKSPACE.to_owned(),
            env: BTreeMap::new(),
            timeout: None,
            cancel: None,
            stdin: None,
            code: None,
            give_up_after: None,
        }
    }

    /// A line for the shell: runs `sh -c LINE`.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// assert_eq!(sandbox.exec(Command::shell("echo a b | wc -w"))?.stdout().trim(), "2");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "exec_shell")]
    #[must_use]
    pub fn shell(line: impl Into<String>) -> Command {
        Command::new("sh").arg("-c").arg(line)
    }

    /// A line for bash: runs `bash -c LINE`. Small images often have no bash.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::bash("echo ${PATH//:/ }").args()[..2], ["bash", "-c"]);
    /// ```
    #[must_use]
    pub fn bash(line: impl Into<String>) -> Command {
        Command::new("bash").arg("-c").arg(line)
    }

    /// Adds one argument.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::new("echo").arg("a b").arg("").args(), ["echo", "a b", ""]);
    /// ```
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Command {
        self.args.push(arg.into());
        self
    }

    /// The directory the command starts in. Defaults to `/workspace`, and a relative path is
    /// relative to it. Locally, a directory that does not exist is an error.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// sandbox.write("src/a.c", "")?;
    /// assert_eq!(sandbox.exec(Command::new("ls").workdir("src"))?.stdout(), "a.c\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn workdir(mut self, workdir: impl Into<String>) -> Command {
        self.workdir = workdir.into();
        self
    }

    /// Sets one environment variable; a later value replaces an earlier one. Defaults to none.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// let greet = Command::shell("echo hello, $NAME").env("NAME", "world");
    /// assert_eq!(sandbox.exec(greet)?.stdout(), "hello, world\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Command {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets environment variables.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// let command = Command::new("make").envs([("CC", "clang"), ("V", "1")]);
    /// assert_eq!(command.environment()["CC"], "clang");
    /// ```
    #[must_use]
    pub fn envs<K: Into<String>, V: Into<String>>(
        mut self,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Command {
        self.env
            .extend(vars.into_iter().map(|(k, v)| (k.into(), v.into())));
        self
    }

    /// How long the command may run. Defaults to 30 s, at most 365 days. On the wire it is
    /// rounded *up* to whole seconds. When it is over the backend ends the command; ours answer
    /// exit code 124 with the output so far.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    /// use std::time::Duration;
    ///
    /// let out = sandbox.exec(Command::shell("echo begun; sleep 100").timeout(Duration::from_secs(1)))?;
    /// assert!(out.timed_out());
    /// assert_eq!((out.exit_code(), &*out.stdout()), (124, "begun\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[doc(alias = "timeout_seconds")]
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Command {
        self.timeout = Some(timeout);
        self
    }

    /// What the command reads on its standard input: bytes, or all that a [reader](Stdin::reader)
    /// gives. Defaults to nothing. v1 has no such thing, so [`Sandbox::exec`] uploads it as a file,
    /// which is gone when the call returns; that needs `sh` in the sandbox.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Command;
    ///
    /// let out = sandbox.exec(Command::new("sort").stdin("b\na\n"))?;
    /// assert_eq!(out.stdout(), "a\nb\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdin>) -> Command {
        self.stdin = Some(stdin.into());
        self
    }

    /// Lets another thread end this exec. The local backend ends the command's whole process
    /// group and answers exit code 137 with the output so far; over HTTP the call returns with
    /// [`ErrorKind::OutcomeUnknown`], since v1 has no way to end a command.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Cancel, Command};
    /// use std::time::Duration;
    ///
    /// let cancel = Cancel::new();
    /// let out = std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         std::thread::sleep(Duration::from_millis(200));
    ///         cancel.cancel();
    ///     });
    ///     sandbox.exec(Command::from(["sleep", "100"]).cancel_on(&cancel))
    /// });
    /// assert_eq!(out?.exit_code(), 137);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn cancel_on(mut self, cancel: &Cancel) -> Command {
        self.cancel = Some(cancel.clone());
        self
    }

    /// The program and its arguments, as given.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::shell("ls").args(), ["sh", "-c", "ls"]);
    /// ```
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// The working directory as an absolute path in the sandbox.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::new("ls").workdir("src").working_directory(), "/workspace/src");
    /// ```
    #[must_use]
    pub fn working_directory(&self) -> String {
        absolute(&self.workdir)
    }

    /// The variables that were set, by name.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert!(Command::new("ls").environment().is_empty());
    /// ```
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// How long the command may run.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert_eq!(Command::new("ls").time_limit().as_secs(), 30);
    /// ```
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_COMMAND_TIMEOUT)
    }

    pub(crate) fn has_time_limit(&self) -> bool {
        self.timeout.is_some()
    }

    /// What ends this exec early, if anything.
    ///
    /// ```
    /// use noxrunner::Command;
    ///
    /// assert!(Command::new("ls").cancellation().is_none());
    /// ```
    #[must_use]
    pub fn cancellation(&self) -> Option<&Cancel> {
        self.cancel.as_ref()
    }

    /// Refuses, before anything is sent, what no backend can run.
    pub(crate) fn check(&self) -> Result<()> {
        match self.args.first() {
            None => {
                return Err(Error::invalid(
                    "the command is empty: give at least a program",
                ));
            }
            Some(program) if program.is_empty() => {
                return Err(Error::invalid("the command's program is an empty string"));
            }
            Some(_) => {}
        }
        for (at, arg) in self.args.iter().enumerate() {
            refuse_nul(arg, || format!("argument {at} of the command"))?;
            refuse_long(arg.len(), || format!("argument {at} of the command"))?;
        }
        for (name, value) in &self.env {
            let shown = || format!("environment variable {:?}", one_line(name));
            if name.is_empty() {
                return Err(Error::invalid("an environment variable has an empty name"));
            }
            if name.contains('=') {
                return Err(Error::invalid(format!(
                    "{}: the name contains '='",
                    shown()
                )));
            }
            refuse_nul(name, shown)?;
            refuse_nul(value, shown)?;
            refuse_long(name.len() + 1 + value.len(), shown)?;
        }
        check_path("workdir", &self.workdir)?;
        check_time("the command's timeout", self.time_limit())
    }

    /// Takes over how another command is run, with these of its variables, but not what it is given.
    pub(crate) fn with_settings_of(self, other: &Command, env: Vec<(&String, &String)>) -> Command {
        Command {
            args: self.args,
            env: env
                .into_iter()
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
            stdin: None,
            code: None,
            ..other.clone()
        }
    }

    /// For a backend of ours: only [`Sandbox`] can give a command files.
    pub(crate) fn check_bare(&self) -> Result<()> {
        match self.stdin.is_some() || self.code.is_some() {
            true => Err(Error::new(
                ErrorKind::Unsupported,
                "v1 has no stdin and no source code: Sandbox::exec sends them as files",
            )),
            false => Ok(()),
        }
    }
}

fn refuse_nul(text: &str, what: impl Fn() -> String) -> Result<()> {
    match text.contains('\0') {
        true => Err(Error::invalid(format!("{} contains a NUL byte", what()))),
        false => Ok(()),
    }
}

fn refuse_long(length: usize, what: impl Fn() -> String) -> Result<()> {
    match length > MAX_ARGUMENT {
        true => Err(Error::invalid(format!(
            "{} is {length} bytes long, the limit is {MAX_ARGUMENT}: write it to a file in the sandbox instead",
            what()
        ))),
        false => Ok(()),
    }
}

/// A time that is more than nothing and not absurd.
pub(crate) fn check_time(what: &str, time: Duration) -> Result<()> {
    if time.is_zero() {
        return Err(Error::invalid(format!("{what} is zero")));
    }
    if time > MAX_TIME {
        return Err(Error::invalid(format!(
            "{what} is {} s, the limit is 365 days",
            time.as_secs()
        )));
    }
    Ok(())
}

/// A path in the sandbox, for `workdir`, `dest` and `src`.
pub(crate) fn check_path(what: &str, path: &str) -> Result<()> {
    if path.is_empty() {
        return Err(Error::invalid(format!("{what} is an empty path")));
    }
    if path.len() > 4095 {
        return Err(Error::invalid(format!(
            "{what} is {} bytes long, the limit is 4095",
            path.len()
        )));
    }
    refuse_nul(path, || format!("{what} {:?}", one_line(path)))
}

/// A relative path in the sandbox is relative to `/workspace`.
pub(crate) fn absolute(path: &str) -> String {
    match path {
        _ if path.starts_with('/') => path.to_owned(),
        "" | "." => WORKSPACE.to_owned(),
        _ => format!("{WORKSPACE}/{path}"),
    }
}

/// Of the environment the names only: a value may be a secret.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("args", &self.args)
            .field("workdir", &self.workdir)
            .field("env", &self.env.keys())
            .field("timeout", &self.time_limit())
            .field("stdin", &self.stdin)
            .finish_non_exhaustive()
    }
}

/// The command in one line, for an error text.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&format!("{:?}", self.args)))
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Command {
    fn from(args: [S; N]) -> Command {
        args.into_iter().collect()
    }
}

impl<S: Into<String>> From<Vec<S>> for Command {
    fn from(args: Vec<S>) -> Command {
        args.into_iter().collect()
    }
}

impl<S: AsRef<str>> From<&[S]> for Command {
    fn from(args: &[S]) -> Command {
        args.iter().map(AsRef::as_ref).collect()
    }
}

impl<S: Into<String>> FromIterator<S> for Command {
    fn from_iter<I: IntoIterator<Item = S>>(args: I) -> Command {
        let mut command = Command::new("");
        command.args = args.into_iter().map(Into::into).collect();
        command
    }
}

impl Sandbox {
    /// Runs a command and waits for its end.
    ///
    /// Sends one exec. A command that fails is `Ok`: see [`Output::check`]. It is sent again only
    /// if it certainly did not start: the connection failed before the request was received, or
    /// the backend answered 503 or 429.
    ///
    /// The call returns at the latest 10 s after the command's own timeout (default 30 s),
    /// whatever the client's timeout is. With [`stdin`](Command::stdin) or [`code`](Command::code) there
    /// is an upload before that, and may be an exec after it that removes the files, of 20 s at most.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a command that can't be run anywhere,
    /// [`NotFound`](ErrorKind::NotFound), [`NotReady`](ErrorKind::NotReady),
    /// [`Unauthorized`](ErrorKind::Unauthorized) and [`Status`](ErrorKind::Status) if the backend
    /// refuses, [`Connect`](ErrorKind::Connect) if nothing was sent,
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if it was and no whole answer came, and
    /// [`Protocol`](ErrorKind::Protocol) if the command ran and its answer is not one of v1.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let out = sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    /// assert_eq!((out.exit_code(), &*out.stdout(), &*out.stderr()), (3, "out\n", "err\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn exec(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        self.named("exec in", || {
            command.check()?;
            match command.stdin.is_some() || command.code.is_some() {
                true => self.exec_staged(&command),
                false => Ok(self
                    .backend()
                    .exec(self.session_id(), &command)?
                    .of(&command)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(command: Command) -> String {
        let error = command.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    }

    #[test]
    fn what_no_backend_can_run_is_refused_by_name() {
        assert!(refusal(Vec::<String>::new().into()).contains("the command is empty"));
        assert!(refusal(Command::new("")).contains("empty string"));
        assert!(refusal(["a", "b\0c"].into()).contains("argument 1 of the command contains a NUL"));
        assert!(
            refusal(Command::new("a").env("A=B", "")).contains("\"A=B\": the name contains '='")
        );
        assert!(refusal(Command::new("a").env("", "x")).contains("empty name"));
        assert!(refusal(Command::new("a").env("A\0", "x")).contains("NUL"));
        assert!(refusal(Command::new("a").env("A", "x\0")).contains("NUL"));
        assert!(refusal(Command::new("a").workdir("")).contains("workdir is an empty path"));
        assert!(refusal(Command::new("a").workdir("x".repeat(5000))).contains("5000 bytes"));
        let long = refusal(Command::new("a").arg("x".repeat(MAX_ARGUMENT + 1)));
        assert!(
            long.contains("131072 bytes long") && long.contains("write it to a file"),
            "{long}"
        );
        assert!(refusal(Command::new("a").env("A", "x".repeat(MAX_ARGUMENT))).contains("131073"));
        Command::new("a")
            .arg("x".repeat(MAX_ARGUMENT))
            .check()
            .unwrap();
    }

    #[test]
    fn zero_and_absurd_timeouts_are_refused() {
        assert!(refusal(Command::new("a").timeout(Duration::ZERO)).contains("timeout is zero"));
        assert!(refusal(Command::new("a").timeout(Duration::MAX)).contains("365 days"));
        Command::new("a")
            .timeout(Duration::from_nanos(1))
            .check()
            .unwrap();
    }

    #[test]
    fn relative_workdirs_are_in_the_workspace() {
        assert_eq!(
            Command::new("a").workdir("src").working_directory(),
            "/workspace/src"
        );
        assert_eq!(
            Command::new("a").workdir(".").working_directory(),
            "/workspace"
        );
        assert_eq!(
            Command::new("a").workdir("/tmp").working_directory(),
            "/tmp"
        );
    }
}
