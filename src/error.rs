//! The error type.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::output::Output;
use crate::printable::{is_hidden, printable, printable_lines};

/// Result of the fallible calls of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Maximum length of the response body that an [`Error`] keeps, in bytes.
pub const MAX_ERROR_BODY: usize = 64 * 1024;

/// Maximum length of text from a server or a command within one line of a message, in characters.
const MAX_LINE: usize = 500;

/// An error of a call, with the operation that failed.
///
/// `Display` shows the operation, its object and what went wrong; the cause is in
/// [`source`](StdError::source). `{:#}` and `Debug` append the causes, so that a `main` that returns
/// [`Result`] prints one readable line. Programs decide by [`kind`](Error::kind).
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
    sandbox_gone: bool,
    status: Option<u16>,
    body: Option<String>,
    code: Option<String>,
    request_id: Option<String>,
    retry_after: Option<Duration>,
    output: Option<Output>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Category of an [`Error`], by what the caller can do about it.
///
/// `Display` shows the name of the variant, as in the command's `--json` output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is invalid. The message names it. Nothing was run.
    InvalidInput,
    /// The connection failed before the request was received. For calls that change nothing, such as
    /// a download: before the response was complete. Nothing has changed.
    Connect,
    /// The call exceeded its timeout, or the server ended a command at its own timeout. If the
    /// timeout of an `exec` passes after the request was sent, the kind is
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown).
    Timeout,
    /// The call was cancelled by a [`Cancel`](crate::Cancel). A command may have run.
    Cancelled,
    /// The request was sent, but no complete response arrived: the command may have run, the sandbox
    /// may have been created, touched or deleted.
    OutcomeUnknown,
    /// The sandbox, or the path in it, does not exist.
    NotFound,
    /// The backend or the sandbox is not ready.
    NotReady,
    /// The backend requires a token, or a different one.
    Unauthorized,
    /// The backend answered with another error status; see [`Error::status`].
    Status,
    /// The response does not follow NoxRunner v1.
    Protocol,
    /// An archive is damaged, or was refused by a rule that the message names.
    Archive,
    /// The command ran and failed; see [`Output::check`].
    Command,
    /// A file, pipe or process on this machine failed.
    Io,
    /// The sandbox could not be isolated as requested.
    Isolation,
    /// This build, platform or backend does not support the call.
    Unsupported,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Error {
    /// Creates an error, for a [`Backend`](crate::Backend) of your own. [`Client`](crate::Client) and
    /// [`Sandbox`](crate::Sandbox) prepend the operation and the session id.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            context: None,
            message: message.into(),
            sandbox_gone: false,
            status: None,
            body: None,
            code: None,
            request_id: None,
            retry_after: None,
            output: None,
            source: None,
        }))
    }

    /// Sets the cause, which [`source`](StdError::source) returns.
    ///
    /// ```
    /// use noxrunner::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Io, "cannot log in").with_source("wrong key");
    /// assert_eq!(error.to_string(), "cannot log in");
    /// assert_eq!(format!("{error:#}"), "cannot log in: wrong key");
    /// ```
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the category of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the HTTP status of the response, if the error comes from one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Returns the body of the response as text, cut to [`MAX_ERROR_BODY`] bytes. Bytes that are not
    /// UTF-8 become U+FFFD.
    #[must_use]
    pub fn response_body(&self) -> Option<&str> {
        self.0.body.as_deref()
    }

    /// Returns the server's code for the error, such as `EXEC_TIMEOUT`, if its response has one. NoxRunner
    /// v1 defines no codes.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Returns the server's id for the request, if it sent one in the error or as `X-Request-Id`. The
    /// operator of the server can find the request in its logs by this id.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// Returns how long the backend asked to wait before the next attempt (`Retry-After`).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns the output of the command that failed or was cancelled, if there is any.
    #[must_use]
    pub fn output(&self) -> Option<&Output> {
        self.0.output.as_ref()
    }

    /// Returns true if the sandbox itself does not exist, or no longer exists. A touch does not bring it
    /// back; [`Client::create`](crate::Client::create) creates an empty one.
    ///
    /// For a download from a server that does not report the difference, this is false, also if the
    /// sandbox is gone. A touch then shows it.
    #[must_use]
    pub fn is_sandbox_gone(&self) -> bool {
        self.0.sandbox_gone
    }

    /// Returns true if the sandbox, or the path in it, does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// Returns true if the backend or the sandbox is not ready.
    #[must_use]
    pub fn is_not_ready(&self) -> bool {
        self.kind() == ErrorKind::NotReady
    }

    /// Returns true if the connection failed before the request was received.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.kind() == ErrorKind::Connect
    }

    /// Returns true if the call exceeded its timeout, or if this is the [`check`](Output::check) of a
    /// command that did.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
            || self.kind() == ErrorKind::Command && self.output().is_some_and(Output::timed_out)
    }

    /// Returns true if the call was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind() == ErrorKind::Cancelled
    }

    /// Returns true if the call may or may not have had its effect: the outcome is unknown, or the call
    /// was cancelled and there is no [`output`](Error::output). Do not run a command again without
    /// checking.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        match self.kind() {
            ErrorKind::OutcomeUnknown => true,
            ErrorKind::Cancelled => self.output().is_none(),
            _ => false,
        }
    }

    /// Returns true if the command failed, and not the backend.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.kind() == ErrorKind::Command
    }

    /// Returns true if nothing has changed and the same call may succeed later: the backend could not
    /// be reached, is not ready, or limits the rate (429).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Connect | ErrorKind::NotReady)
            || self.status() == Some(429)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn archive(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Archive, message)
    }

    /// Creates an error for a failed operation on this machine, such as `cannot read a.txt`.
    pub(crate) fn io(operation: impl fmt::Display, cause: io::Error) -> Error {
        Error::new(ErrorKind::Io, operation.to_string()).with_source(cause)
    }

    /// Prepends the operation, unless a lower layer already has.
    pub(crate) fn context(mut self, operation: impl FnOnce() -> String) -> Error {
        self.0.context.get_or_insert_with(operation);
        self
    }

    /// Wraps the error for an API that returns I/O errors, such as [`io::Read`].
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// Unwraps an error that [`into_io`](Error::into_io) wrapped, or returns the I/O error.
    pub(crate) fn from_io(error: io::Error) -> Result<Error, io::Error> {
        error.downcast()
    }

    /// Sets whether the sandbox itself does not exist, for a [`Backend`](crate::Backend) of your own. An
    /// error of the kind [`NotFound`](ErrorKind::NotFound) may also be about a path.
    #[must_use]
    pub fn with_sandbox_gone(mut self, gone: bool) -> Error {
        self.0.sandbox_gone = gone;
        self
    }

    pub(crate) fn with_status(mut self, status: u16) -> Error {
        self.0.status = Some(status);
        self
    }

    pub(crate) fn with_body(mut self, body: &[u8]) -> Error {
        let kept = body.get(..MAX_ERROR_BODY).unwrap_or(body);
        let mut text = String::from_utf8_lossy(kept).into_owned();
        // U+FFFD is longer than the byte that it replaces.
        let end = (0..=MAX_ERROR_BODY)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        self.0.body = Some(text);
        self
    }

    pub(crate) fn with_code(mut self, code: Option<String>) -> Error {
        self.0.code = code;
        self
    }

    pub(crate) fn with_request_id(mut self, id: Option<String>) -> Error {
        self.0.request_id = id;
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

    pub(crate) fn map_output(mut self, change: impl FnOnce(Output) -> Output) -> Error {
        self.0.output = self.0.output.take().map(change);
        self
    }

    fn write_causes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause = self.source();
        while let Some(error) = cause {
            match error.downcast_ref::<io::Error>() {
                Some(io) => write!(f, ": {}", printable_lines(&io_reason(io)))?,
                None => write!(f, ": {}", printable_lines(&error.to_string()))?,
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.0.context {
            write!(f, "{}: ", printable(context))?;
        }
        f.write_str(&printable_lines(&self.0.message))?;
        if f.alternate() {
            self.write_causes(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return write!(f, "{self:#}");
        }
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.to_string())
            .field("status", &self.0.status)
            .field("code", &self.0.code)
            .field("request_id", &self.0.request_id)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source: &(dyn StdError + 'static) = self.0.source.as_deref()?;
        Some(source)
    }
}

/// Returns the text of an I/O error for the middle of a sentence, without "(os error 2)".
pub(crate) fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" (os error ").map_or(&*text, |cut| cut.0);
    let mut chars = text.chars();
    match chars.next() {
        // "No such file" becomes lower case, but not "EOF".
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Makes text from outside fit for one line of a message: replaces control characters with spaces,
/// escapes format characters, and cuts it to [`MAX_LINE`] characters.
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_LINE + 1)
        .collect();
    if line.chars().any(is_hidden) {
        line = printable(&line).into_owned();
    }
    if let Some((at, _)) = line.char_indices().nth(MAX_LINE) {
        line.truncate(at);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_one_word() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn display_names_the_operation_once() {
        let error = Error::new(ErrorKind::NotFound, "no such sandbox")
            .context(|| "touch sandbox \"a\"".into())
            .context(|| "outer".into());
        assert_eq!(error.to_string(), "touch sandbox \"a\": no such sandbox");
    }

    #[test]
    fn each_cause_is_shown_once() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let error = Error::new(ErrorKind::Io, "outer")
            .with_source(Error::io("cannot read a.txt", denied).context(|| "inner".into()));
        assert_eq!(error.to_string(), "outer");
        let line = "outer: inner: cannot read a.txt: permission denied";
        assert_eq!(format!("{error:#}"), line);
        assert_eq!(format!("{error:?}"), line);
        assert!(format!("{error:#?}").contains("kind: Io"));
    }

    #[test]
    fn messages_cannot_control_a_terminal() {
        let cause = io::Error::other("\u{9b}2J");
        let error = Error::new(ErrorKind::Status, "bad\u{1b}[31m\nnext\u{202e}");
        let error = error.with_source(cause).context(|| "a\nb".into());
        let line = "a\\nb: bad\\u{1b}[31m\nnext\\u{202e}";
        assert_eq!(error.to_string(), line);
        assert_eq!(format!("{error:#}"), format!("{line}: \\u{{9b}}2J"));
    }

    #[test]
    fn text_from_outside_is_one_short_line() {
        assert_eq!(one_line(" a\r\nb\u{1b}[31m \n"), "a  b [31m");
        assert_eq!(one_line("a\u{202e}b\u{9b}1m"), r"a\u{202e}b 1m");
        let long = one_line(&"ä".repeat(2000));
        assert_eq!(long.chars().count(), MAX_LINE + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn io_reasons_fit_into_a_sentence() {
        let gone = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(io_reason(&gone), "no such file or directory");
        assert_eq!(io_reason(&io::Error::other("EOF seen")), "EOF seen");
    }
}
