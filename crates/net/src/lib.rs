//! Nets: from a prototxt to a graph of planned layers, one arena of memory, and the forward and backward passes.

mod exec;
mod graph;
mod net;
mod on_device;
mod options;
mod passes;
mod report;
mod values;
mod weights;

pub use exec::{DeviceParams, DeviceUpdate, NamedValues, Pass, SOLVER_WORDS};
pub use graph::filter::filter as included;
pub use graph::phase_name;
pub use lgm_core::memory::in_units;
pub use lgm_proto::six_digits;
pub use net::{LearnableInfo, Net};
pub use on_device::OnDevice;
pub use options::{Options, Placement, fresh_seed};
pub use passes::formats::Conversions;
pub use passes::memory::Keep;
pub use report::convolutions::Convolutions;
pub use report::{DeviceMemory, LayerReport, Outline};
pub use weights::{Loaded, Weights, expect_kind, kind_of};
