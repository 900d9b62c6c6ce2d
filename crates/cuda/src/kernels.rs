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
    /// The names of the source's kernels, in order: every line that begins with `KERNEL(name)`, and both of
    /// `KERNELS(name, name_bf16,` and `KERNELS_ADDING(name, name_bf16,`.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> + use<> {
        let one = |line: &'static str| line.strip_prefix("KERNEL(")?.split(')').next();
        let pair = |line: &'static str| line.strip_prefix("KERNELS(").or_else(|| line.strip_prefix("KERNELS_ADDING("));
        self.text.lines().flat_map(move |line| {
            let names = pair(line).into_iter().flat_map(|names| names.split(", ").take(2));
            one(line).into_iter().chain(names.map(|name| name.trim_end_matches(',')))
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
                assert!(seen.insert(kernel), "{kernel} is defined twice");
                assert!(kernel.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{kernel}");
                assert_eq!(source_of(kernel).unwrap().name, source.name);
            }
            let pairs = source.text.matches("KERNELS(").count() + source.text.matches("KERNELS_ADDING(").count();
            assert_eq!(source.kernels().count(), source.text.matches("KERNEL(").count() + 2 * pairs, "{}", source.name);
            for (name, narrow) in source.kernels().zip(source.kernels().skip(1)).filter(|(_, n)| n.ends_with("_bf16")) {
                assert!(narrow.strip_suffix("_bf16") == Some(name), "{narrow} does not follow its single precision");
            }
        }
    }
}
