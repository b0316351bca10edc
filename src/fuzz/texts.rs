//! Short texts: paths, times, and words for a shell.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::input::Input;
use super::printed::check_shown;
use crate::os::time;
use crate::sandbox_path::{SandboxPath, relative_to_base};
use crate::script::shell_quote;

/// Resolves a path in a sandbox. The result is absolute and normal, and all of its forms name the same path.
pub fn paths(data: &[u8]) {
    let path = match SandboxPath::new("path", OsStr::from_bytes(data)) {
        Ok(path) => path,
        Err(e) => {
            check_shown(&e);
            let has_parent = data.split(|byte| *byte == b'/').any(|part| part == b"..");
            assert!(data.is_empty() || data.contains(&0) || has_parent || data.len() > 4000);
            return;
        }
    };
    let (parent, rest) = path.split();
    let bytes = [parent.trim_end_matches('/').as_bytes(), b"/", &rest].concat();
    assert!(bytes.len() <= 4095 && !bytes.contains(&0));
    let mut parts = bytes.split(|byte| *byte == b'/');
    assert_eq!(parts.next(), Some(&b""[..]));
    let is_normal = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    assert!(bytes == b"/" || parts.all(is_normal), "{bytes:?}");
    let again = SandboxPath::new("path", OsStr::from_bytes(&bytes));
    assert_eq!(again.ok().as_ref(), Some(&path));

    let below = path.below_workspace();
    assert_eq!(below.is_some(), bytes.starts_with(b"/workspace/"));
    let Ok(text) = path.as_text() else {
        assert!(std::str::from_utf8(data).is_err());
        return;
    };
    assert_eq!(text.as_bytes(), bytes);
    let (base, relative) = relative_to_base(text);
    assert!(relative.starts_with(['.', '/']), "{relative:?}");
    let joined = if relative.starts_with('/') {
        relative
    } else {
        format!("{base}/{relative}")
    };
    assert_eq!(SandboxPath::new("path", joined).ok(), Some(path));
}

/// Parses and formats times. A time that is formatted parses as itself, without the fraction.
pub fn timestamps(data: &[u8]) {
    let seconds = Input(data).u64() as i64;
    let parsed = std::str::from_utf8(data).ok().and_then(time::parse);
    let times = [parsed, time::from_unix(seconds)];
    for (at, time) in times.into_iter().enumerate() {
        let Some(time) = time else { continue };
        let text = time::format(time);
        let Some(again) = time::parse(&text) else {
            assert!(
                text.len() > "2026-01-02T12:34:56Z".len() || text.starts_with('-'),
                "{text}"
            );
            continue;
        };
        assert_eq!(time::format(again), text);
        let apart = distance(time, again);
        assert!(apart < Duration::from_secs(1), "{text}: {apart:?}");
        assert!(at == 0 || again == time, "{text}");
    }
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    let after = one.duration_since(other);
    after.unwrap_or_else(|e| e.duration())
}

/// Quotes words. A real `sh` reads the same words.
pub fn shell_words(data: &[u8]) {
    static SHELL: OnceLock<Mutex<Shell>> = OnceLock::new();
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let words: Vec<_> = text.split('\0').collect();
    let line: String = words
        .iter()
        .map(|word| format!(" {}", shell_quote(word)))
        .collect();
    let shell = SHELL.get_or_init(|| Mutex::new(Shell::start()));
    let mut shell = shell.lock().unwrap_or_else(PoisonError::into_inner);
    for word in shell.words(&line, words.len()).iter().zip(&words) {
        assert_eq!(word.0, word.1.as_bytes());
    }
}

/// A shell that runs one line after the other.
struct Shell {
    stdin: ChildStdin,
    stdout: BufReader<UnixStream>,
}

impl Shell {
    fn start() -> Shell {
        let start = || {
            let (ours, theirs) = UnixStream::pair()?;
            // An open quote would wait forever.
            ours.set_read_timeout(Some(Duration::from_secs(10)))?;
            let child = Command::new("sh")
                .stdin(Stdio::piped())
                .stdout(OwnedFd::from(theirs))
                .spawn()?;
            Ok::<_, std::io::Error>((child.stdin, BufReader::new(ours)))
        };
        let (stdin, stdout) = start().expect("sh can be started");
        let stdin = stdin.expect("stdin is a pipe");
        Shell { stdin, stdout }
    }

    /// Returns the words of a line.
    fn words(&mut self, line: &str, count: usize) -> Vec<Vec<u8>> {
        let line = format!("printf '%s\\0'{line}\n");
        let sent = self.stdin.write_all(line.as_bytes());
        sent.expect("the shell is running");
        let mut word = || {
            let mut word = Vec::new();
            let read = self.stdout.read_until(0, &mut word);
            read.expect("the shell answers");
            assert_eq!(word.pop(), Some(0), "the shell has ended");
            word
        };
        (0..count).map(|_| word()).collect()
    }
}
