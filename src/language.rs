//! Languages of source code that a sandbox can run.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{Error, Result, one_line};

/// Placeholder for the path of the source file in a [`Language`]'s command.
pub(crate) const FILE_PLACEHOLDER: &str = "{file}";
const FILE: Cow<'static, str> = Cow::Borrowed(FILE_PLACEHOLDER);

/// The name of a source file, and the command that runs it. `{file}` in the
/// command is replaced with the path of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Language {
    file_name: Cow<'static, str>,
    command: Cow<'static, [Cow<'static, str>]>,
}

impl Language {
    /// Runs `python3 main.py`.
    pub const PYTHON: Language = Language::predefined("main.py", &[Cow::Borrowed("python3"), FILE]);
    /// Runs `node main.js`.
    pub const NODE: Language = Language::predefined("main.js", &[Cow::Borrowed("node"), FILE]);
    /// Runs `sh main.sh`.
    pub const SH: Language = Language::predefined("main.sh", &[Cow::Borrowed("sh"), FILE]);
    /// Runs `bash main.bash`.
    pub const BASH: Language = Language::predefined("main.bash", &[Cow::Borrowed("bash"), FILE]);

    const fn predefined(
        file_name: &'static str,
        command: &'static [Cow<'static, str>],
    ) -> Language {
        Language {
            file_name: Cow::Borrowed(file_name),
            command: Cow::Borrowed(command),
        }
    }

    /// Creates a language from the name of its source file and the command that runs it. `{file}` in
    /// an argument, once per argument, is replaced with the path of the file.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if no argument contains `{file}`, or if the
    /// file name is empty, `.`, `..` or `stdin`, or contains a slash.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::Language;
    ///
    /// let awk = Language::new("main.awk", ["awk", "-f", "{file}"])?;
    /// assert_eq!(sandbox.run_code(awk, "BEGIN { print 6 * 7 }")?.stdout(), "42\n");
    /// assert!(Language::new("main.rb", ["ruby"]).is_err(), "no {{file}} in the command");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn new<S: Into<String>>(
        file_name: impl Into<String>,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Language> {
        let file_name = file_name.into();
        if matches!(&*file_name, "" | "." | ".." | "stdin") || file_name.contains(['/', '\0']) {
            return Err(Error::invalid(format!(
                "invalid name of a source file: {:?}",
                one_line(&file_name)
            )));
        }
        let command: Vec<Cow<'static, str>> =
            command.into_iter().map(|arg| arg.into().into()).collect();
        if !command.iter().any(|arg| arg.contains(FILE_PLACEHOLDER)) {
            return Err(Error::invalid(format!(
                "the command for {file_name:?} has no argument with {FILE_PLACEHOLDER}"
            )));
        }
        Ok(Language {
            file_name: file_name.into(),
            command: command.into(),
        })
    }

    /// Returns the name of the source file.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    pub(crate) fn command(&self) -> impl Iterator<Item = &str> {
        self.command.iter().map(|arg| &**arg)
    }
}

/// The source code of a [`Command::code`](crate::Command::code).
#[derive(Clone)]
pub(crate) struct SourceCode {
    pub(crate) file_name: String,
    pub(crate) text: Arc<[u8]>,
    /// Number of leading arguments of the command that belong to the language.
    pub(crate) language_args: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_file_names_are_refused() {
        for name in ["", ".", "..", "a/b", "stdin"] {
            assert!(
                Language::new(name, ["x", FILE_PLACEHOLDER]).is_err(),
                "{name}"
            );
        }
        let ruby = Language::new("a.rb", ["ruby", "-w", FILE_PLACEHOLDER]).unwrap();
        assert_eq!(ruby.file_name(), "a.rb");
    }
}
