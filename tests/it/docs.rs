//! Every public item has an example.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // The command and the holder are programs without a public API.
        let is_program = path.ends_with("src/bin") || path.ends_with("local/holder");
        if path.is_dir() && !is_program {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The compiler warns about public items that cannot be reached.
fn is_public(line: &str) -> bool {
    let item = line.trim_start().strip_prefix("pub ");
    let kinds = ["fn ", "const ", "struct ", "enum ", "trait "];
    item.is_some_and(|item| kinds.iter().any(|kind| item.starts_with(kind)))
}

#[test]
fn every_public_item_has_an_example() {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    let (mut items, mut bare) = (0, Vec::new());
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        let mut has_example = false;
        for line in text.lines() {
            let start = line.trim_start();
            if is_public(line) {
                items += 1;
                if !has_example {
                    bare.push(format!("{}: {start}", path.display()));
                }
            }
            // Docs and attributes belong to the next item.
            let continues = start.starts_with("///") || start.starts_with("#[");
            has_example = continues && (has_example || start.starts_with("/// ```"));
        }
    }
    assert!(items > 200, "only {items} were found");
    assert!(bare.is_empty(), "without an example: {bare:#?}");
}
