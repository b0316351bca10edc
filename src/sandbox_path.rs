//! Paths in a sandbox.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result, one_line};

/// The default working directory of a command, and the base of relative paths in a sandbox.
pub const WORKSPACE: &str = "/workspace";

/// Directory of the files that this crate keeps in a sandbox, below `/workspace`.
pub(crate) const OWN_DIR: &str = ".noxrunner";

/// Longest path that Linux accepts, in bytes, without the closing NUL.
const MAX_PATH: usize = 4095;

/// An absolute path in a sandbox, without `.`, `..` and empty components. It may hold any bytes but
/// NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxPath(Vec<u8>);

impl SandboxPath {
    /// Resolves a path against `/workspace`. `what` names the argument in errors.
    pub(crate) fn new(what: &str, path: impl AsRef<Path>) -> Result<SandboxPath> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes();
        let refuse = |why: &str| {
            let shown = one_line(&path.to_string_lossy());
            Err(Error::invalid(format!("{what} {shown:?} {why}")))
        };
        if bytes.is_empty() {
            return refuse("is an empty path");
        }
        if bytes.contains(&0) {
            return refuse("contains a NUL byte");
        }
        let mut absolute = Vec::with_capacity(WORKSPACE.len() + 1 + bytes.len());
        if bytes[0] != b'/' {
            absolute.extend_from_slice(WORKSPACE.as_bytes());
        }
        for component in bytes.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return refuse("has a \"..\" component"),
                component => {
                    absolute.push(b'/');
                    absolute.extend_from_slice(component);
                }
            }
        }
        if absolute.is_empty() {
            absolute.push(b'/');
        }
        if absolute.len() > MAX_PATH {
            return refuse("is longer than 4095 bytes");
        }
        Ok(SandboxPath(absolute))
    }

    /// Resolves the path of a file: not a directory that every sandbox has.
    pub(crate) fn file(path: impl AsRef<Path>) -> Result<SandboxPath> {
        let resolved = SandboxPath::new("path", path)?;
        if matches!(&*resolved.0, b"/" | b"/workspace") {
            let shown = resolved.display();
            return Err(Error::invalid(format!("path {shown} does not name a file")));
        }
        Ok(resolved)
    }

    /// Returns the path as text for the protocol, whose paths are UTF-8.
    pub(crate) fn as_text(&self) -> Result<&str> {
        std::str::from_utf8(&self.0).map_err(|_| {
            let shown = self.display();
            Error::new(
                ErrorKind::Unsupported,
                format!("path {shown} is not UTF-8, and NoxRunner v1 sends paths as text"),
            )
        })
    }

    pub(crate) fn file_name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// Splits into the deepest parent directory whose path is UTF-8, and the rest.
    pub(crate) fn split(&self) -> (String, Vec<u8>) {
        let valid = match std::str::from_utf8(&self.0) {
            Ok(_) => self.0.len() - self.file_name().len(),
            Err(e) => e.valid_up_to(),
        };
        let slash = self.0[..valid].iter().rposition(|b| *b == b'/');
        let parent_end = slash.unwrap_or(0);
        let parent = String::from_utf8_lossy(&self.0[..parent_end.max(1)]).into_owned();
        (parent, self.0[parent_end + 1..].to_vec())
    }

    /// Splits into a working directory that every backend has, and a path relative to it that is
    /// safe as an argument.
    pub(crate) fn relative(&self) -> Result<(&'static str, String)> {
        Ok(relative_to_base(self.as_text()?))
    }

    pub(crate) fn is_workspace(&self) -> bool {
        self.0 == WORKSPACE.as_bytes()
    }

    /// Returns the path relative to `/workspace`, if it is below that.
    pub(crate) fn below_workspace(&self) -> Option<&[u8]> {
        self.0.strip_prefix(b"/workspace/")
    }

    /// Quotes the path for an error message.
    pub(crate) fn display(&self) -> String {
        format!("{:?}", one_line(&String::from_utf8_lossy(&self.0)))
    }
}

/// Splits an absolute path into a working directory that every backend has, and a path relative to
/// it. A backend without isolation keeps `/workspace` and `/tmp` elsewhere, so paths below them must
/// be relative.
pub(crate) fn relative_to_base(path: &str) -> (&'static str, String) {
    for base in [WORKSPACE, "/tmp"] {
        match path.strip_prefix(base) {
            Some("") => return (base, ".".to_owned()),
            Some(below) if below.starts_with('/') => return (base, format!(".{below}")),
            _ => {}
        }
    }
    (WORKSPACE, path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn path(text: &str) -> Result<String> {
        SandboxPath::new("path", text).map(|p| String::from_utf8(p.0).unwrap())
    }

    #[test]
    fn paths_become_absolute_and_normal() {
        assert_eq!(path("a.txt").unwrap(), "/workspace/a.txt");
        assert_eq!(path("./a//b/").unwrap(), "/workspace/a/b");
        assert_eq!(path("/tmp/x..y").unwrap(), "/tmp/x..y");
        assert_eq!(path(".").unwrap(), "/workspace");
        assert_eq!(path("/").unwrap(), "/");
        for (bad, why) in [
            ("", "empty"),
            ("a/../b", "\"..\""),
            ("..", "\"..\""),
            ("a\0b", "NUL"),
            (&"x/".repeat(3000), "4095"),
        ] {
            let error = path(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn file_paths_name_a_file() {
        for bad in [".", "/", "/workspace/", "//"] {
            let error = SandboxPath::file(bad).unwrap_err();
            assert!(
                error.to_string().contains("does not name a file"),
                "{error}"
            );
        }
        assert!(SandboxPath::file("a").is_ok());
    }

    #[test]
    fn split_keeps_the_parent_utf8() {
        let split = |bytes: &[u8]| SandboxPath::file(OsStr::from_bytes(bytes)).unwrap().split();
        assert_eq!(split(b"/a/b/c"), ("/a/b".into(), b"c".to_vec()));
        assert_eq!(split(b"/c"), ("/".into(), b"c".to_vec()));
        assert_eq!(split(b"/a/\xff/c"), ("/a".into(), b"\xff/c".to_vec()));
        assert_eq!(split(b"/a/b\xff"), ("/a".into(), b"b\xff".to_vec()));
    }

    #[test]
    fn arguments_are_relative_to_directories_that_every_backend_has() {
        let relative = |text| {
            let (base, below) = SandboxPath::new("path", text).unwrap().relative().unwrap();
            format!("{base} {below}")
        };
        assert_eq!(relative("-rf"), "/workspace ./-rf");
        assert_eq!(relative("/workspace/a"), "/workspace ./a");
        assert_eq!(relative("/workspace"), "/workspace .");
        assert_eq!(relative("/workspaces/a"), "/workspace /workspaces/a");
        assert_eq!(relative("/tmp/a"), "/tmp ./a");
        assert_eq!(relative("/etc/a"), "/workspace /etc/a");
        assert_eq!(relative("/tmpx"), "/workspace /tmpx");
    }

    #[test]
    fn workspace_is_told_from_other_paths() {
        let path = |text| SandboxPath::new("path", text).unwrap();
        assert!(path(".").is_workspace() && path("/workspace/").is_workspace());
        assert!(!path("/workspace/a").is_workspace() && !path("/").is_workspace());
        assert_eq!(path("a/b").below_workspace(), Some(&b"a/b"[..]));
        assert_eq!(path("/workspaces").below_workspace(), None);
    }
}
