//! The sources of `kernels/`, in the binary.

/// A source of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file's name without its extension: the family.
    pub name: &'static str,
    /// The file, to be put after [`COMMON`].
    pub text: &'static str,
}

/// What every source needs put before it.
pub const COMMON: &str = include_str!("../../../kernels/common.cuh");

/// The header that lets a C++ compiler take the place of NVIDIA's.
pub(crate) const SIM: &str = include_str!("../../../kernels/sim/sim.h");

macro_rules! sources {
    ($($name:literal),+ $(,)?) => {
        &[$(Source { name: $name, text: include_str!(concat!("../../../kernels/", $name, ".cu")) }),+]
    };
}

/// Every source, in alphabetical order.
pub fn sources() -> &'static [Source] {
    sources![
        "batch_norm",
        "channels",
        "convolution",
        "embed",
        "format",
        "lgm",
        "lrn",
        "net",
        "pointwise",
        "pooling",
        "reduction",
        "softmax",
        "solver"
    ]
}

impl Source {
    /// The names of the source's kernels, in order: those of every line that begins with `KERNEL(name)`, with
    /// `KERNELS(name, name_bf16,` or `KERNELS_ADDING(name, name_bf16,`, or with `POINTWISE(name,`, which makes four.
    pub fn kernels(&self) -> impl Iterator<Item = String> + use<> {
        self.text.lines().flat_map(|line| {
            let Some((kind, names)) = line.split_once('(') else { return Vec::new() };
            let mut names = names.split([',', ')']).map(|name| name.trim().to_string());
            match kind {
                "KERNEL" => names.take(1).collect(),
                "KERNELS" | "KERNELS_ADDING" => names.take(2).collect(),
                "POINTWISE" => {
                    let name = names.next().unwrap_or_default();
                    ["forward", "forward_bf16", "backward", "backward_bf16"].map(|of| format!("{name}_{of}")).into()
                }
                _ => Vec::new(),
            }
        })
    }
}

/// The source that holds a kernel.
pub fn source_of(kernel: &str) -> Option<&'static Source> {
    sources().iter().find(|s| s.kernels().any(|k| k == kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_is_listed_and_every_name_is_its_own() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels");
        // This may run where it was not built.
        match std::fs::read_dir(folder) {
            Err(error) => println!("skipped: {folder}: {error}"),
            Ok(files) => {
                let name = |f: std::fs::DirEntry| Some(f.file_name().to_str()?.strip_suffix(".cu")?.to_string());
                let files: BTreeSet<String> = files.filter_map(|f| name(f.unwrap())).collect();
                let listed: Vec<&str> = sources().iter().map(|s| s.name).collect();
                assert_eq!(files.iter().map(String::as_str).collect::<Vec<_>>(), listed);
            }
        }
        let mut seen = BTreeSet::new();
        for source in sources() {
            for kernel in source.kernels() {
                assert!(kernel.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{kernel}");
                assert_eq!(source_of(&kernel).unwrap().name, source.name);
                assert!(seen.insert(kernel.clone()), "{kernel} is defined twice");
            }
            // What the macros are defined with is indented.
            let named = |kind: &str| source.text.matches(&format!("\n{kind}(")).count();
            let pairs = named("KERNELS") + named("KERNELS_ADDING");
            let count = named("KERNEL") + 2 * pairs + 4 * named("POINTWISE");
            assert_eq!(source.kernels().count(), count, "{}", source.name);
            for (name, narrow) in source.kernels().zip(source.kernels().skip(1)).filter(|(_, n)| n.ends_with("_bf16")) {
                assert!(
                    narrow.strip_suffix("_bf16") == Some(name.as_str()),
                    "{narrow} does not follow its single precision"
                );
            }
        }
    }
}
