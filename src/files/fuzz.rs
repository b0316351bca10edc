//! Fuzz target for the answers of the script that lists a directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::list::parse;
use crate::fuzz::input::Input;
use crate::fuzz::printed::{base64_lines, check_shown};

/// Parses an answer. The first byte chooses the kind of answer.
pub fn lists(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => any_list(&String::from_utf8_lossy(input.0)),
        1 => any_list(&list_text(input.0)),
        _ => valid_list(&mut input),
    }
}

/// The names of entries have one component.
fn any_list(text: &str) {
    match parse(text, "") {
        Ok(entries) => {
            let entries = entries.unwrap_or_default();
            assert!(entries.iter().all(|entry| is_component(entry.name())));
        }
        Err(e) => check_shown(&e),
    }
}

fn is_component(name: &OsStr) -> bool {
    Path::new(name).components().eq([Component::Normal(name)])
}

/// A list as the script prints it returns all entries. A truncated one is recognized.
fn valid_list(input: &mut Input<'_>) {
    let cut = usize::from(input.u16());
    let mut lines = Vec::new();
    let mut expected = Vec::new();
    while !input.is_empty() {
        let (mode, size, time) = (input.u16(), input.u64(), input.u64() >> 28);
        let name = OsStr::from_bytes(input.short_bytes());
        if !is_component(name) || name.as_bytes().contains(&0) {
            continue;
        }
        lines.extend_from_slice(format!("{mode:x} {size} {time} ./").as_bytes());
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b"//\n");
        expected.push((name, u32::from(mode) & 0o7777, size));
    }
    let text = list_text(&lines);
    let entries = parse(&text, "").expect("the list is valid");
    let entries = entries.expect("the list is complete");
    let fields = entries.iter().map(|e| (e.name(), e.mode(), e.size()));
    assert!(fields.eq(expected));

    let cut = cut % (text.len() - 1);
    let truncated = parse(&text[..cut], "").expect("truncation is recognized");
    assert_eq!(truncated, None, "{cut}");
}

/// Returns what the script prints.
fn list_text(lines: &[u8]) -> String {
    format!("-\n{}.\n", base64_lines(lines))
}
