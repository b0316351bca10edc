//! Parses the table of attacks and compares outcomes with expectations.

use regex_lite::Regex;

pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) tier: String,
    /// The time limit. `None` if the row is a procedure.
    pub(crate) seconds: Option<u64>,
    pub(crate) command: String,
    pub(crate) expect: Vec<Clause>,
}

pub(crate) enum Clause {
    Code(i32),
    NotCode(i32),
    Output(Regex),
    NotOutput(Regex),
    /// A check that the test implements under the row's id.
    Host,
}

/// The result of a command.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl Clause {
    fn parse(text: &str) -> Clause {
        let regex = |rest: &str| {
            // The regex ends at the first slash that is not escaped.
            let rest = rest.replace("\\/", "\0");
            let end = rest.find('/').expect("a regex ends with a slash");
            let regex = rest[..end].replace('\0', "/");
            Regex::new(&format!("(?m){regex}")).expect(&regex)
        };
        let number = |rest: &str| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().expect(rest)
        };
        if let Some(rest) = text.strip_prefix("rc=") {
            Clause::Code(number(rest) as i32)
        } else if let Some(rest) = text.strip_prefix("rc!=") {
            Clause::NotCode(number(rest) as i32)
        } else if let Some(rest) = text.strip_prefix("out~/") {
            Clause::Output(regex(rest))
        } else if let Some(rest) = text.strip_prefix("out!~/") {
            Clause::NotOutput(regex(rest))
        } else {
            // Procedures are described in words.
            Clause::Host
        }
    }

    /// Returns `None` if the clause holds, or else a message.
    pub(crate) fn broken(&self, outcome: &Outcome) -> Option<String> {
        let (holds, wanted) = match self {
            Clause::Code(code) => (outcome.code == *code, format!("exit code {code}")),
            Clause::NotCode(code) => (outcome.code != *code, format!("no exit code {code}")),
            Clause::Output(regex) => (regex.is_match(&outcome.output), format!("{regex}")),
            Clause::NotOutput(regex) => (!regex.is_match(&outcome.output), format!("no {regex}")),
            Clause::Host => (true, String::new()),
        };
        (!holds).then(|| {
            let shown: String = outcome.output.chars().take(600).collect();
            format!(
                "expected {wanted}; exit code {}, output {shown:?}",
                outcome.code
            )
        })
    }
}

pub(crate) fn rows(text: &str) -> Vec<Row> {
    let lines = text.lines().filter(|line| line.starts_with("| "));
    let rows = lines.map(cells).filter(|cells| cells[0] != "id");
    rows.map(|cells| {
        let [id, _area, kind, tier, seconds, command, expect] = &cells[..] else {
            panic!("a row has seven columns: {cells:?}");
        };
        Row {
            id: id.clone(),
            kind: kind.clone(),
            tier: tier.clone(),
            seconds: seconds.parse().ok(),
            // The command is between backticks. Words may follow.
            command: command
                .split('`')
                .nth(1)
                .unwrap_or_default()
                .replace("<NL>", "\n"),
            expect: expect.split(" && ").map(Clause::parse).collect(),
        }
    })
    .collect()
}

fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut chars = line.trim().trim_start_matches('|').chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('|')) => {
                chars.next();
                cells.last_mut().expect("there is a first one").push('|');
            }
            ('|', None) => {}
            ('|', _) => cells.push(String::new()),
            _ => cells.last_mut().expect("there is a first one").push(c),
        }
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn table_row_is_parsed() {
    let text = "| id | a |\n|---|---|\n\
        | R1 | read | exec | N | 5 | `a \\| b<NL>c` | rc!=0 && out~/^x\\|y$/ (why) |\n";
    let rows = rows(text);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].command, "a | b\nc");
    assert_eq!(rows[0].seconds, Some(5));
    let outcome = |code, output: &str| Outcome {
        code,
        output: output.to_owned(),
    };
    let broken = |outcome: Outcome| {
        let broken = rows[0].expect.iter().filter_map(|c| c.broken(&outcome));
        broken.count()
    };
    assert_eq!(broken(outcome(1, "z\ny\n")), 0);
    assert_eq!(broken(outcome(0, "zz\n")), 2);
}
