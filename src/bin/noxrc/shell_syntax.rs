//! Finds out whether a shell command continues on the next line.

/// Returns true if a shell would read another line: if a quote, a compound command, a here-document
/// or an operator is open, or if the end of the line is escaped.
pub(crate) fn is_incomplete(text: &str) -> bool {
    let mut scanner = Scanner {
        rest: text,
        documents: Vec::new(),
    };
    scanner.list(false).is_none()
}

/// A compound command, by the word that ends it.
const COMPOUND: [(&str, &str); 7] = [
    ("if", "fi"),
    ("for", "done"),
    ("select", "done"),
    ("while", "done"),
    ("until", "done"),
    ("case", "esac"),
    ("{", "}"),
];

/// Words after which a command can start.
const BEFORE_COMMAND: [&str; 9] = [
    "!", "{", "do", "elif", "else", "if", "then", "until", "while",
];

/// Characters that end a word outside quotes.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || ";&|()<>".contains(c)
}

/// Reads a script. The methods return `None` if it ends too early.
struct Scanner<'a> {
    rest: &'a str,
    /// Delimiters of the here-documents that start after the current line, and whether tabs in front
    /// of them are ignored.
    documents: Vec<(String, bool)>,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn take(&mut self, prefix: &str) -> bool {
        let found = self.rest.strip_prefix(prefix);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    /// Reads commands up to the closing parenthesis, or to the end of the script.
    fn list(&mut self, in_parentheses: bool) -> Option<()> {
        let mut open = Vec::new();
        let mut command_may_start = true;
        let mut operator_is_open = false;
        loop {
            let Some(c) = self.rest.chars().next() else {
                let complete = !in_parentheses && open.is_empty() && !operator_is_open;
                return (complete && self.documents.is_empty()).then_some(());
            };
            match c {
                '\n' => {
                    self.next();
                    self.skip_documents()?;
                    command_may_start = true;
                }
                '#' => self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..],
                // In `case`, it ends a pattern.
                ')' if in_parentheses && open.last() != Some(&"esac") => {
                    self.next();
                    return Some(());
                }
                ')' => {
                    self.next();
                    command_may_start = true;
                }
                '(' => {
                    self.next();
                    self.parenthesized()?;
                    command_may_start = true;
                }
                ';' | '&' | '|' => {
                    self.next();
                    operator_is_open = c == '|' || (c == '&' && self.take("&"));
                    command_may_start = true;
                }
                '<' | '>' => self.redirection()?,
                c if c.is_whitespace() => drop(self.next()),
                _ => {
                    self.command_word(&mut open, &mut command_may_start)?;
                    operator_is_open = false;
                }
            }
        }
    }

    /// Reads a word, which may open or close a compound command.
    fn command_word(
        &mut self,
        open: &mut Vec<&'static str>,
        command_may_start: &mut bool,
    ) -> Option<()> {
        let word = &*self.word()?;
        let is_pattern = self.rest.starts_with(')') && open.last() == Some(&"esac");
        if *command_may_start && !is_pattern {
            if open.last().is_some_and(|last| *last == word) {
                open.pop();
            }
            let compound = COMPOUND.iter().find(|(first, _)| *first == word);
            open.extend(compound.map(|(_, last)| *last));
        }
        *command_may_start &= BEFORE_COMMAND.contains(&word);
        Some(())
    }

    /// Reads what follows a parenthesis: commands, or an expression after a second one.
    fn parenthesized(&mut self) -> Option<()> {
        if !self.take("(") {
            return self.list(true);
        }
        let mut depth = 2;
        while depth > 0 {
            match self.next()? {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
        }
        Some(())
    }

    /// Reads a redirection, except its file.
    fn redirection(&mut self) -> Option<()> {
        let is_document = !self.rest.starts_with("<<<") && self.take("<<");
        if !is_document {
            while self.rest.starts_with(['<', '>', '&', '|']) {
                self.next();
            }
            return Some(());
        }
        let ignores_tabs = self.take("-");
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let delimiter = self.word()?.replace(['\'', '"', '\\'], "");
        self.documents.push((delimiter, ignores_tabs));
        Some(())
    }

    /// Skips the here-documents of the line that has just ended.
    fn skip_documents(&mut self) -> Option<()> {
        for (delimiter, ignores_tabs) in std::mem::take(&mut self.documents) {
            self.skip_document(&delimiter, ignores_tabs)?;
        }
        Some(())
    }

    fn skip_document(&mut self, delimiter: &str, ignores_tabs: bool) -> Option<()> {
        while !self.rest.is_empty() {
            let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            self.rest = rest;
            let unindented = line.trim_start_matches('\t');
            if line == delimiter || (ignores_tabs && unindented == delimiter) {
                return Some(());
            }
        }
        None
    }

    /// Reads a word with its quotes.
    fn word(&mut self) -> Option<String> {
        let start = self.rest;
        while let Some(c) = self.rest.chars().next().filter(|c| !ends_word(*c)) {
            self.next();
            self.after(c)?;
        }
        Some(start[..start.len() - self.rest.len()].to_owned())
    }

    /// Reads what belongs to a character of a word: the rest of a quotation or an expansion.
    fn after(&mut self, c: char) -> Option<()> {
        match c {
            '\\' => drop(self.next()?),
            '\'' | '`' => while self.next()? != c {},
            '"' => loop {
                match self.next()? {
                    '"' => break,
                    '\'' => {}
                    inner => self.after(inner)?,
                }
            },
            '$' if self.take("(") => self.parenthesized()?,
            '$' if self.take("{") => loop {
                match self.next()? {
                    '}' => break,
                    inner => self.after(inner)?,
                }
            },
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_incomplete;

    #[test]
    fn open_constructs_are_incomplete() {
        for incomplete in [
            "'",
            "echo \"a",
            "a \\",
            "'a\" b",
            "\"a\\\"",
            "a 'b\nc",
            "for i in 1 2",
            "for i in 1 2; do",
            "while true\ndo\necho a",
            "if true; then echo a; else",
            "case x in",
            "case x in a) echo a;;",
            "f() {",
            "(cd /tmp",
            "echo $(ls",
            "echo \"$(ls",
            "echo ${a",
            "cat <<EOF",
            "cat <<EOF\na",
            "cat <<'E F' | wc\nE",
            "cat <<-EOF\n\ta",
            "true &&",
            "true ||\n",
            "ls |",
            "if true; then while true; do echo; done",
        ] {
            assert!(is_incomplete(incomplete), "{incomplete}");
        }
    }

    #[test]
    fn closed_constructs_are_complete() {
        for complete in [
            "",
            "'a'",
            "\"it's\"",
            "a\\'b",
            "'\\'",
            "\"a\\\"b\"",
            "a \\\nb",
            "for i in 1 2; do echo $i; done",
            "while true\ndo\necho a\nbreak\ndone",
            "if true; then echo a; elif false; then echo b; else echo c; fi",
            "case x in if) echo a;; *) echo b;; esac",
            "f() { echo a; }; f",
            "f()\n{ echo a; }",
            "(cd /tmp; ls)",
            "echo $(ls $(pwd)) ${a:-b} $((1 << 2)) `ls`",
            "cat <<EOF\na 'b\nEOF\n",
            "cat <<-EOF; cat <<'B'\n\ta\n\tEOF\nb\nB",
            "cat <<< 'text'",
            "echo a # it's a comment",
            "echo a#b if done {",
            "sleep 1 &",
            "true && false",
            "ls 2>&1 > x | wc",
            "! true",
            "done",
            "echo )",
        ] {
            assert!(!is_incomplete(complete), "{complete}");
        }
    }
}
