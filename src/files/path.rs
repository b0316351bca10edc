//! Paths in the sandbox.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, one_line};
use crate::exec::WORKSPACE;
use crate::staging::base_and_below;

/// An absolute path in the sandbox, without `.`, `..` and empty parts; any bytes but NUL.
pub(super) struct SandboxPath(Vec<u8>);

impl SandboxPath {
    pub(super) fn new(path: &Path) -> Result<SandboxPath> {
        let bytes = path.as_os_str().as_bytes();
        let refuse = |why: &str| {
            Err(Error::invalid(format!(
                "path {:?} {why}",
                one_line(&path.to_string_lossy())
            )))
        };
        if bytes.contains(&0) {
            return refuse("contains a NUL byte");
        }
        let mut whole = if bytes.first() == Some(&b'/') {
            Vec::new()
        } else {
            WORKSPACE.into()
        };
        let before = whole.len();
        for part in bytes.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return refuse("has a \"..\" component"),
                part => {
                    whole.push(b'/');
                    whole.extend_from_slice(part);
                }
            }
        }
        match whole.len() {
            length if length == before => refuse("names no file"),
            length if length > 4095 => refuse("is longer than 4095 bytes"),
            _ => Ok(SandboxPath(whole)),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    pub(super) fn last(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The deepest directory above whose path is UTF-8, and what remains.
    pub(super) fn dest_and_name(&self) -> Result<(String, Vec<u8>)> {
        let valid = match std::str::from_utf8(&self.0) {
            Ok(_) => self.0.len() - self.last().len(),
            Err(e) => e.valid_up_to(),
        };
        let parent_end = self.0[..valid]
            .iter()
            .rposition(|b| *b == b'/')
            .unwrap_or(0);
        let name = self.0[parent_end + 1..].to_vec();
        let dest = String::from_utf8_lossy(&self.0[..parent_end]).into_owned();
        Ok((
            if dest.is_empty() {
                "/".to_owned()
            } else {
                dest
            },
            name,
        ))
    }

    /// A working directory, and the path as an argument of a command that runs there.
    pub(super) fn argument(&self) -> Result<(&'static str, String)> {
        let Some(text) = self.text() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "path {} is not UTF-8, and v1 carries arguments as text",
                    self.shown()
                ),
            ));
        };
        Ok(base_and_below(text))
    }

    pub(super) fn shown(&self) -> String {
        format!("{:?}", one_line(&String::from_utf8_lossy(&self.0)))
    }

    pub(super) fn not_found(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("no file {}", self.shown()))
    }

    pub(super) fn is_a_directory(&self) -> Error {
        Error::invalid(format!("{} is a directory: use download_dir", self.shown()))
    }
}

/// The name of one of [`Files`], relative and below where it is uploaded.
pub(super) fn archive_name(name: &Path) -> Result<Vec<u8>> {
    let shown = one_line(&name.to_string_lossy());
    if name.is_absolute() {
        return Err(Error::invalid(format!(
            "name {shown:?} is absolute: names are relative to dest"
        )));
    }
    let path = SandboxPath::new(name)?;
    Ok(path.0[WORKSPACE.len() + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn path(text: &str) -> Result<String> {
        SandboxPath::new(Path::new(text)).map(|p| String::from_utf8(p.0).unwrap())
    }

    #[test]
    fn sandbox_paths_are_absolute_and_plain() {
        assert_eq!(path("a.txt").unwrap(), "/workspace/a.txt");
        assert_eq!(path("./a//b/").unwrap(), "/workspace/a/b");
        assert_eq!(path("/tmp/x..y").unwrap(), "/tmp/x..y");
        for (bad, why) in [
            ("", "names no file"),
            ("/", "names no file"),
            (".", "names no file"),
            ("a/../b", "\"..\""),
            ("a\0b", "NUL"),
            (&"x/".repeat(3000), "4095"),
        ] {
            let error = path(bad).unwrap_err();
            assert!(
                error.kind() == ErrorKind::InvalidInput && error.to_string().contains(why),
                "{error}"
            );
        }
    }

    #[test]
    fn only_the_utf8_part_of_a_path_is_a_destination() {
        let split = |bytes: &[u8]| {
            SandboxPath::new(Path::new(OsStr::from_bytes(bytes)))
                .unwrap()
                .dest_and_name()
                .unwrap()
        };
        assert_eq!(split(b"/a/b/c"), ("/a/b".into(), b"c".to_vec()));
        assert_eq!(split(b"/c"), ("/".into(), b"c".to_vec()));
        assert_eq!(split(b"/a/\xff/c"), ("/a".into(), b"\xff/c".to_vec()));
        assert_eq!(split(b"/a/b\xff"), ("/a".into(), b"b\xff".to_vec()));
    }

    #[test]
    fn arguments_are_relative_to_the_sandboxes_own_directories() {
        let argument = |text| {
            let path = SandboxPath::new(Path::new(text)).unwrap();
            let (workdir, argument) = path.argument().unwrap();
            format!("{workdir} {argument}")
        };
        assert_eq!(argument("-rf"), "/workspace ./-rf");
        assert_eq!(argument("/workspace/a"), "/workspace ./a");
        assert_eq!(argument("/workspace"), "/workspace .");
        assert_eq!(argument("/workspaces/a"), "/workspace /workspaces/a");
        assert_eq!(argument("/tmp/a"), "/tmp ./a");
        assert_eq!(argument("/etc/a"), "/workspace /etc/a");
    }
}
