//! The imports between modules have no cycles.
//!
//! Each source file is a node. Every `crate::`, `super::` and `self::` path outside of tests and comments
//! is an edge to the file of the deepest module in the path. Declaring a child module is not an edge;
//! re-exporting from it is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The imports of each file of a crate.
type Graph = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

#[test]
fn library_has_no_import_cycles() {
    let cycles = cycles(&graph("src", "lib.rs", &["bin", "local/holder"]));
    assert!(cycles.is_empty(), "{cycles:#?}");
}

#[test]
fn command_has_no_import_cycles() {
    let cycles = cycles(&graph("src/bin/noxrc", "main.rs", &[]));
    assert!(cycles.is_empty(), "{cycles:#?}");
}

#[test]
fn holder_has_no_import_cycles() {
    let cycles = cycles(&graph("src/local/holder", "main.rs", &[]));
    assert!(cycles.is_empty(), "{cycles:#?}");
}

#[test]
fn cycles_are_found() {
    let edge = |from: &str, to: &str| (PathBuf::from(from), BTreeSet::from([PathBuf::from(to)]));
    let graph = Graph::from([
        edge("a", "b"),
        edge("b", "c"),
        edge("c", "b"),
        edge("d", "a"),
    ]);
    assert_eq!(cycles(&graph), [["b", "c"].map(PathBuf::from)]);
    let code = "use super::{call::{Api, Call}, retry};\nfn f() { crate::os::random::id() }\n";
    let paths = paths(code).into_iter().collect::<Vec<_>>();
    let expected = [
        "crate::os::random::id",
        "super::call::Api",
        "super::call::Call",
        "super::retry",
    ];
    assert_eq!(paths, expected);
}

fn graph(root: &str, main: &str, except: &[&str]) -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut files = Vec::new();
    source_files(&root, &mut files);
    files.retain(|file| !except.iter().any(|dir| file.starts_with(root.join(dir))));
    assert!(files.len() > 5, "{files:?}");
    let mut graph = Graph::new();
    for file in &files {
        let code = fs::read_to_string(file).unwrap();
        let imports = paths(&without_tests_and_comments(&code))
            .iter()
            .filter_map(|path| resolve(&root, main, file, path))
            .filter(|to| to != file)
            .map(|to| to.strip_prefix(&root).unwrap().to_owned())
            .collect();
        graph.insert(file.strip_prefix(&root).unwrap().to_owned(), imports);
    }
    graph
}

fn source_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}

/// Unit tests are the last item of a file.
fn without_tests_and_comments(code: &str) -> String {
    let end = code.find("\n#[cfg(test)]\nmod tests").unwrap_or(code.len());
    let lines = code[..end].lines();
    let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns all paths that start with `crate`, `super` or `self`, with the braces of `use` expanded.
fn paths(code: &str) -> BTreeSet<String> {
    let start = regex_lite::Regex::new(r"\b(crate|super|self)::").unwrap();
    let mut found = BTreeSet::new();
    let mut at = 0;
    while let Some(path) = start.find_at(code, at) {
        let length = expand("", &code[path.start()..], &mut found);
        at = path.start() + length.max(path.len());
    }
    found
}

/// Expands a path with braces, such as `a::{b, c::d}`, and returns its length.
fn expand(prefix: &str, code: &str, found: &mut BTreeSet<String>) -> usize {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let length = code.find(|c| !is_path(c)).unwrap_or(code.len());
    let path = format!("{prefix}{}", &code[..length]);
    if !code[length..].starts_with('{') {
        found.insert(path.trim_end_matches(':').to_owned());
        return length;
    }
    let mut at = length + 1;
    loop {
        at += code[at..]
            .find(|c: char| !c.is_whitespace() && c != ',')
            .expect("the brace is closed");
        if code[at..].starts_with('}') {
            return at + 1;
        }
        at += expand(&path, &code[at..], found).max(1);
    }
}

/// Returns the file of the deepest module in a path.
fn resolve(root: &Path, main: &str, from: &Path, path: &str) -> Option<PathBuf> {
    let mut segments = path.split("::");
    let is_module_root = |file: &Path| file.ends_with("mod.rs") || file == root.join(main);
    let own = if is_module_root(from) {
        from.parent()?.to_owned()
    } else {
        from.with_extension("")
    };
    let mut module = match segments.next()? {
        "crate" => root.to_owned(),
        "super" => own.parent()?.to_owned(),
        _ => own,
    };
    for segment in segments {
        if segment == "super" {
            module.pop();
            continue;
        }
        if let Some(file) = file_of_path_attribute(&module, segment) {
            return Some(file);
        }
        let child = module.join(segment);
        if !child.is_dir() && !child.with_extension("rs").exists() {
            break;
        }
        module = child;
    }
    let files = [
        module.with_extension("rs"),
        module.join("mod.rs"),
        module.join(main),
    ];
    files
        .into_iter()
        .find(|file| file.starts_with(root) && file.exists())
}

/// Returns the file of a child module that is declared with `#[path = "…"]`.
fn file_of_path_attribute(module: &Path, child: &str) -> Option<PathBuf> {
    let code = fs::read_to_string(module.join("mod.rs")).ok()?;
    let declaration = format!(
        r#"#\[path = "([^"]+)"\]\n(#\[[^\n]*\n)*mod {}\b"#,
        regex_lite::escape(child)
    );
    let declaration = regex_lite::Regex::new(&declaration).unwrap();
    let path = declaration.captures(&code)?.get(1)?.as_str();
    module.join(path).canonicalize().ok()
}

/// Returns the files that a file imports, directly or through others.
fn reachable<'a>(graph: &'a Graph, from: &'a PathBuf) -> BTreeSet<&'a PathBuf> {
    let mut reached = BTreeSet::new();
    let mut todo = vec![from];
    while let Some(file) = todo.pop() {
        let imports = graph.get(file).into_iter().flatten();
        todo.extend(imports.filter(|next| reached.insert(*next)));
    }
    reached
}

/// Returns the sets of files that import each other.
fn cycles(graph: &Graph) -> Vec<Vec<PathBuf>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = graph
        .keys()
        .map(|file| (file, reachable(graph, file)))
        .collect();
    let mut cycles = BTreeSet::new();
    for (file, from_here) in &reached {
        let reaches_file =
            |other: &&&PathBuf| reached.get(**other).is_some_and(|r| r.contains(file));
        let cycle: BTreeSet<&PathBuf> = from_here.iter().filter(reaches_file).copied().collect();
        cycles.extend((cycle.len() > 1).then_some(cycle));
    }
    let owned = |cycle: BTreeSet<&PathBuf>| cycle.into_iter().cloned().collect();
    cycles.into_iter().map(owned).collect()
}
