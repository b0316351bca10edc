//! Short texts: paths, quantities, times, and words for a shell.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::check_shown;
use super::input::Input;
use crate::os::time;
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
use crate::quantity::{parse_bytes, parse_cpu};
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
    let joined = match relative.starts_with('/') {
        true => relative,
        false => format!("{base}/{relative}"),
    };
    assert_eq!(SandboxPath::new("path", joined).ok(), Some(path));
}

/// Parses a quantity. The value agrees with that of a float, and parses as itself.
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
pub fn quantities(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parsed = parse_bytes("limit", text, 0);
    check_quantity(&parsed, text);
    if let Ok(bytes) = parsed {
        let again = parse_bytes("limit", &bytes.to_string(), bytes);
        assert_eq!(again.ok(), Some(bytes));
        assert!(parse_bytes("limit", text, bytes + 1).is_err());
    }
    let cpu = parse_cpu(text);
    check_quantity(
        &cpu,
        &match text.strip_suffix('m') {
            Some(millis) => millis.to_owned(),
            None => format!("{text}k"),
        },
    );
    if let Ok(millis) = cpu {
        assert_eq!(parse_cpu(&format!("{millis}m")).ok(), Some(millis));
    }
}

/// Compares a quantity with a float, where that is precise enough.
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
fn check_quantity(parsed: &crate::Result<u64>, text: &str) {
    let parsed = match parsed {
        Ok(parsed) => *parsed,
        Err(e) => return check_shown(e),
    };
    assert!((1..=i64::MAX as u64).contains(&parsed));
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let units = "m=1e-3|=1|k=1e3|M=1e6|G=1e9|T=1e12|P=1e15|E=1e18|\
                 Ki=1024|Mi=1048576|Gi=1073741824|Ti=1099511627776|Pi=1125899906842624|\
                 Ei=1152921504606846976";
    let mut units = units.split('|').filter_map(|unit| unit.split_once('='));
    let expected: f64 = match units.find(|(name, _)| *name == suffix) {
        Some((_, factor)) => {
            number.parse::<f64>().expect("it is a number")
                * factor.parse::<f64>().expect("it is a number")
        }
        None => text.parse().expect("it has an exponent"),
    };
    let difference = parsed as f64 - expected;
    let precision = expected * 1e-12;
    assert!(
        -precision <= difference && difference <= 1.0 + precision,
        "{text}: {parsed}"
    );
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
