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
mod kind;
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
pub use gpu::{Block, Feeder, Gpu, Replay, bytes_of, doubles_of, float_bytes, floats_of, in_units};
pub use graph::phase_name;
pub use kind::{expect_kind, kind_of};
pub use net::{LearnableInfo, Net, Options, fresh_seed};
pub use plan::Keep;
pub use report::{DeviceMemory, LayerReport};
pub use simulated::Simulated;
pub use tape::{Finish, Pass};
pub use values::NamedValues;
pub use weights::{hdf5_error, is_hdf5, read_dataset, write_dataset};
