//! Session ids: the names of sandboxes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result, one_line};

/// Maximum length of a session id, in bytes. A longer one would not fit into the request line that
/// many servers accept.
pub const MAX_SESSION_ID: usize = 1024;

/// The name of a sandbox, chosen by the client.
///
/// Any non-empty text without NUL bytes is valid, except `.` and `..`, which cannot be a segment of
/// a URL path.
///
/// ```
/// use noxrunner::SessionId;
///
/// assert_eq!(SessionId::new("build 7/ä")?.as_str(), "build 7/ä");
/// assert!("..".parse::<SessionId>().is_err());
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Validates a session id.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the text is empty, `.` or `..`, contains
    /// a NUL byte, or is longer than [`MAX_SESSION_ID`].
    pub fn new(id: impl AsRef<str>) -> Result<SessionId> {
        let id = id.as_ref();
        let reason = match id {
            "" => "it is empty".to_owned(),
            "." | ".." => "\".\" and \"..\" cannot be a segment of a URL path".to_owned(),
            _ if id.contains('\0') => "it contains a NUL byte".to_owned(),
            _ if id.len() > MAX_SESSION_ID => {
                let length = id.len();
                format!("it is {length} bytes long, the limit is {MAX_SESSION_ID}")
            }
            _ => return Ok(SessionId(id.into())),
        };
        let id = one_line(id);
        Err(Error::invalid(format!("session id {id:?}: {reason}")))
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for SessionId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = Error;

    fn from_str(id: &str) -> Result<SessionId> {
        SessionId::new(id)
    }
}

impl TryFrom<&str> for SessionId {
    type Error = Error;

    fn try_from(id: &str) -> Result<SessionId> {
        SessionId::new(id)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn invalid_ids_are_refused_with_the_reason() {
        for (id, reason) in [
            ("", "empty"),
            (".", "segment"),
            ("..", "segment"),
            ("a\0b", "NUL"),
            (&*"x".repeat(1025), "1025 bytes"),
        ] {
            let error = SessionId::new(id).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn unusual_ids_are_valid() {
        for id in [
            "a/b",
            "a?b",
            "a#b",
            "a%2Fb",
            "a b",
            "ä",
            "...",
            &"x".repeat(300),
        ] {
            let parsed: SessionId = id.parse().unwrap();
            assert_eq!(parsed.as_str(), id);
            assert_eq!(AsRef::<str>::as_ref(&parsed), id);
            assert_eq!(format!("{parsed} {parsed:?}"), format!("{id} {id:?}"));
        }
    }
}
