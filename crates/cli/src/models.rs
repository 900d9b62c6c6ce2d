//! What `train`, `test` and `time` share: the layers known, nets read from prototxt, and errors that say where.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use lgm_core::{Phase, Registry, Result};
use lgm_cuda::Gpu;
use lgm_net::{Keep, Net, Options, Outline, Placement, expect_kind, fresh_seed};
use lgm_proto::{FileKind, NetParameter, NetState, Parsed, SolverParameter};

use crate::args::StateFlags;

/// Every layer type of this binary.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    lgm_layers::register(&mut registry);
    lgm_data::register(&mut registry);
    registry
}

/// The part of a net's state that flags give; an empty `-stage` is none, and so is a level of 0, which nets have anyway.
pub fn state(flags: &StateFlags) -> NetState {
    let stage = flags.stages.iter().filter(|s| !s.is_empty()).cloned().collect();
    NetState { phase: None, level: Some(flags.level).filter(|&level| level != 0), stage }
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

/// Loads several files of weights into a net, in order.
///
/// # Errors
/// When one is missing, damaged, of another kind or of another net.
pub fn load_weights(net: &mut Net, files: &[PathBuf]) -> Result<()> {
    files.iter().try_for_each(|file| {
        expect_kind(file, FileKind::Weights)?;
        net.load_weights(file)
    })
}
