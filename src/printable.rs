//! Text from outside, made safe for a terminal or a log.

use std::borrow::Cow;
use std::fmt::Write;

/// Format characters of Unicode 16, which can hide or reorder the text around them, and the separators of
/// lines and paragraphs.
const FORMAT: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e007f}'),
];

/// Escapes control and format characters, such as the start of an escape sequence, a newline or an
/// override of the writing direction. Use it to print text that a server, a sandbox or an archive chose.
/// Errors and log lines of this crate are escaped already.
///
/// ```
/// use noxrunner::printable;
///
/// assert_eq!(printable("pod\u{1b}[31m\n\u{202e}"), r"pod\u{1b}[31m\n\u{202e}");
/// assert_eq!(printable("größer 😀"), "größer 😀");
/// ```
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Like [`printable`], but keeps newlines and tabs.
pub(crate) fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// Returns true for characters that have no visible form of their own.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || FORMAT
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&c))
}

fn escape(text: &str, keep: fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |c: char| is_hidden(c) && !keep(c);
    if !text.chars().any(is_escaped) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            let _ = write!(escaped, "{}", c.escape_debug());
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped() {
        for (text, escaped) in [
            ("", ""),
            ("a b\u{e9}\u{301}", "a b\u{e9}\u{301}"),
            ("\0\r\n\t\u{7f}", r"\0\r\n\t\u{7f}"),
            ("\u{9b}31m\u{85}", r"\u{9b}31m\u{85}"),
            (
                "\u{202e}\u{2066}\u{200b}\u{feff}",
                r"\u{202e}\u{2066}\u{200b}\u{feff}",
            ),
            ("\u{2028}\u{ad}\u{e0041}", r"\u{2028}\u{ad}\u{e0041}"),
        ] {
            assert_eq!(printable(text), escaped);
        }
        assert_eq!(printable_lines("a\n\tb\r"), "a\n\tb\\r");
    }

    #[test]
    fn table_is_sorted() {
        assert!(FORMAT.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert!(FORMAT.iter().all(|(first, last)| first <= last));
    }
}
