//! Standard input and source code of commands.
//!
//! NoxRunner v1 has no field for either, so both are uploaded to a temporary directory and a small
//! `sh` script starts the command from there. The directory is removed before the call returns.

use std::collections::BTreeMap;

use crate::archive::{Contents, archive_contents};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::language::FILE_PLACEHOLDER;
use crate::os::random::temporary_name;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::sandbox_path::relative_to_base;
use crate::script::{CLEANUP_TIMEOUT, SHELL, remove_temporary, shell_quote};

/// Starts a command with its files.
///
/// `$1` is the directory of the files, `$2` and `$3` are those of [`StagedFiles::wrap`], `$4` is the
/// working directory, then follow the other arguments. Exit code 126 with the name of the directory in the
/// last line of stderr means that the script failed before the command started. Its own variables
/// begin with `nx_`, because it has the command's environment.
const RUN: &str = r#"
nx_token=$1 nx_dir=$PWD/$1 nx_file=$PWD/$1/$2 nx_workdir=$4
fail() { echo "$nx_token: $1" >&2; exit 126; }
if [ "$3" = stdin ]; then
  [ -r "$nx_dir/stdin" ] || fail stdin
  exec <"$nx_dir/stdin"
fi
# Source code is read while it runs. The caller removes it.
[ "$2" != - ] || rm -rf "$nx_dir" 2>/dev/null
shift 4
cd -P "$nx_workdir" 2>/dev/null || fail workdir
unset OLDPWD
{prepend}
exec "$@"
"#;

/// Exit code that some servers report for every failure.
const ANY_FAILURE: i32 = -1;

/// Returns true if a shell passes a variable of this name to its children unchanged. The others bypass
/// the script.
fn passes_through_shell(name: &str) -> bool {
    match name {
        // Set, dropped or interpreted by a shell.
        "BASH" | "BASHOPTS" | "BASHPID" | "BASH_ARGV0" | "BASH_COMMAND" | "BASH_SUBSHELL"
        | "BASH_VERSINFO" | "BASH_VERSION" | "CDPATH" | "ENV" | "EPOCHREALTIME"
        | "EPOCHSECONDS" | "EUID" | "IFS" | "LINENO" | "OLDPWD" | "OPTARG" | "OPTERR"
        | "OPTIND" | "PATH" | "POSIXLY_CORRECT" | "PPID" | "PS1" | "PS2" | "PS4" | "PWD"
        | "RANDOM" | "SHLVL" | "SRANDOM" | "SHELLOPTS" | "UID" => return false,
        _ if name.starts_with("nx_") => return false,
        _ => {}
    }
    let mut bytes = name.bytes();
    let is_start = |b: u8| b == b'_' || b.is_ascii_alphabetic();
    bytes.next().is_some_and(is_start) && bytes.all(|b| is_start(b) || b.is_ascii_digit())
}

/// Runs a command that needs files. `call` runs a command without files.
pub(super) fn exec(
    sandbox: &Sandbox,
    command: &Command,
    call: impl FnOnce(&Command) -> Result<Output>,
) -> Result<Output> {
    let (base, workdir) = relative_to_base(command.get_workdir());
    let dir = temporary_name();
    let streamed = command.stdin.clone();
    let streamed = streamed.filter(|_| sandbox.backend().streams_stdin());
    let mut staged = StagedFiles::new(command, streamed.is_none())?;
    let mut script = staged.wrap(RUN, &dir, &workdir).workdir(base);
    script.check()?;
    script.stdin = streamed;
    let result = staged
        .upload(sandbox, &format!("{base}/{dir}"))
        .and_then(|()| call(&script));
    // The script has removed the files, unless they are source code or it may not have started.
    let started =
        |out: &Output| !out.timed_out() && !matches!(out.exit_code(), 126 | 127 | ANY_FAILURE);
    if command.code.is_some() || !result.as_ref().is_ok_and(started) {
        remove_temporary(sandbox, &dir, base);
    }
    let out = result?;
    if matches!(out.exit_code(), 126 | 127 | ANY_FAILURE) {
        check_script(sandbox, &out, &dir, command)?;
    }
    Ok(out)
}

/// Fails if exit code 126 or 127 came from the script or the lack of a shell, and not from the command.
fn check_script(sandbox: &Sandbox, out: &Output, dir: &str, command: &Command) -> Result<()> {
    let stderr = out.stderr();
    let last = stderr.trim_end().lines().next_back().unwrap_or_default();
    match last.strip_prefix(dir) {
        Some(": workdir") => {
            let workdir = one_line(command.get_workdir());
            let message = format!("workdir {workdir:?} does not exist or cannot be entered");
            Err(Error::invalid(message))
        }
        Some(_) => {
            let message = "the backend accepted the upload of stdin but did not store it";
            Err(Error::new(ErrorKind::Protocol, message))
        }
        None if out.exit_code() == ANY_FAILURE || has_shell(sandbox)? => Ok(()),
        None => {
            let message = "stdin and source code need `sh` in the sandbox";
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

fn has_shell(sandbox: &Sandbox) -> Result<bool> {
    let probe = Command::from([SHELL, "-c", ":"]).timeout(CLEANUP_TIMEOUT);
    let out = sandbox.backend().exec(sandbox.session_id(), &probe)?;
    Ok(!matches!(out.exit_code(), 126 | 127))
}

/// The files of a command, to be uploaded before it runs.
pub(crate) struct StagedFiles<'a> {
    files: Vec<(Vec<u8>, Contents<'a>)>,
    command: &'a Command,
    /// One of the files is the command's stdin.
    has_stdin: bool,
}

impl<'a> StagedFiles<'a> {
    /// `with_stdin` is false if the backend streams stdin.
    pub(crate) fn new(command: &'a Command, with_stdin: bool) -> Result<StagedFiles<'a>> {
        let mut files = Vec::new();
        if let Some(code) = &command.code {
            files.push((code.file_name.clone().into(), (&*code.text).into()));
        }
        let stdin = command.stdin.as_ref().filter(|_| with_stdin);
        if let Some(stdin) = stdin {
            files.push((b"stdin".to_vec(), stdin.contents()?));
        }
        Ok(StagedFiles {
            files,
            command,
            has_stdin: stdin.is_some(),
        })
    }

    /// Returns the command that runs a script, which runs the original command.
    ///
    /// The script's arguments are the directory, the name of the source file or `-`, `stdin` or `-`, the
    /// option, and the arguments of the original command. The line `{prepend}` of the script is replaced
    /// with one that puts `env` and its arguments, their number in `nx_skip`, and the command of the
    /// language in front of `"$@"`. It reads the path of the source file from `nx_file`.
    pub(crate) fn wrap(&self, script: &str, dir: &str, option: &str) -> Command {
        let command = self.command;
        let (plain, bypassing): (BTreeMap<_, _>, BTreeMap<_, _>) = command
            .get_envs()
            .clone()
            .into_iter()
            .partition(|(name, _)| passes_through_shell(name));
        let mut words: Vec<String> = Vec::new();
        if !bypassing.is_empty() {
            words.push("env".to_owned());
            let assignment = |(name, value)| shell_quote(&format!("{name}={value}")).into_owned();
            words.extend(bypassing.iter().map(assignment));
        }
        let skip = words.len();
        let code = command.code.as_ref();
        let language_args = code.map_or(0, |code| code.language_args);
        let (language, rest) = command.get_args().split_at(language_args);
        words.extend(language.iter().map(|word| quote_with_file(word)));
        let prepend = format!("nx_skip={skip}; set -- {} \"$@\"", words.join(" "));
        let script = script.replacen("{prepend}", &prepend, 1);
        let file_name = code.map_or("-", |code| &code.file_name);
        let input = if self.has_stdin { "stdin" } else { "-" };
        let args = [SHELL, "-c", &script, SHELL, dir, file_name, input, option];
        let args = args.into_iter().map(str::to_owned);
        command.derive(args.chain(rest.iter().cloned()).collect(), plain)
    }

    /// Uploads the files to a directory, once.
    pub(crate) fn upload(&mut self, sandbox: &Sandbox, dest: &str) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let archive = archive_contents(std::mem::take(&mut self.files))?;
        let upload = archive.upload()?;
        sandbox.send_upload(dest, upload)
    }
}

/// Quotes a word of a language's command. `{file}` becomes `$nx_file`.
fn quote_with_file(word: &str) -> String {
    match word.split_once(FILE_PLACEHOLDER) {
        Some((before, after)) => {
            let [before, after] = [before, after].map(|part| match part {
                "" => "".into(),
                part => shell_quote(part),
            });
            format!("{before}\"$nx_file\"{after}")
        }
        None => shell_quote(word).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Language;

    #[test]
    fn variables_of_the_shell_bypass_it() {
        for name in ["A", "_", "a_1", "file", "HOME"] {
            assert!(passes_through_shell(name), "{name}");
        }
        for name in ["", "1a", "a.b", "A-B", "ä", "IFS", "PATH", "nx_dir"] {
            assert!(!passes_through_shell(name), "{name}");
        }
    }

    #[test]
    fn wrap_prepends_words_and_file() {
        let source = "nx_file='/a b/$f'\n{prepend}\nprintf '%s|' \"$nx_skip\" \"$@\"";
        let language = Language::new("f", ["p", "{file}", "-x{file}y", "two  words"]).unwrap();
        let command = Command::code(language, "x")
            .args(["{file}", "", "*"])
            .env("IFS", "a'b {prepend}")
            .env("K", "v");
        let wrapped = StagedFiles::new(&command, true)
            .unwrap()
            .wrap(source, "d", "o");
        assert_eq!(wrapped.get_envs().keys().collect::<Vec<_>>(), ["K"]);
        let out = std::process::Command::new("sh")
            .args(&wrapped.get_args()[1..])
            .output()
            .unwrap();
        let expected = "2|env|IFS=a'b {prepend}|p|/a b/$f|-x/a b/$fy|two  words|d|f|-|o|{file}||*|";
        assert_eq!(String::from_utf8_lossy(&out.stdout), expected);
    }
}
