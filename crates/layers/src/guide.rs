//! CONTRIBUTING.md tells how to add a layer by the code of layers that exist: its blocks are what the files hold.

const GUIDE: &str = include_str!("../../../CONTRIBUTING.md");

/// The files that the guide quotes.
const FILES: &[(&str, &str)] = &[
    ("crates/layers/src/swish.rs", include_str!("swish.rs")),
    ("crates/layers/src/softmax.rs", include_str!("softmax.rs")),
    ("crates/layers/src/lib.rs", include_str!("lib.rs")),
    ("kernels/pointwise.cu", include_str!("../../../kernels/pointwise.cu")),
];

/// The text without the indentation that its first line has.
fn dedented(block: &str) -> String {
    let indent = block.len() - block.trim_start_matches(' ').len();
    block.lines().map(|line| line.get(indent..).unwrap_or_default().to_string() + "\n").collect()
}

#[test]
fn the_guide_quotes_the_files() {
    let (_, section) = GUIDE.split_once("## How to add a layer\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut parts = section.split("```");
    let mut quoted = Vec::new();
    while let (Some(before), Some(block)) = (parts.next(), parts.next()) {
        let named = FILES.iter().filter_map(|file| Some((before.rfind(&format!("`{}`", file.0))?, file)));
        let (_, (name, text)) = named.max_by_key(|(at, _)| *at).expect("a file is named before each block");
        let (_, block) = block.split_once('\n').unwrap();
        let block = dedented(block.trim_end());
        let quotes = text.contains(&block) || text.lines().any(|line| line.trim() == block.trim());
        assert!(quotes, "{name} does not hold this, which CONTRIBUTING.md quotes of it:\n{block}");
        quoted.push(*name);
    }
    assert!(FILES.iter().all(|(name, _)| quoted.contains(name)), "quoted: {quoted:?}");
}
