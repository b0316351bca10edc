//! Listing directories.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::SystemTime;

use super::read::CappedVec;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::os::random::temporary_name;
use crate::os::time;
use crate::output::Output;
use crate::sandbox::Sandbox;
use crate::sandbox_path::{OWN_DIR, SandboxPath};
use crate::script::{Script, decode_base64_lines, remove_temporary};

/// Maximum size of a list, in bytes.
const MAX_LIST: u64 = 64 << 20;

/// Lists the directory `$1`, into the file `$2` unless that is empty.
///
/// Each entry is `MODE SIZE TIME ./NAME//` and a newline, all of them in base64; no name contains a
/// slash. The first line is `-` and the last one `.`, so that truncation shows.
const LIST: Script = Script {
    feature: "list",
    source: r#"
LC_ALL=C
export LC_ALL
for tool in find stat base64; do
  command -v $tool >/dev/null || { echo $tool >&2; exit 43; }
done
[ -e "$1" ] || [ -L "$1" ] || exit 44
[ -d "$1" ] || exit 45
[ -z "$2" ] || exec >"$2" || exit 1
cd "$1" && [ -r . ] || { echo "permission denied" >&2; exit 1; }
echo -
{ find . -mindepth 1 -maxdepth 1 -exec stat -c '%f %s %Y %n//' {} + || echo !; } | base64
echo .
"#,
    failures: &[
        (44, ErrorKind::NotFound, "no such directory: {}"),
        (45, ErrorKind::InvalidInput, "{} is not a directory"),
    ],
};

/// An entry of a directory, from [`Sandbox::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: OsString,
    mode: u32,
    size: u64,
    modified: SystemTime,
}

/// The type of an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl Entry {
    /// Returns the name of the entry within its directory. It need not be UTF-8.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Returns the type of the entry. Symbolic links are not followed.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        match self.mode & 0o170_000 {
            0o100_000 => EntryKind::File,
            0o040_000 => EntryKind::Directory,
            0o120_000 => EntryKind::Symlink,
            _ => EntryKind::Other,
        }
    }

    /// Returns true for a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == EntryKind::File
    }

    /// Returns true for a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == EntryKind::Directory
    }

    /// Returns the size of a file in bytes. The size of a directory or device has no meaning.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the permission bits, such as 0o644, with setuid, setgid and sticky.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Returns the time of the last modification, in whole seconds.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
}

impl Sandbox {
    /// Lists the entries of a directory, sorted by name, including hidden ones. A relative path is
    /// resolved against `/workspace`. The directory `.noxrunner` of jobs is left out.
    ///
    /// Sends one exec, and three more calls if the list exceeds the backend's cap on output. Needs
    /// `sh`, `find`, `stat` and `base64` in the sandbox, from GNU or busybox.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the directory or the sandbox does not exist;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the path is not a directory or has a `..`
    /// component, or if the list exceeds 64 MiB, which takes 1 to 2 million entries;
    /// [`Unsupported`](ErrorKind::Unsupported) if the sandbox lacks a program; otherwise the same as
    /// for [`exec`](Sandbox::exec).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Contents;
    ///
    /// sandbox.write("out/run.sh", Contents::from("echo hi").mode(0o750))?;
    /// sandbox.create_dir_all("out/empty")?;
    /// let entries = sandbox.list("out")?;
    /// assert!(entries[0].name() == "empty" && entries[0].is_dir());
    /// assert!(entries[1].name() == "run.sh" && entries[1].is_file());
    /// assert_eq!((entries[1].size(), entries[1].mode()), (7, 0o750));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<Entry>> {
        self.context("list a directory in", || {
            let path = SandboxPath::new("path", path)?;
            let (workdir, dir) = path.relative()?;
            let run = |file: &str| {
                let command = LIST.command(&[&dir, file]).workdir(workdir);
                LIST.run(self, &command, &path.display())
            };
            let out = run("")?;
            let mut entries = match parse(&out.stdout(), &out.stderr())? {
                Some(entries) => entries,
                None => self.list_to_file(run, workdir)?,
            };
            entries.retain(|entry| !path.is_workspace() || entry.name != OWN_DIR);
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    /// Lists a directory into a file, because the backend's cap on output does not apply to files.
    fn list_to_file(
        &self,
        run: impl Fn(&str) -> Result<Output>,
        workdir: &str,
    ) -> Result<Vec<Entry>> {
        let file = temporary_name();
        let listed = run(&file).and_then(|out| {
            let message = "directory has too many entries: their list exceeds 64 MiB";
            let mut list = CappedVec::new(MAX_LIST, message);
            self.read_to(format!("{workdir}/{file}"), &mut list)?;
            parse(&String::from_utf8_lossy(&list.bytes), &out.stderr())
        });
        remove_temporary(self, &file, workdir);
        let truncated = || Error::new(ErrorKind::Protocol, "the list is truncated");
        let mut entries = listed?.ok_or_else(truncated)?;
        entries.retain(|entry| entry.name != *file);
        Ok(entries)
    }
}

/// Parses the script's output, or returns `None` if it is truncated.
pub(super) fn parse(text: &str, stderr: &str) -> Result<Option<Vec<Entry>>> {
    let whole = text
        .strip_prefix("-\n")
        .and_then(|text| text.strip_suffix(".\n"));
    let Some(text) = whole else {
        return Ok(None);
    };
    let damaged = || Error::new(ErrorKind::Protocol, "the list is damaged");
    let decoded = decode_base64_lines(text).ok_or_else(damaged)?;
    let mut entries = Vec::new();
    let mut rest = &*decoded;
    while let Some(end) = rest.windows(3).position(|end| end == b"//\n") {
        entries.push(parse_entry(&rest[..end]).ok_or_else(damaged)?);
        rest = &rest[end + 3..];
    }
    // An entry that was removed before `stat` saw it is no longer in the directory.
    let gone = |line: &str| line.contains("No such file or directory");
    match rest {
        b"" => Ok(Some(entries)),
        b"!\n" if !stderr.is_empty() && stderr.lines().all(gone) => Ok(Some(entries)),
        b"!\n" => {
            let text = format!("cannot list the directory: {}", one_line(stderr));
            Err(Error::new(ErrorKind::Io, text))
        }
        _ => Err(damaged()),
    }
}

fn parse_entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let mode = u32::from_str_radix(text()?, 16).ok()?;
    let size = text()?.parse().ok()?;
    let modified = time::from_unix(text()?.parse().ok()?)?;
    let name = fields.next()?.strip_prefix(b"./")?;
    is_entry_name(name).then(|| Entry {
        name: OsString::from_vec(name.to_vec()),
        mode,
        size,
        modified,
    })
}

/// Returns true for a name that an entry can have. The programs of a sandbox may print anything, and callers
/// join the name to a path of their own machine.
fn is_entry_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn names(lines: &str) -> Result<Vec<OsString>> {
        let text = format!("-\n{}\n.\n", STANDARD.encode(lines));
        let entries = parse(&text, "")?.expect("the list is complete");
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    #[test]
    fn entries_have_any_name_of_one_component() {
        let lines = "81a4 3 1 ./a b//\n41ed 0 -1 ./...//\n81a4 0 0 ./a\nb//\n";
        assert_eq!(names(lines).unwrap(), ["a b", "...", "a\nb"]);
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        for name in ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\0b"] {
            let error = names(&format!("81a4 3 1 ./a//\n81a4 3 1 ./{name}//\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{name:?}");
        }
    }
}
