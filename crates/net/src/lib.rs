//! Nets: from a prototxt to a graph of planned layers, one arena of memory, and the forward and backward passes.

mod away;
mod backward;
mod bind;
mod copied;
mod debug;
mod device;
mod filter;
mod formats;
mod fuse;
mod gpu;
mod graph;
mod memory;
mod net;
mod on_device;
mod plan;
mod report;
mod share;
mod simulated;
mod tape;
mod values;
mod weights;

pub use copied::Weights;
pub use debug::six_digits;
pub use device::{DeviceParams, Placement, SOLVER_WORDS};
pub use formats::Conversions;
pub use gpu::{Block, Feeder, Gpu, Replay, bytes_of, doubles_of, float_bytes, floats_of};
pub use graph::phase_name;
pub use lgm_core::memory::in_units;
pub use net::{LearnableInfo, Net, Options, fresh_seed};
pub use plan::Keep;
pub use report::{DeviceMemory, LayerReport, Outline};
pub use simulated::Simulated;
pub use tape::{Finish, Pass};
pub use values::NamedValues;
