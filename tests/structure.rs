//! How the sources are divided: no circle of modules within a crate, and no file that is long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Lines of a file at the most.
const LONGEST: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files under a folder, but for what builds and recordings leave there.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some("target" | "golden" | "corpus" | "found" | "artifacts") => {}
            _ if path.is_dir() => files(&path, found),
            _ => found.push(path),
        }
    }
}

#[test]
fn files_are_short() {
    let mut sources = Vec::new();
    for folder in ["crates", "tests", "fuzz", "kernels", "scripts", "examples", "models"] {
        files(&root().join(folder), &mut sources);
    }
    let is_source = |path: &PathBuf| match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => ["rs", "cu", "cuh", "h", "py", "sh"].contains(&extension),
        None => fs::read(path).unwrap().starts_with(b"#!"),
    };
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<_> = sources.iter().filter(|path| is_source(path) && lines(path) > LONGEST).collect();
    assert!(long.is_empty(), "of more than {LONGEST} lines, to be split by idea: {long:?}");
    assert!(sources.len() > 700, "only {} files found", sources.len());
}

type Module = Vec<String>;

/// The modules of a crate with their text, tests aside.
fn modules(src: &Path) -> BTreeMap<Module, String> {
    let mut sources = Vec::new();
    files(src, &mut sources);
    let comment = Regex::new("//[^\n]*").unwrap();
    let tests = Regex::new(r"#\[cfg\(test\)\]\s*mod tests \{").unwrap();
    let module = |path: &PathBuf| {
        let path = path.strip_prefix(src).ok()?.with_extension("");
        let mut names: Module = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        names.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
        (names.last().map(String::as_str) != Some("tests")).then_some(names)
    };
    let text = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        comment.replace_all(tests.splitn(&text, 2).next().unwrap_or_default(), "").into_owned()
    };
    sources.iter().filter_map(|path| Some((module(path)?, text(path)))).collect()
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expand(path: &str) -> Vec<String> {
    let Some((start, rest)) = path.trim().split_once('{') else { return vec![path.trim().to_owned()] };
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in rest.trim_end().strip_suffix('}').unwrap_or(rest).chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    parts.iter().flat_map(|part| expand(part)).map(|part| format!("{start}{part}")).collect()
}

/// The module that a path in `module` leads into.
fn lead(modules: &BTreeMap<Module, String>, module: &Module, path: &str) -> Module {
    let mut names = path.split("::").map(str::trim).peekable();
    let mut at = if names.next_if_eq(&"crate").is_some() { Module::new() } else { module.clone() };
    names.next_if_eq(&"self");
    while names.next_if_eq(&"super").is_some() {
        at.pop();
    }
    for name in names {
        at.push(name.to_owned());
        if !modules.contains_key(&at) {
            at.pop();
            break;
        }
    }
    at
}

/// For every module with others in it, which of those names which.
fn uses(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<(String, String)>> {
    let written = Regex::new(r"\buse\s+((?:crate|super|self)\b[^;]*);|\b(?:crate|super)(?:::\w+)+").unwrap();
    let mut found: BTreeMap<Module, BTreeSet<_>> = BTreeMap::new();
    for (module, text) in modules {
        for path in written.captures_iter(text) {
            for path in expand(path.get(1).map_or(&path[0], |tree| tree.as_str())) {
                let to = lead(modules, module, &path);
                let common = module.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(common), to.get(common)) {
                    let pair = (from.clone(), to.clone());
                    found.entry(module[..common].to_vec()).or_default().insert(pair);
                }
            }
        }
    }
    found
}

/// What a module names, itself or by others.
fn reached<'a>(uses: &'a BTreeSet<(String, String)>, start: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
    while let Some(module) = next.pop() {
        let named = uses.iter().filter(|(from, _)| from == module).map(|(_, to)| to.as_str());
        next.extend(named.filter(|to| reached.insert(*to)));
    }
    reached
}

/// Modules each of which leads to all of them.
fn circle(uses: &BTreeSet<(String, String)>) -> Option<BTreeSet<&str>> {
    uses.iter().find_map(|(start, _)| {
        let leads_back = |module: &&str| reached(uses, module).contains(start.as_str());
        let circle: BTreeSet<_> = reached(uses, start).into_iter().filter(leads_back).collect();
        (!circle.is_empty()).then_some(circle)
    })
}

#[test]
fn modules_make_no_circles() {
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let src = entry.unwrap().path().join("src");
        for (module, uses) in uses(&modules(&src)) {
            let found = circle(&uses);
            assert!(found.is_none(), "{}, module {module:?}: circle of {found:?}", src.display());
        }
    }
    let texts = [("a", "use crate::b::{c, d};"), ("b", "use std::a;"), ("b::c", "fn f() { super::super::a::g() }")];
    let made = texts.map(|(name, text)| (name.split("::").map(str::to_owned).collect(), text.to_owned()));
    let uses = uses(&made.into());
    assert_eq!(circle(&uses[&Module::new()]), Some(BTreeSet::from(["a", "b"])));
}
