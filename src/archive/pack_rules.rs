//! Rules for packing a directory on this machine.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

type Filter = Arc<dyn Fn(&Path) -> bool + Send + Sync>;

/// Rules for packing a directory on this machine for an upload.
///
/// ```
/// # let (client, dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// # let project = dir.path();
/// use noxrunner::{Pack, Symlinks};
///
/// std::fs::create_dir_all(project.join("target"))?;
/// std::fs::write(project.join("main.c"), "int main() {}")?;
/// std::fs::write(project.join("main.o"), "")?;
/// let sources = Pack::new().exclude("/target/").exclude("*.o").symlinks(Symlinks::Follow);
/// sandbox.upload_dir_with(project, "src", &sources)?;
/// assert_eq!(sandbox.list("src")?.len(), 1);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Pack {
    exclude: Vec<String>,
    filter: Option<Filter>,
    symlinks: Symlinks,
}

/// Treatment of symbolic links by [`Pack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Symlinks {
    /// Packs a link as a link, with its target unchanged.
    #[default]
    Keep,
    /// Packs what a link leads to, also outside of the directory. A link that leads to nothing or to a
    /// directory above itself is an error.
    Follow,
    /// Leaves links out.
    Skip,
}

impl Pack {
    /// Creates the default rules: everything is packed, and links are kept.
    #[must_use]
    pub fn new() -> Pack {
        Pack::default()
    }

    /// Excludes entries that match a pattern. The syntax is that of `.gitignore`: `*` matches any part of a
    /// name, `?` one character, and `**` any number of directories. A pattern with a slash at the beginning or in
    /// the middle is matched against the whole path, any other against each name. A slash at the end matches
    /// directories only. What is below an excluded directory is left out too. Can be called several times.
    ///
    /// Character classes (`[a-z]`), negation (`!`) and backslashes are not supported. Such a pattern, and an
    /// empty one, is an [`InvalidInput`](crate::ErrorKind::InvalidInput) error of the upload.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> Pack {
        self.exclude.push(pattern.into());
        self
    }

    /// Packs only what this function accepts. It is called with each path, relative to the directory. If it
    /// rejects a directory, what is below that is left out too. Replaces an earlier function.
    #[must_use]
    pub fn filter(mut self, accepts: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Pack {
        self.filter = Some(Arc::new(accepts));
        self
    }

    /// Sets how symbolic links are treated. Defaults to [`Symlinks::Keep`].
    #[must_use]
    pub fn symlinks(mut self, symlinks: Symlinks) -> Pack {
        self.symlinks = symlinks;
        self
    }

    pub(super) fn rules(&self) -> Result<PackRules> {
        let patterns = self.exclude.iter().map(|text| Pattern::parse(text));
        Ok(PackRules {
            exclude: patterns.collect::<Result<_>>()?,
            filter: self.filter.clone(),
            symlinks: self.symlinks,
        })
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pack")
            .field("exclude", &self.exclude)
            .field("symlinks", &self.symlinks)
            .finish_non_exhaustive()
    }
}

/// The rules, with parsed patterns. The default packs everything.
#[derive(Clone, Default)]
pub(crate) struct PackRules {
    exclude: Vec<Pattern>,
    filter: Option<Filter>,
    pub(super) symlinks: Symlinks,
}

impl PackRules {
    /// Returns true if the entry with this path is packed.
    pub(super) fn accept(&self, path: &[u8], is_dir: bool) -> bool {
        let accepted = |filter: &Filter| filter(Path::new(OsStr::from_bytes(path)));
        let is_excluded = |pattern: &Pattern| pattern.matches(path, is_dir);
        !self.exclude.iter().any(is_excluded) && self.filter.as_ref().is_none_or(accepted)
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    /// Names, without empty ones.
    parts: Vec<Vec<u8>>,
    /// The pattern is matched against the whole path.
    is_path: bool,
    directories_only: bool,
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern> {
        let refused = |why: &str| Error::invalid(format!("exclude pattern {text:?}: {why}"));
        if text.starts_with('!') {
            return Err(refused("negation is not supported"));
        }
        if text.contains(['[', '\\']) {
            let why = "character classes and backslashes are not supported: use ? for a literal character";
            return Err(refused(why));
        }
        let path = text.strip_suffix('/');
        let parts = text.split('/').filter(|part| !part.is_empty());
        let parts: Vec<_> = parts.map(|part| part.as_bytes().to_vec()).collect();
        if parts.is_empty() {
            return Err(refused("it matches nothing"));
        }
        Ok(Pattern {
            parts,
            is_path: path.unwrap_or(text).contains('/'),
            directories_only: path.is_some(),
        })
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.directories_only && !is_dir {
            return false;
        }
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        if self.is_path {
            return path_matches(&self.parts, &names);
        }
        let last = names.last().copied().unwrap_or_default();
        self.parts.iter().all(|part| name_matches(part, last))
    }
}

fn path_matches(parts: &[Vec<u8>], names: &[&[u8]]) -> bool {
    match parts.split_first() {
        None => names.is_empty(),
        Some((part, rest)) if part == b"**" => {
            (0..=names.len()).any(|skipped| path_matches(rest, &names[skipped..]))
        }
        Some((part, rest)) => names
            .split_first()
            .is_some_and(|(name, below)| name_matches(part, name) && path_matches(rest, below)),
    }
}

/// Matches a name against a pattern with `*` and `?`.
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut in_name) = (0, 0);
    // The position after the last asterisk, and the end of the text that it matches.
    let mut last_star = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                last_star = Some((at, in_name));
            }
            Some(b'?') => {
                at += 1;
                in_name += character_length(&name[in_name..]);
            }
            Some(byte) if *byte == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            _ => {
                let Some((behind, end)) = last_star else {
                    return false;
                };
                last_star = Some((behind, end + 1));
                (at, in_name) = (behind, end + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Returns the length of the first character in UTF-8, or 1 for other bytes.
fn character_length(bytes: &[u8]) -> usize {
    let continues = |byte: &&u8| **byte & 0xc0 == 0x80;
    1 + bytes.iter().skip(1).take_while(continues).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        // A slash at the end of the path marks a directory.
        let is_dir = path.ends_with('/');
        let path = path.trim_end_matches('/').as_bytes();
        Pattern::parse(pattern).unwrap().matches(path, is_dir)
    }

    #[test]
    fn patterns_match_as_in_gitignore() {
        for (pattern, path) in [
            ("*.o", "main.o"),
            ("*.o", "a/b/main.o"),
            ("*", "a"),
            ("a*b*c", "aXbbYc"),
            ("?.c", "ä.c"),
            (".git", "sub/.git/"),
            (".git/", "sub/.git/"),
            ("/target", "target"),
            ("a/b", "a/b"),
            ("a/*.c", "a/x.c"),
            ("**/a/b", "x/y/a/b"),
            ("**/a/b", "a/b"),
            ("a/**", "a/b/c"),
            ("a/**/c", "a/c"),
            ("a/**/c", "a/x/y/c"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.o", "main.c"),
            ("*.o", "main.o.txt"),
            ("??.c", "ä.c"),
            (".git/", ".git"),
            ("/target", "sub/target"),
            ("a/b", "x/a/b"),
            ("a/*.c", "a/b/x.c"),
            ("a/*", "a"),
            ("a*b", "aXbc"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn many_asterisks_take_no_exponential_time() {
        let name = "a".repeat(4000);
        assert!(!matches(
            &"*a".repeat(100).replace("aa", "a"),
            &format!("{name}b")
        ));
    }

    #[test]
    fn unsupported_patterns_are_refused() {
        for pattern in ["", "/", "//", "!a", "*.py[co]", "a\\*"] {
            let error = Pattern::parse(pattern).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
            assert!(
                error.to_string().contains(&format!("{pattern:?}")),
                "{error}"
            );
        }
    }
}
