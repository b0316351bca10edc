//! What is in a directory of the sandbox.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::{Command, check_path};
use crate::os::random::temporary_name;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::staging::base_and_below;

/// `$1`: the directory, `$2`: a file for what is found, or nothing. Each entry is printed as
/// `MODE SIZE TIME ./NAME//` and a newline, in base64; no name has a slash in it. Before and after stand
/// the lines `-` and `.`, without which it was cut.
const LIST: &str = r#"
LC_ALL=C
export LC_ALL
for tool in find stat base64; do
  command -v $tool >/dev/null || { echo $tool >&2; exit 43; }
done
[ -e "$1" ] || [ -L "$1" ] || exit 44
[ -d "$1" ] || exit 45
[ -z "$2" ] || exec >"$2" || exit 1
cd "$1" && [ -r . ] || { echo "it can't be read" >&2; exit 1; }
echo -
{ find . -mindepth 1 -maxdepth 1 -exec stat -c '%f %s %Y %n//' {} + || echo !; } | base64
echo .
"#;

/// One entry of a directory, as [`Sandbox::list`] finds it.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// sandbox.write("d/a.txt", "one")?;
/// let entry = &sandbox.list("d")?[0];
/// assert_eq!((entry.name(), entry.size()), ("a.txt".as_ref(), 3));
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: OsString,
    mode: u32,
    size: u64,
    modified: SystemTime,
}

/// What an [`Entry`] is.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::EntryKind;
///
/// sandbox.exec(["mkdir", "-p", "d/sub"])?;
/// assert_eq!(sandbox.list("d")?[0].kind(), EntryKind::Directory);
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, wherever it leads.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl Entry {
    /// Its name in the directory, which need not be UTF-8.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("d/a.txt", "one")?;
    /// let entry = &sandbox.list("d")?[0];
    /// assert_eq!(entry.name(), "a.txt");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// What it is. A link is a link: it is not followed.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::EntryKind;
    ///
    /// sandbox.exec(["ln", "-s", "/nowhere", "link"])?;
    /// assert_eq!(sandbox.list(".")?[0].kind(), EntryKind::Symlink);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        match self.mode & 0o170_000 {
            0o100_000 => EntryKind::File,
            0o040_000 => EntryKind::Directory,
            0o120_000 => EntryKind::Symlink,
            _ => EntryKind::Other,
        }
    }

    /// Its size in bytes; of a directory or a device that means nothing.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("d/a.txt", "one")?;
    /// let entry = &sandbox.list("d")?[0];
    /// assert_eq!(entry.size(), 3);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its permission bits, like 0o644, with setuid, setgid and sticky.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("d/a.txt", "one")?;
    /// let entry = &sandbox.list("d")?[0];
    /// assert_eq!(entry.mode(), 0o644);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode & 0o7777
    }

    /// When its contents changed last, in whole seconds.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// sandbox.write("d/a.txt", "one")?;
    /// let entry = &sandbox.list("d")?[0];
    /// assert!(entry.modified() <= std::time::SystemTime::now());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
}

impl Sandbox {
    /// What is in a directory, by name; hidden entries as well. A relative path is below `/workspace`.
    /// Sends one exec, and where there is too much for its answer three calls more. Needs `sh`,
    /// `find`, `stat` and `base64` in the sandbox, GNU's or busybox's.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if there is nothing of that name,
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it is no directory,
    /// [`Unsupported`](ErrorKind::Unsupported) where a program is missing, and as
    /// [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Contents, EntryKind};
    ///
    /// sandbox.write("out/run.sh", Contents::from("echo hi").mode(0o750))?;
    /// sandbox.exec(["mkdir", "out/empty"])?;
    /// let entries = sandbox.list("out")?;
    /// assert_eq!((entries[0].name(), entries[0].kind()), ("empty".as_ref(), EntryKind::Directory));
    /// let run = &entries[1];
    /// assert_eq!((run.name(), run.kind()), ("run.sh".as_ref(), EntryKind::File));
    /// assert_eq!((run.size(), run.mode()), (7, 0o750));
    /// assert!(run.modified() <= std::time::SystemTime::now());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn list(&self, path: &str) -> Result<Vec<Entry>> {
        self.named("list of a directory in", || {
            check_path("path", path)?;
            let (workdir, dir) = base_and_below(path);
            let run = |file: &str| {
                let command = Command::from(["sh", "-c", LIST, "sh", &dir, file]);
                let out = self
                    .backend()
                    .exec(self.session_id(), &command.workdir(workdir))?;
                check_list(&out, path).map(|()| out)
            };
            let stage = temporary_name();
            let out = run("")?;
            let mut entries = match parse(&out.stdout(), &out)? {
                Some(entries) => entries,
                None => {
                    // It was cut at the backend's cap: by way of a file there is none.
                    let listed = run(&stage).and_then(|out| {
                        let bytes = self.read(format!("{workdir}/{stage}"))?;
                        parse(&String::from_utf8_lossy(&bytes), &out)
                    });
                    self.remove_staged(&stage, workdir);
                    listed?.ok_or_else(|| Error::new(ErrorKind::Protocol, "the list was cut"))?
                }
            };
            entries.retain(|entry| entry.name != *stage);
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }
}

fn check_list(out: &Output, path: &str) -> Result<()> {
    let said = out.stderr();
    let said = one_line(&said);
    let path = one_line(path);
    Err(match out.exit_code() {
        0 => return Ok(()),
        43 => Error::new(
            ErrorKind::Unsupported,
            format!("the sandbox has no program `{said}`"),
        ),
        44 => Error::new(ErrorKind::NotFound, format!("no directory {path:?}")),
        45 => Error::invalid(format!("{path:?} is no directory")),
        127 => Error::new(ErrorKind::Unsupported, "the sandbox has no program `sh`"),
        code => Error::new(
            ErrorKind::Io,
            format!("{path:?}: the script exited with {code}: {said}"),
        ),
    })
}

/// None if it has no end.
fn parse(text: &str, out: &Output) -> Result<Option<Vec<Entry>>> {
    let whole = text
        .strip_prefix("-\n")
        .and_then(|text| text.strip_suffix(".\n"));
    let Some(text) = whole else {
        return Ok(None);
    };
    let garbled = || Error::new(ErrorKind::Protocol, "the list of the directory is damaged");
    let joined: String = text.lines().collect();
    let decoded = STANDARD.decode(joined).map_err(|_| garbled())?;
    let mut entries = Vec::new();
    let mut rest = &*decoded;
    while let Some(end) = rest.windows(3).position(|end| end == b"//\n") {
        entries.push(parse_entry(&rest[..end]).ok_or_else(garbled)?);
        rest = &rest[end + 3..];
    }
    // What is gone before it is looked at is no longer in the directory.
    let stderr = out.stderr();
    let gone = |line: &str| line.contains("No such file or directory");
    match rest {
        b"" => Ok(Some(entries)),
        b"!\n" if !stderr.is_empty() && stderr.lines().all(gone) => Ok(Some(entries)),
        b"!\n" => {
            let text = format!("cannot list it: {}", one_line(&stderr));
            Err(Error::new(ErrorKind::Io, text))
        }
        _ => Err(garbled()),
    }
}

fn parse_entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let mode = u32::from_str_radix(text()?, 16).ok()?;
    let size = text()?.parse().ok()?;
    let seconds: i64 = text()?.parse().ok()?;
    let name = fields.next()?.strip_prefix(b"./")?.to_vec();
    let away = Duration::from_secs(seconds.unsigned_abs());
    let modified = match seconds {
        0.. => UNIX_EPOCH.checked_add(away),
        _ => UNIX_EPOCH.checked_sub(away),
    };
    Some(Entry {
        name: OsString::from_vec(name),
        mode,
        size,
        modified: modified?,
    })
}
