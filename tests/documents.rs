//! What the documents say of the code is there: paths, links, modules and names.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A document without its code blocks.
fn prose(document: &str) -> String {
    let text = fs::read_to_string(root().join(document)).unwrap();
    Regex::new("(?s)```.*?```").unwrap().replace_all(&text, "").into_owned()
}

/// What a document has in backticks.
fn quoted(document: &str) -> Vec<String> {
    let found = Regex::new("`([^`\n]+)`").unwrap();
    found.captures_iter(&prose(document)).map(|found| found[1].to_owned()).collect()
}

/// The Rust files of the crates.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn paths_exist() {
    // Not what a build leaves in target/, nor a command with its arguments or a pattern.
    let path = Regex::new("^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/?$").unwrap();
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let words = quoted(document).into_iter().filter_map(|words| words.split(' ').next().map(str::to_owned));
        for word in words.filter(|word| word.contains('/') && path.is_match(word) && !word.starts_with("target/")) {
            assert!(root().join(&word).exists(), "{document} names {word}, which is not there");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#]+)").unwrap();
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "models/README.md", "examples/README.md"] {
        for to in link.captures_iter(&prose(document)).map(|found| found[1].to_owned()).filter(|to| !to.contains("://"))
        {
            let target = root().join(document).with_file_name(&to);
            assert!(target.exists(), "{document} links to {to}, which is not there");
        }
    }
}

#[test]
fn the_architecture_names_what_there_is() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let is_file = |name: &str| {
        files
            .iter()
            .any(|file| file.file_stem().is_some_and(|stem| stem == name) || file.iter().any(|part| part == name))
    };
    let name = Regex::new("^[A-Za-z_]+(::[A-Za-z_]+)*$").unwrap();
    let known = ["unwrap", "expect", "unsafe"];
    for quoted in quoted("ARCHITECTURE.md").into_iter().filter(|quoted| name.is_match(quoted)) {
        for part in quoted.split("::").filter(|part| !known.contains(part) && !is_file(part)) {
            let defined = format!("(struct|enum|trait|type|fn|mod|const) {part}[^A-Za-z_]|(?m)^ +{part}[,({{ ]");
            assert!(Regex::new(&defined).unwrap().is_match(&text), "ARCHITECTURE.md names {quoted}: no {part}");
        }
    }
}
