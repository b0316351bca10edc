//! What a command is given as files: its standard input and its source code.
//!
//! v1 sends neither, so they are uploaded to a directory of their own beside the command, which a
//! small `sh` script starts. They are gone when the call returns.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, WORKSPACE, absolute};
use crate::files::Contents;
use crate::os::random::temporary_name;
use crate::output::Output;
use crate::sandbox::Sandbox;

/// What stands for the source file in a [`Language`]'s command.
const FILE: &str = "{file}";

/// Puts `$nx_file` where `{file}` stands, in the `$nx_count` arguments after the first `$nx_skip`.
macro_rules! fill {
    () => {
        r#"
if [ "$nx_count" != 0 ]; then
  nx_mark='{file}' nx_at=0 nx_words=
  while [ $nx_at -lt $((nx_skip + nx_count)) ]; do
    nx_word=$1
    shift
    if [ $nx_at -ge "$nx_skip" ]; then
      case $nx_word in
        *"$nx_mark"*) nx_word=${nx_word%%"$nx_mark"*}$nx_file${nx_word#*"$nx_mark"};;
      esac
    fi
    eval "nx_word_$nx_at=\$nx_word"
    nx_words="$nx_words \"\$nx_word_$nx_at\""
    nx_at=$((nx_at + 1))
  done
  eval "set -- $nx_words \"\$@\""
fi
"#
    };
}
pub(crate) use fill;

/// `$1`: the directory of the files, then what [`fill!`] takes, `$6`: the directory to run in. Without
/// source code, what was uploaded is removed before the command begins. What goes wrong before that is
/// told by exit code 126 and the directory's name in the last line.
const RUN: &str = concat!(
    r#"
nx_token=$1 nx_dir=$PWD/$1 nx_file=$PWD/$1/$2 nx_skip=$4 nx_count=$5 nx_workdir=$6
fail() { echo "$nx_token: $1" >&2; exit 126; }
if [ "$3" = stdin ]; then
  [ -r "$nx_dir/stdin" ] || fail stdin
  exec <"$nx_dir/stdin"
fi
shift 6
[ "$nx_count" != 0 ] || rm -rf "$nx_dir" 2>/dev/null
cd -P "$nx_workdir" 2>/dev/null || fail workdir
unset OLDPWD
"#,
    fill!(),
    r#"
exec "$@"
"#
);

/// How long the calls may take in the sandbox that tidy up.
const TIDY_TIMEOUT: Duration = Duration::from_secs(10);

/// Variables that a shell does not hand on as they came, or that change what our scripts do.
const SHELLS_OWN: [&str; 31] = [
    "BASH",
    "BASHOPTS",
    "BASHPID",
    "BASH_ARGV0",
    "BASH_COMMAND",
    "BASH_SUBSHELL",
    "BASH_VERSINFO",
    "BASH_VERSION",
    "CDPATH",
    "ENV",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "IFS",
    "LINENO",
    "OLDPWD",
    "OPTARG",
    "OPTERR",
    "OPTIND",
    "PATH",
    "POSIXLY_CORRECT",
    "PPID",
    "PS1",
    "PS2",
    "PS4",
    "PWD",
    "RANDOM",
    "SHLVL",
    "SRANDOM",
    "SHELLOPTS",
    "UID",
];

/// Whether a shell leaves a variable of that name alone.
fn passes_a_shell(name: &str) -> bool {
    let mut chars = name.bytes();
    let first = |b: u8| b == b'_' || b.is_ascii_alphabetic();
    let is_identifier =
        chars.next().is_some_and(first) && chars.all(|b| first(b) || b.is_ascii_digit());
    is_identifier && !name.starts_with("nx_") && !SHELLS_OWN.contains(&name)
}

/// What a command reads on its standard input: bytes, or all that a reader gives.
///
/// ```
/// use noxrunner::Stdin;
///
/// let text = Stdin::from("3\n1\n2\n");
/// let file = Stdin::reader(std::io::repeat(b'x'));
/// assert_eq!(format!("{text:?}, {file:?}"), "Stdin(6 bytes), Stdin(a reader)");
/// ```
#[derive(Clone)]
pub struct Stdin(Source);

#[derive(Clone)]
enum Source {
    Bytes(Arc<[u8]>),
    /// None once it was read.
    Reader(Arc<Mutex<Option<Box<dyn Read + Send>>>>),
}

impl Stdin {
    /// All that a reader gives, like a file. It can be read once: a clone of the command can't be run
    /// again.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Command, Stdin};
    /// use std::io::Read;
    ///
    /// let much = Stdin::reader(std::io::repeat(b'x').take(1_000_000));
    /// let out = sandbox.exec(Command::from(["wc", "-c"]).stdin(much))?;
    /// assert_eq!(out.stdout().trim(), "1000000");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn reader(reader: impl Read + Send + 'static) -> Stdin {
        Stdin(Source::Reader(Arc::new(Mutex::new(Some(Box::new(reader))))))
    }

    fn contents(&self) -> Result<Contents<'_>> {
        match &self.0 {
            Source::Bytes(bytes) => Ok((&**bytes).into()),
            Source::Reader(reader) => {
                let taken = reader.lock().unwrap_or_else(PoisonError::into_inner).take();
                let reader = taken.ok_or_else(|| {
                    Error::invalid("the reader of the command's stdin was read by an earlier run")
                })?;
                Ok(Contents::reader(reader))
            }
        }
    }
}

impl<T: Into<Vec<u8>>> From<T> for Stdin {
    fn from(bytes: T) -> Stdin {
        Stdin(Source::Bytes(bytes.into().into()))
    }
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Bytes(bytes) => write!(f, "Stdin({} bytes)", bytes.len()),
            Source::Reader(_) => f.write_str("Stdin(a reader)"),
        }
    }
}

/// How source code is run: the name of its file, and the command, in which `{file}` stands for it.
///
/// ```
/// use noxrunner::{Command, Language};
///
/// let c = Language::new("main.c", ["sh", "-c", "cc -O2 -o /tmp/main \"$0\" && exec /tmp/main", "{file}"])?;
/// assert_eq!(c.file_name(), "main.c");
/// assert!(Language::new("main.rb", ["ruby"]).is_err());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Language {
    file_name: Cow<'static, str>,
    command: Cow<'static, [Cow<'static, str>]>,
}

impl Language {
    /// `python3 main.py`
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// assert_eq!(sandbox.run_code(Language::PYTHON, "print(6 * 7)")?.stdout(), "42\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub const PYTHON: Language =
        Language::of("main.py", &[Cow::Borrowed("python3"), Cow::Borrowed(FILE)]);
    /// `node main.js`
    ///
    /// ```
    /// assert_eq!(noxrunner::Language::NODE.file_name(), "main.js");
    /// ```
    pub const NODE: Language =
        Language::of("main.js", &[Cow::Borrowed("node"), Cow::Borrowed(FILE)]);
    /// `sh main.sh`
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// assert_eq!(sandbox.run_code(Language::SH, "echo $((6 * 7))")?.stdout(), "42\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub const SH: Language = Language::of("main.sh", &[Cow::Borrowed("sh"), Cow::Borrowed(FILE)]);
    /// `bash main.bash`
    ///
    /// ```
    /// assert_eq!(noxrunner::Language::BASH.file_name(), "main.bash");
    /// ```
    pub const BASH: Language =
        Language::of("main.bash", &[Cow::Borrowed("bash"), Cow::Borrowed(FILE)]);

    const fn of(file_name: &'static str, command: &'static [Cow<'static, str>]) -> Language {
        Language {
            file_name: Cow::Borrowed(file_name),
            command: Cow::Borrowed(command),
        }
    }

    /// A language of one's own. `{file}` in an argument, once in each, stands for the source file's path.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if no argument has `{file}`, or the file name is not a
    /// plain one.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// let awk = Language::new("main.awk", ["awk", "-f", "{file}"])?;
    /// assert_eq!(sandbox.run_code(awk, "BEGIN { print 6 * 7 }")?.stdout(), "42\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn new<S: Into<String>>(
        file_name: impl Into<String>,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Language> {
        let file_name = file_name.into();
        if matches!(&*file_name, "" | "." | ".." | "stdin") || file_name.contains(['/', '\0']) {
            return Err(Error::invalid(format!(
                "{:?} is no plain name for a source file",
                one_line(&file_name)
            )));
        }
        let command: Vec<Cow<'static, str>> =
            command.into_iter().map(|arg| arg.into().into()).collect();
        if !command.iter().any(|arg| arg.contains(FILE)) {
            let text = format!("no argument of the command for {file_name:?} has {FILE}");
            return Err(Error::invalid(text));
        }
        Ok(Language {
            file_name: file_name.into(),
            command: command.into(),
        })
    }

    /// What the source file is called.
    ///
    /// ```
    /// assert_eq!(noxrunner::Language::PYTHON.file_name(), "main.py");
    /// ```
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.file_name
    }
}

/// The source code of a [`Command::code`].
#[derive(Clone)]
pub(crate) struct Code {
    file_name: String,
    source: Arc<[u8]>,
    /// How many of the command's arguments are the language's.
    arguments: usize,
}

impl Command {
    /// Source code to be run: a file of it is made for the run, so it may be of any length, tracebacks
    /// name its lines, and the exit code is its own. What [`arg`](Command::arg) adds is given to it.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Command, Language};
    ///
    /// let source = "read number; echo $((number * $1))";
    /// let out = sandbox.exec(Command::code(Language::SH, source).arg("7").stdin("6\n"))?;
    /// assert_eq!(out.stdout(), "42\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn code(language: Language, source: impl Into<Vec<u8>>) -> Command {
        let mut command: Command = language.command.iter().map(|arg| &**arg).collect();
        command.code = Some(Code {
            file_name: language.file_name.into_owned(),
            source: source.into().into(),
            arguments: language.command.len(),
        });
        command
    }
}

impl Sandbox {
    /// Runs source code and waits for its end: [`exec`](Sandbox::exec) of a [`Command::code`], which has
    /// a time limit, arguments, an environment and standard input to set.
    ///
    /// Sends an upload, an exec, and an exec that removes the file. Needs `sh` in the sandbox. The file is
    /// in a directory of its own, which is where Python looks for modules first: for those of the
    /// workspace, set `PYTHONPATH`.
    ///
    /// # Errors
    ///
    /// As [`exec`](Sandbox::exec) and [`write`](Sandbox::write). Code that fails is `Ok`.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// let out = sandbox.run_code(Language::PYTHON, "import sys\nprint(6 * 7)\nsys.exit(3)\n")?;
    /// assert_eq!((out.exit_code(), &*out.stdout()), (3, "42\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn run_code(&self, language: Language, source: impl Into<Vec<u8>>) -> Result<Output> {
        self.exec(Command::code(language, source))
    }

    /// Runs a command that is given files.
    pub(crate) fn exec_staged(&self, command: &Command) -> Result<Output> {
        let (base, workdir) = base_and_below(&command.working_directory());
        let dir = temporary_name();
        let mut staged = Staged::new(command)?;
        let run = staged.command(&["sh", "-c", RUN, "sh", &dir], &[&workdir]);
        let run = run.workdir(base);
        run.check()?;
        let files = std::mem::take(&mut staged.files);
        let sent = self.send_staged(files, &format!("{base}/{dir}"));
        let result = sent.and_then(|()| self.backend().exec(self.session_id(), &run));
        let result = result.map(|out| out.of(command));
        // Code is read while it runs, and what may not have begun has removed nothing.
        let begun = |out: &Output| !out.timed_out() && !matches!(out.exit_code(), 126 | 127);
        if command.code.is_some() || !result.as_ref().is_ok_and(begun) {
            self.remove_staged(&dir, base);
        }
        let out = result?;
        if matches!(out.exit_code(), 126 | 127) {
            self.check_wrapper(&out, &dir, command)?;
        }
        Ok(out)
    }

    /// Whether the command itself has answered so.
    fn check_wrapper(&self, out: &Output, dir: &str, command: &Command) -> Result<()> {
        let stderr = out.stderr();
        let last = stderr.trim_end().lines().next_back().unwrap_or_default();
        let (kind, text) = match last.strip_prefix(dir) {
            Some(": workdir") => {
                let shown = one_line(&command.working_directory());
                let text = format!("workdir {shown:?} is no directory that can be entered");
                (ErrorKind::NotFound, text)
            }
            Some(_) => {
                let text = "the command's stdin was uploaded, and is not there".to_owned();
                (ErrorKind::Protocol, text)
            }
            None => {
                let shell = Command::from(["sh", "-c", ":"]).timeout(TIDY_TIMEOUT);
                let shell = self.backend().exec(self.session_id(), &shell)?;
                if !matches!(shell.exit_code(), 126 | 127) {
                    return Ok(());
                }
                let text = "stdin and source code need sh in the sandbox, which has none";
                (ErrorKind::Unsupported, text.to_owned())
            }
        };
        Err(Error::new(kind, text))
    }

    /// Uploads what a command is given.
    pub(crate) fn send_staged(
        &self,
        files: Vec<(Vec<u8>, Contents<'_>)>,
        place: &str,
    ) -> Result<()> {
        let error = match self.send(files, place) {
            Err(e) if e.is_not_found() => e,
            result => return result,
        };
        let probe = Command::new("true").timeout(TIDY_TIMEOUT);
        match self.backend().exec(self.session_id(), &probe) {
            Ok(_) => {
                let text = "stdin and source code are uploaded, and the backend has no upload";
                Err(Error::new(ErrorKind::Unsupported, text).with_source(error))
            }
            Err(_) => Err(error),
        }
    }

    /// Removes files that an error may have left. Whoever has a result is not told if they stay.
    pub(crate) fn remove_staged(&self, dir: &str, workdir: &str) {
        let remove = Command::from(["rm", "-rf", "--", dir]).timeout(TIDY_TIMEOUT);
        let removed = self
            .backend()
            .exec(self.session_id(), &remove.workdir(workdir));
        if let Err(e) = removed.and_then(Output::check) {
            log::warn!("cannot remove {workdir}/{dir} in the sandbox: {e}");
        }
    }
}

/// What a command is given, ready to be uploaded and run.
pub(crate) struct Staged<'a> {
    pub(crate) files: Vec<(Vec<u8>, Contents<'a>)>,
    command: &'a Command,
}

impl<'a> Staged<'a> {
    pub(crate) fn new(command: &'a Command) -> Result<Staged<'a>> {
        let mut files = Vec::new();
        if let Some(code) = &command.code {
            files.push((code.file_name.clone().into(), (&*code.source).into()));
        }
        if let Some(stdin) = &command.stdin {
            files.push((b"stdin".to_vec(), stdin.contents()?));
        }
        Ok(Staged { files, command })
    }

    /// One of the scripts, with its own arguments before and after what [`fill!`] takes: the source
    /// file's name, whether there is a standard input, how many arguments stand before those of the
    /// language, and how many these are. Then comes the command, with `env` before it for variables that
    /// would not pass the shell.
    pub(crate) fn command(&self, before: &[&str], after: &[&str]) -> Command {
        let command = self.command;
        let (plain, odd): (Vec<_>, Vec<_>) = command
            .environment()
            .iter()
            .partition(|(name, _)| passes_a_shell(name));
        let mut words: Vec<String> = odd.iter().map(|(n, v)| format!("{n}={v}")).collect();
        if !words.is_empty() {
            words.insert(0, "env".to_owned());
        }
        let skip = words.len().to_string();
        let code = command.code.as_ref();
        let count = code.map_or(0, |code| code.arguments).to_string();
        let name = code.map_or("-", |code| &code.file_name);
        let input = command.stdin.as_ref().map_or("-", |_| "stdin");
        let own = [before, &[name, input, &skip, &count], after].concat();
        let own = own.into_iter().map(str::to_owned);
        let script: Command = own
            .chain(words)
            .chain(command.args().iter().cloned())
            .collect();
        script.with_settings_of(command, plain)
    }
}

/// A directory that every backend has, and a path from there. What is below `/workspace` and `/tmp` is
/// named relative to it: a backend without isolation has these directories elsewhere.
pub(crate) fn base_and_below(path: &str) -> (&'static str, String) {
    let path = absolute(path);
    for own in [WORKSPACE, "/tmp"] {
        match path.strip_prefix(own) {
            Some("") => return (own, ".".to_owned()),
            Some(below) if below.starts_with('/') => return (own, format!(".{below}")),
            _ => {}
        }
    }
    (WORKSPACE, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_what_every_backend_has() {
        assert_eq!(base_and_below("src"), ("/workspace", "./src".to_owned()));
        assert_eq!(base_and_below("/tmp"), ("/tmp", ".".to_owned()));
        assert_eq!(base_and_below("/tmpx"), ("/workspace", "/tmpx".to_owned()));
    }

    #[test]
    fn a_reader_is_read_once() {
        let stdin = Stdin::reader(&b"x"[..]);
        assert!(stdin.contents().is_ok());
        let error = stdin.clone().contents().unwrap_err();
        assert!(error.to_string().contains("earlier run"), "{error}");
    }

    #[test]
    fn a_source_file_has_a_plain_name_and_is_used() {
        for name in ["", ".", "..", "a/b", "stdin"] {
            assert!(Language::new(name, ["x", FILE]).is_err(), "{name}");
        }
        assert!(Language::new("a.rb", ["ruby", "-w", FILE]).is_ok());
    }

    #[test]
    fn what_a_shell_would_change_goes_around_it() {
        for name in ["A", "_", "a_1", "file", "HOME"] {
            assert!(passes_a_shell(name), "{name}");
        }
        for name in ["", "1a", "a.b", "A-B", "ä", "IFS", "PATH", "nx_dir"] {
            assert!(!passes_a_shell(name), "{name}");
        }
        let command = Command::code(Language::SH, "x")
            .arg("a")
            .env("IFS", ":")
            .env("K", "v");
        let staged = Staged::new(&command).unwrap().command(&["b"], &["c"]);
        let words = [
            "b", "main.sh", "-", "2", "2", "c", "env", "IFS=:", "sh", FILE, "a",
        ];
        assert_eq!(staged.args(), words);
        assert_eq!(staged.environment().keys().collect::<Vec<_>>(), ["K"]);
    }
}
