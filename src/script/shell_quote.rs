//! Quoting for shells.

use std::borrow::Cow;

/// Reserved words at the start of a shell command.
const RESERVED: [&str; 17] = [
    "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in",
    "select", "then", "time", "until", "while",
];

/// Quotes a text as one word of a POSIX shell line, as for [`Command::shell`](crate::Command::shell).
/// Text without special characters is returned unchanged.
///
/// ```
/// use noxrunner::{Command, shell_quote};
///
/// assert_eq!(shell_quote("out.txt"), "out.txt");
/// assert_eq!(shell_quote("it's $HOME"), r"'it'\''s $HOME'");
///
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// let file = "my file; rm -rf x";
/// sandbox.write(file, "b\na\n")?;
/// let sort = Command::shell(format!("sort < {} | head -n 1", shell_quote(file)));
/// assert_eq!(sandbox.exec(sort)?.stdout(), "a\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[must_use]
pub fn shell_quote(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:,@%+".contains(&b);
    // A number before `>` would be a file descriptor.
    let number = text.bytes().all(|b| b.is_ascii_digit());
    if !number && text.bytes().all(plain) && !RESERVED.contains(&text) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words_of(line: &str) -> Vec<u8> {
        let shell = std::process::Command::new("sh").args(["-c", line]).output();
        shell.unwrap().stdout
    }

    #[test]
    fn special_characters_and_words_are_quoted() {
        for text in [
            "", "2", "a b", "a=b", "~", "*", "if", "#", "!", "{", "a\nb", "ä",
        ] {
            assert_eq!(shell_quote(text), format!("'{text}'"));
        }
        for text in ["ls", "-l", "/usr/bin", "a_b-c.d:e,f@g%h+i"] {
            assert_eq!(shell_quote(text), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_reads_the_text_as_one_word(texts in proptest::collection::vec("[^\\x00]{0,20}", 1..5)) {
            let quoted: Vec<_> = texts.iter().map(|text| shell_quote(text)).collect();
            let line = format!("printf '%s\\0' {}", quoted.join(" "));
            let wanted: Vec<u8> = texts.iter().flat_map(|t| [t.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(words_of(&line), wanted);
        }
    }
}
