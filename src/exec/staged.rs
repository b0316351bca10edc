//! Standard input and source code of commands.
//!
//! NoxRunner v1 has no field for either, so both are uploaded to a temporary directory and a small
//! `sh` script starts the command from there. The directory is removed before the call returns.

use std::collections::BTreeMap;

use crate::archive::{Contents, archive_contents};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::os::random::temporary_name;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::sandbox_path::relative_to_base;
use crate::script::{CLEANUP_TIMEOUT, SHELL, remove_temporary};

/// Replaces `{file}` with `$nx_file` in `$nx_count` of the positional parameters, after the first
/// `$nx_skip`.
macro_rules! substitute_file {
    () => {
        r#"
nx_mark='{file}' nx_at=0
for nx_word do
  shift
  if [ $nx_at -ge "$nx_skip" ] && [ $nx_at -lt $((nx_skip + nx_count)) ]; then
    case $nx_word in
      *"$nx_mark"*) nx_word=${nx_word%%"$nx_mark"*}$nx_file${nx_word#*"$nx_mark"};;
    esac
  fi
  set -- "$@" "$nx_word"
  nx_at=$((nx_at + 1))
done
"#
    };
}
pub(crate) use substitute_file;

/// Starts a command with its files.
///
/// `$1` is the directory of the files, `$2` to `$5` are those of [`StagedFiles::wrap`], `$6` is the
/// working directory, then follows the command. Exit code 126 with the name of the directory in the
/// last line of stderr means that the script failed before the command started. Its own variables
/// begin with `nx_`, because it has the command's environment.
const RUN: &str = concat!(
    r#"
nx_token=$1 nx_dir=$PWD/$1 nx_file=$PWD/$1/$2 nx_skip=$4 nx_count=$5 nx_workdir=$6
fail() { echo "$nx_token: $1" >&2; exit 126; }
if [ "$3" = stdin ]; then
  [ -r "$nx_dir/stdin" ] || fail stdin
  exec <"$nx_dir/stdin"
fi
shift 6
# Source code is read while it runs. The caller removes it.
[ "$nx_count" != 0 ] || rm -rf "$nx_dir" 2>/dev/null
cd -P "$nx_workdir" 2>/dev/null || fail workdir
unset OLDPWD
"#,
    substitute_file!(),
    r#"
exec "$@"
"#
);

/// Variables that a shell sets, drops or interprets. They bypass the script.
const SHELL_VARIABLES: [&str; 31] = [
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

/// Returns true if a shell passes a variable of this name to its children unchanged.
fn passes_through_shell(name: &str) -> bool {
    let mut bytes = name.bytes();
    let is_start = |b: u8| b == b'_' || b.is_ascii_alphabetic();
    let is_identifier =
        bytes.next().is_some_and(is_start) && bytes.all(|b| is_start(b) || b.is_ascii_digit());
    is_identifier && !name.starts_with("nx_") && !SHELL_VARIABLES.contains(&name)
}

/// Runs a command that needs files.
pub(super) fn exec(sandbox: &Sandbox, command: &Command) -> Result<Output> {
    let (base, workdir) = relative_to_base(command.get_workdir());
    let dir = temporary_name();
    let mut staged = StagedFiles::new(command)?;
    let script = staged.wrap(&[SHELL, "-c", RUN, SHELL, &dir], &[&workdir]);
    let script = script.workdir(base);
    script.check()?;
    let result = staged
        .upload(sandbox, &format!("{base}/{dir}"))
        .and_then(|()| sandbox.backend().exec(sandbox.session_id(), &script));
    // The script has removed the files, unless they are source code or it may not have started.
    let started = |out: &Output| !out.timed_out() && !matches!(out.exit_code(), 126 | 127);
    if command.code.is_some() || !result.as_ref().is_ok_and(started) {
        remove_temporary(sandbox, &dir, base);
    }
    let out = result?;
    if matches!(out.exit_code(), 126 | 127) {
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
            Err(Error::new(ErrorKind::NotFound, message))
        }
        Some(_) => {
            let message = "the backend accepted the upload of stdin but did not store it";
            Err(Error::new(ErrorKind::Protocol, message))
        }
        None if has_shell(sandbox)? => Ok(()),
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
}

impl<'a> StagedFiles<'a> {
    pub(crate) fn new(command: &'a Command) -> Result<StagedFiles<'a>> {
        let mut files = Vec::new();
        if let Some(code) = &command.code {
            files.push((code.file_name.clone().into(), (&*code.text).into()));
        }
        if let Some(stdin) = &command.stdin {
            files.push((b"stdin".to_vec(), stdin.contents()?));
        }
        Ok(StagedFiles { files, command })
    }

    /// Returns the command that runs a script with the original command as its last arguments.
    ///
    /// The arguments of the script are `before`, the name of the source file or `-`, `stdin` or `-`,
    /// the number of words before the language's arguments and the number of these, and `after`.
    /// The command follows, behind `env` if variables must bypass the shell.
    pub(crate) fn wrap(&self, before: &[&str], after: &[&str]) -> Command {
        let command = self.command;
        let (plain, bypassing): (BTreeMap<_, _>, BTreeMap<_, _>) = command
            .get_envs()
            .clone()
            .into_iter()
            .partition(|(name, _)| passes_through_shell(name));
        let mut words: Vec<String> = Vec::new();
        if !bypassing.is_empty() {
            words.push("env".to_owned());
            words.extend(
                bypassing
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            );
        }
        let code = command.code.as_ref();
        let file_name = code.map_or("-", |code| &code.file_name);
        let input = command.stdin.as_ref().map_or("-", |_| "stdin");
        let skip = words.len().to_string();
        let count = code.map_or(0, |code| code.language_args).to_string();
        let mut args: Vec<String> = [before, &[file_name, input, &skip, &count], after]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        args.append(&mut words);
        args.extend_from_slice(command.get_args());
        command.derive(args, plain)
    }

    /// Uploads the files to a directory, once.
    pub(crate) fn upload(&mut self, sandbox: &Sandbox, dest: &str) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let archive = archive_contents(std::mem::take(&mut self.files))?;
        let upload = archive.upload()?;
        match sandbox.backend().upload(sandbox.session_id(), dest, upload) {
            // Either the sandbox or the call does not exist.
            Err(e) if e.is_not_found() && sandbox_exists(sandbox) => {
                let message = "stdin and source code need an upload, which the backend lacks";
                Err(Error::new(ErrorKind::Unsupported, message).with_source(e))
            }
            result => result,
        }
    }
}

fn sandbox_exists(sandbox: &Sandbox) -> bool {
    let probe = Command::new("true").timeout(CLEANUP_TIMEOUT);
    let result = sandbox.backend().exec(sandbox.session_id(), &probe);
    result.is_ok()
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
    fn wrap_puts_the_command_behind_the_script() {
        let command = Command::code(Language::SH, "x")
            .arg("a")
            .env("IFS", ":")
            .env("K", "v");
        let script = StagedFiles::new(&command).unwrap().wrap(&["b"], &["c"]);
        let words = [
            "b", "main.sh", "-", "2", "2", "c", "env", "IFS=:", "sh", "{file}", "a",
        ];
        assert_eq!(script.get_args(), words);
        assert_eq!(script.get_envs().keys().collect::<Vec<_>>(), ["K"]);
    }

    #[test]
    fn the_script_substitutes_the_file_in_the_arguments_of_the_language_only() {
        let script = concat!(
            "nx_file='/a b/$f' nx_skip=1 nx_count=2\n",
            substitute_file!(),
            r#"printf '%s|' "$@""#
        );
        let words = ["{file}", "-x{file}y", "plain  word", "{file}", "", "*"];
        let out = std::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .args(words)
            .output()
            .unwrap();
        let expected = "{file}|-x/a b/$fy|plain  word|{file}||*|";
        assert_eq!(String::from_utf8_lossy(&out.stdout), expected);
    }
}
