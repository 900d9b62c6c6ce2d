//! What a net is built for.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

use lgm_core::{DType, Phase};
use lgm_cuda::Gpu;
use lgm_proto::NetState;

use crate::passes::memory::Keep;

/// The device that a net runs on.
#[derive(Clone)]
pub struct Placement {
    /// The device.
    pub gpu: Rc<dyn Gpu>,
    /// Arrays of the parameters' size that whoever trains the net will want besides, for the check that all fits.
    pub histories: usize,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Placement on {} with {} histories", self.gpu.name(), self.histories)
    }
}

/// What a net is built for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Phase, level and stages, which choose layers.
    pub state: NetState,
    /// Whether backward will run; without it no memory is given to gradients.
    pub backward: bool,
    /// Element type of every blob.
    pub dtype: DType,
    /// Seed of every random choice.
    pub seed: u64,
    /// Blobs that stay readable after a pass.
    pub keep: Keep,
    /// Whether layers may be computed together where nobody can see it.
    pub fuse: bool,
    /// Whether a net on the host fills memory with NaN as soon as nothing is to read it, so that a use of it shows: for
    /// tests.
    pub poison: bool,
    /// The device to run on; the host if none.
    pub device: Option<Placement>,
}

impl Options {
    /// Single precision, outputs kept only; backward in the TRAIN phase; fusion unless the environment says
    /// `LGM_FUSE=0`.
    pub fn new(phase: Phase, seed: u64) -> Self {
        let state = NetState { phase: Some(phase as i32), ..Default::default() };
        Options {
            state,
            backward: phase == Phase::Train,
            dtype: DType::F32,
            seed,
            keep: Keep::Outputs,
            fuse: std::env::var_os("LGM_FUSE").is_none_or(|v| v != "0"),
            poison: false,
            device: None,
        }
    }

    /// Lays `over` on the state, as protobuf merges messages: given fields replace, stages add up.
    pub fn merge_state(&mut self, over: Option<&NetState>) {
        if let Some(over) = over {
            self.state.phase = over.phase.or(self.state.phase);
            self.state.level = over.level.or(self.state.level);
            self.state.stage.extend(over.stage.iter().cloned());
        }
    }
}

/// A seed for runs that name none.
pub fn fresh_seed() -> u64 {
    // The standard library keys each RandomState from the system's entropy.
    RandomState::new().build_hasher().finish()
}
