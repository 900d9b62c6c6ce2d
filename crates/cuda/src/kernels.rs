//! The sources of `kernels/`, in the binary.

/// A file that is put before sources as text.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The file's name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Header {
    /// The text, with lines numbered as in the file.
    pub(crate) fn numbered(&self) -> String {
        format!("#line 1 \"{}\"\n{}\n", self.name, self.text)
    }
}

/// A source of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file's name without its extension: the family.
    pub name: &'static str,
    /// The file, to be put after [`COMMON`] and its own headers.
    pub text: &'static str,
    /// What it shares with other sources of its family, to be put after [`COMMON`].
    pub headers: &'static [Header],
}

macro_rules! headers {
    ($($name:literal),+ $(,)?) => {
        &[$(Header { name: $name, text: include_str!(concat!("../../../kernels/", $name)) }),+]
    };
}

/// What every source needs put before it, in this order.
pub const COMMON: &[Header] = headers![
    "common/types.cuh",
    "common/reduce.cuh",
    "common/fault.cuh",
    "common/packed.cuh",
    "common/channels.cuh",
    "common/random.cuh"
];

/// The headers that let a C++ compiler take the place of NVIDIA's.
pub(crate) const SIM: &[Header] = headers!["sim/threads.h", "sim/cuda.h"];

const BOXES: &[Header] = headers!["boxes.cuh"];
const CONVOLUTION: &[Header] = headers!["conv_geometry.cuh"];
const LGM: &[Header] = headers!["lgm.cuh"];
const LOSS: &[Header] = headers!["loss.cuh"];
const POOLING: &[Header] = headers!["pool_windows.cuh"];

macro_rules! sources {
    ($($name:literal $(with $headers:ident)?),+ $(,)?) => {
        &[$(Source {
            name: $name,
            text: include_str!(concat!("../../../kernels/", $name, ".cu")),
            headers: sources!(@ $($headers)?),
        }),+]
    };
    (@) => { &[] };
    (@ $headers:ident) => { $headers };
}

/// Every source, in alphabetical order.
pub fn sources() -> &'static [Source] {
    sources![
        "arrange",
        "batch_norm",
        "channels",
        "convolution" with CONVOLUTION,
        "ctc",
        "depthwise" with CONVOLUTION,
        "detection",
        "detection_output" with BOXES,
        "embed",
        "evaluate" with BOXES,
        "filter",
        "format",
        "interp",
        "l1_loss" with LOSS,
        "lgm_distance" with LGM,
        "lgm_fork" with LOSS,
        "lgm_loss" with LGM,
        "lgm_sums" with LGM,
        "losses" with LOSS,
        "lrn",
        "multibox" with BOXES,
        "mvn",
        "net",
        "normalize",
        "pointwise",
        "pool_average" with POOLING,
        "pool_max" with POOLING,
        "pool_stochastic" with POOLING,
        "recurrent",
        "reduction",
        "region_loss" with BOXES,
        "regions",
        "seg_accuracy",
        "softmax" with LOSS,
        "solver",
        "spatial",
        "targets" with BOXES,
        "unit_rows",
    ]
}

impl Source {
    /// The names of the source's kernels, in order: that of every line that begins with `KERNEL(name)`, name and name_bf16 of
    /// `KERNELS(name,` and `KERNELS_ADDING(name,`, and those of forward and backward of `POINTWISE(name,`.
    pub fn kernels(&self) -> impl Iterator<Item = String> + use<> {
        self.text.lines().flat_map(|line| {
            let Some((kind, rest)) = line.split_once('(') else { return Vec::new() };
            let name = rest.split([',', ')']).next().unwrap_or_default();
            let named = |suffixes: &[&str]| suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect();
            match kind {
                "KERNEL" => named(&[""]),
                "KERNELS" | "KERNELS_ADDING" => named(&["", "_bf16"]),
                "POINTWISE" => named(&["_forward", "_forward_bf16", "_backward", "_backward_bf16"]),
                _ => Vec::new(),
            }
        })
    }
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
                assert!(seen.insert(kernel.clone()), "{kernel} is defined twice");
            }
            // What the macros are defined with is indented.
            let named = |kind: &str| source.text.matches(&format!("\n{kind}(")).count();
            let pairs = named("KERNELS") + named("KERNELS_ADDING");
            let count = named("KERNEL") + 2 * pairs + 4 * named("POINTWISE");
            assert_eq!(source.kernels().count(), count, "{}", source.name);
        }
    }
}
