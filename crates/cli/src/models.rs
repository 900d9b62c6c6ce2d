//! What `train`, `test` and `time` share: the layers known, nets read from prototxt, and errors that say where.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use lgm_core::{Phase, Registry, Result};
use lgm_cuda::Gpu;
use lgm_net::{Keep, Loaded, Net, Options, Outline, Placement, expect_kind, fresh_seed};
use lgm_proto::{FileKind, NetParameter, NetState, Parsed, SolverParameter};

use crate::args::StateFlags;

/// Every layer type of this binary.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    lgm_layers::register(&mut registry);
    lgm_data::register(&mut registry);
    registry
}

/// The part of a net's state that flags give; an empty `-stage` is none.
pub fn state(flags: &StateFlags) -> NetState {
    let stage = flags.stages.iter().filter(|s| !s.is_empty()).cloned().collect();
    NetState { phase: None, level: flags.level, stage }
}

/// Builds the net of a prototxt in a phase, for passes that the command itself makes, on the CPU or a GPU.
///
/// # Errors
/// Whatever is wrong with the prototxt or the data it names.
pub fn net(
    model: &Path,
    phase: Phase,
    flags: &StateFlags,
    backward: bool,
    keep: Keep,
    gpu: Option<Rc<dyn Gpu>>,
) -> Result<Net> {
    let (parsed, mut options) = read(model, phase, flags, backward)?;
    options.keep = keep;
    options.device = gpu.map(|gpu| Placement { gpu, histories: 0 });
    Net::new(&parsed.message, &parsed.positions, &registry(), &options)
}

/// As [`net`] on the CPU, without the memory that the net takes.
///
/// # Errors
/// Whatever is wrong with the prototxt or the data it names.
pub fn outline(model: &Path, phase: Phase, flags: &StateFlags, backward: bool) -> Result<Outline> {
    let (parsed, options) = read(model, phase, flags, backward)?;
    Outline::new(&parsed.message, &parsed.positions, &registry(), &options)
}

/// Reads a net's prototxt and logs what is to say of it; with it, the options of a net in a phase.
///
/// # Errors
/// Whatever is wrong with the prototxt.
pub fn read(model: &Path, phase: Phase, flags: &StateFlags, backward: bool) -> Result<(Parsed<NetParameter>, Options)> {
    expect_kind(model, FileKind::Net)?;
    let parsed = lgm_proto::read_net(model)?;
    parsed.notices.iter().for_each(|n| tracing::info!("{n}"));
    parsed.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    let mut options = Options::new(phase, fresh_seed() >> 11);
    // The phase is the command's, as in Caffe.
    options.merge_state(parsed.message.state.as_ref().map(|own| NetState { phase: None, ..own.clone() }).as_ref());
    options.merge_state(Some(&state(flags)));
    options.backward = backward;
    Ok((parsed, options))
}

/// Reads a solver's prototxt.
///
/// # Errors
/// Whatever is wrong with it.
pub fn solver(path: &Path) -> Result<Parsed<SolverParameter>> {
    expect_kind(path, FileKind::Solver)?;
    Ok(lgm_proto::read_solver(path)?)
}

/// Most layers that the warning of those without weights names.
const NAMED: usize = 10;

/// Loads several files of weights into a net, in order, and warns of layers that none of them has weights for.
///
/// # Errors
/// When one is missing, damaged, of another kind or of another net.
pub fn load_weights(net: &mut Net, files: &[PathBuf]) -> Result<()> {
    let mut loaded = Loaded::default();
    for file in files {
        expect_kind(file, FileKind::Weights)?;
        loaded.join(net.load_weights(file)?);
    }
    let missing = net.without_weights(&loaded);
    if !files.is_empty() && !missing.is_empty() {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        tracing::warn!("{}", without_weights(&files.join(", "), &missing));
    }
    Ok(())
}

/// Says which layers files have no weights for, each with the name in the files that it may have there.
fn without_weights(files: &str, missing: &[(&str, Option<&str>)]) -> String {
    let say = |&(layer, near): &(&str, Option<&str>)| match near {
        Some(near) => format!("'{layer}' (there is a '{near}' that the net lacks)"),
        None => format!("'{layer}'"),
    };
    let named: Vec<String> = missing.iter().take(NAMED).map(say).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (layers, keep) = if missing.len() == 1 {
        ("layer", "it keeps its filler's values")
    } else {
        ("layers", "they keep their fillers' values")
    };
    format!("{files}: no weights for the {layers} {}{more}; {keep}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_without_weights_are_named_with_the_nearest_name() {
        let one = without_weights("a.caffemodel", &[("ip", Some("ip1"))]);
        assert_eq!(
            one,
            "a.caffemodel: no weights for the layer 'ip' (there is a 'ip1' that the net lacks); it keeps its filler's values"
        );
        let many = without_weights("a, b", &[("x", None); 12]);
        assert!(
            many.starts_with("a, b: no weights for the layers 'x', 'x'") && many.contains(" and 2 more; they"),
            "{many}"
        );
    }
}
