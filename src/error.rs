//! The one error type.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::output::Output;

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How much of an error answer's body an [`Error`] keeps, in bytes.
///
/// ```
/// assert_eq!(noxrunner::MAX_ERROR_BODY, 65_536);
/// ```
pub const MAX_ERROR_BODY: usize = 64 * 1024;

/// How much of a server's or a command's own words is shown in one line of text, in characters.
const MAX_SHOWN: usize = 500;

/// What went wrong, with the operation it went wrong in.
///
/// Display is one line: the operation, its object and what happened. The cause is in
/// [`source`](StdError::source). [`kind`](Error::kind) is what a program decides by.
///
/// ```
/// use noxrunner::{Client, ErrorKind};
///
/// let error = Client::new("ftp://example.com").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert!(error.to_string().contains("ftp://example.com"));
/// ```
#[doc(alias = "NoxRunnerError")]
#[doc(alias = "NoxRunnerHTTPError")]
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: Option<String>,
    message: String,
    status: Option<u16>,
    body: Option<String>,
    retry_after: Option<Duration>,
    output: Option<Output>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The classes of failure, by what a caller can do about them.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// use noxrunner::ErrorKind;
///
/// let error = client.sandbox("never made")?.touch().unwrap_err();
/// match error.kind() {
///     ErrorKind::NotFound => println!("make it first"),
///     kind => panic!("{kind:?}"),
/// }
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument was refused before anything was sent or run. The text names it.
    InvalidInput,
    /// No connection to the backend could be made, or it broke before the request was received (for
    /// health and downloads, which change nothing: before the answer was complete). Nothing has
    /// happened.
    Connect,
    /// The call's time was over. For `exec`, see [`OutcomeUnknown`](ErrorKind::OutcomeUnknown).
    Timeout,
    /// The request was sent, and no whole answer came: the command may have run, the sandbox may
    /// have been made, touched or deleted. Also where an exec was cancelled.
    OutcomeUnknown,
    /// The sandbox, or the path in it, does not exist.
    NotFound,
    /// The backend answered that it, or the sandbox, is not ready.
    NotReady,
    /// The backend wants a token, or another one.
    Unauthorized,
    /// The backend answered with another status; see [`Error::status`].
    Status,
    /// The backend's answer is not what NoxRunner v1 says.
    Protocol,
    /// An archive is damaged, or was refused by a rule that the text names.
    Archive,
    /// The command ran and did not succeed; made by [`Output::check`].
    Command,
    /// A file, pipe or process on this machine.
    Io,
    /// The sandbox could not be isolated as asked.
    Isolation,
    /// This build, platform or backend can't do it. The text says what can.
    Unsupported,
}

impl Error {
    /// An error of this kind. Meant for a user's own [`Backend`](crate::Backend); the operation
    /// and the session id are put before the message by [`Client`](crate::Client) and
    /// [`Sandbox`](crate::Sandbox).
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::NotFound, "no such sandbox");
    /// assert!(error.is_not_found());
    /// ```
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            context: None,
            message: message.into(),
            status: None,
            body: None,
            retry_after: None,
            output: None,
            source: None,
        }))
    }

    /// Adds the cause, which [`source`](StdError::source) then returns.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    /// use std::error::Error as _;
    ///
    /// let error = Error::new(ErrorKind::Io, "cannot log in").with_source("wrong key");
    /// assert_eq!(error.source().unwrap().to_string(), "wrong key");
    /// ```
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// The class of the failure.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::NotReady, "soon").kind(), ErrorKind::NotReady);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The HTTP status of the backend's answer, if there was one.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::NotFound, "not from a server").status(), None);
    /// ```
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The body of the backend's answer as text, at most [`MAX_ERROR_BODY`] bytes of it; bytes
    /// that are not UTF-8 became U+FFFD.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::NotFound, "not from a server").response_body(), None);
    /// ```
    pub fn response_body(&self) -> Option<&str> {
        self.0.body.as_deref()
    }

    /// How long the backend asked to wait before the next try (`Retry-After`).
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::NotReady, "not from a server").retry_after(), None);
    /// ```
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The output of the command, where the kind is [`ErrorKind::Command`].
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let error = sandbox.exec(["sh", "-c", "echo why >&2; exit 3"])?.check().unwrap_err();
    /// assert_eq!(error.output().unwrap().stderr(), "why\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn output(&self) -> Option<&Output> {
        self.0.output.as_ref()
    }

    /// The sandbox or the path does not exist.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// assert!(client.sandbox("never made")?.touch().unwrap_err().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// The call's time was over.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert!(Error::new(ErrorKind::Timeout, "gave up after 30 s").is_timeout());
    /// ```
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// What was asked may or may not have happened: don't run a command again without a look.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// assert!(Error::new(ErrorKind::OutcomeUnknown, "no answer").is_outcome_unknown());
    /// ```
    pub fn is_outcome_unknown(&self) -> bool {
        self.kind() == ErrorKind::OutcomeUnknown
    }

    /// The command failed, not the backend.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// assert!(sandbox.exec(["false"])?.check().unwrap_err().is_command());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn is_command(&self) -> bool {
        self.kind() == ErrorKind::Command
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn archive(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Archive, message)
    }

    /// A failure of this machine's files or processes: `what` says which, the cause is kept.
    pub(crate) fn io(what: impl fmt::Display, cause: std::io::Error) -> Error {
        Error::new(ErrorKind::Io, format!("{what}: {}", io_reason(&cause))).with_source(cause)
    }

    /// Puts the operation before the message, unless a deeper layer has done so already.
    pub(crate) fn context(mut self, operation: impl FnOnce() -> String) -> Error {
        self.0.context.get_or_insert_with(operation);
        self
    }

    /// For a reader that can only fail with an I/O error; [`Error::from_io`] takes it out again.
    pub(crate) fn into_io(self) -> std::io::Error {
        std::io::Error::other(self)
    }

    /// The error that [`Error::into_io`] put into this one, if so.
    pub(crate) fn from_io(error: std::io::Error) -> Result<Error, std::io::Error> {
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            let inner = error.into_inner().and_then(|inner| inner.downcast().ok());
            return inner
                .map(|inner| *inner)
                .ok_or_else(|| std::io::ErrorKind::Other.into());
        }
        Err(error)
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.0.kind = kind;
        self
    }

    pub(crate) fn with_status(mut self, status: u16) -> Error {
        self.0.status = Some(status);
        self
    }

    pub(crate) fn with_body(mut self, body: &[u8]) -> Error {
        let kept = body.get(..MAX_ERROR_BODY).unwrap_or(body);
        let mut text = String::from_utf8_lossy(kept).into_owned();
        // A byte that is not UTF-8 has become three.
        let end = (0..=MAX_ERROR_BODY)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        self.0.body = Some(text);
        self
    }

    pub(crate) fn with_retry_after(mut self, wait: Option<Duration>) -> Error {
        self.0.retry_after = wait;
        self
    }

    pub(crate) fn with_output(mut self, output: Output) -> Error {
        self.0.output = Some(output);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.context {
            Some(context) => write!(f, "{context}: {}", self.0.message),
            None => f.write_str(&self.0.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind)
            .field("message", &self.to_string());
        if let Some(status) = self.0.status {
            out.field("status", &status);
        }
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source: &(dyn StdError + 'static) = self.0.source.as_deref()?;
        Some(source)
    }
}

/// The words for an I/O error without the "(os error 2)" that says nothing to a person.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = match text.rfind(" (os error ") {
        Some(at) => &text[..at],
        None => &text,
    };
    let mut chars = text.chars();
    match chars.next() {
        // "No such file" inside a sentence starts small; "EOF" and the like stay as they are.
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Somebody else's text, made fit for one line: control characters become spaces, and what is
/// longer than [`MAX_SHOWN`] characters is cut at the end.
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_SHOWN + 1)
        .collect();
    if let Some((at, _)) = line.char_indices().nth(MAX_SHOWN) {
        line.truncate(at);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_word() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn display_names_the_operation_once() {
        let error = Error::new(ErrorKind::NotFound, "no such sandbox")
            .context(|| "touch of sandbox \"a\"".into())
            .context(|| "outer".into());
        assert_eq!(error.to_string(), "touch of sandbox \"a\": no such sandbox");
    }

    #[test]
    fn foreign_text_is_one_capped_line() {
        assert_eq!(one_line(" a\r\nb\u{1b}[31m \n"), "a  b [31m");
        let long = one_line(&"ä".repeat(2000));
        assert_eq!(long.chars().count(), MAX_SHOWN + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn io_reasons_read_as_part_of_a_sentence() {
        let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(io_reason(&gone), "no such file or directory");
        assert_eq!(io_reason(&std::io::Error::other("EOF seen")), "EOF seen");
    }
}
