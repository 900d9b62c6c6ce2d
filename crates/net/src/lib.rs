//! Nets: from a prototxt to a graph of planned layers, one arena of memory, and the forward and backward passes.

mod backward;
mod bind;
mod debug;
mod filter;
mod fuse;
mod graph;
mod memory;
mod net;
mod plan;
mod report;
mod weights;

pub use debug::six_digits;
pub use graph::phase_name;
pub use net::{LearnableInfo, Net, Options, fresh_seed};
pub use plan::Keep;
pub use report::LayerReport;
pub use weights::{hdf5_error, is_hdf5, read_dataset, write_dataset};
