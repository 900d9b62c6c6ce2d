//! The ground that every other crate of lgm-caffe stands on: shapes, element types, memory spaces, the layer traits,
//! fillers, counter-based random numbers and errors. No device's own code and no data formats.

mod convolution;
mod device;
mod dtype;
mod error;
pub mod filler;
mod format;
pub mod fs;
mod layer;
pub mod memory;
pub mod rng;
mod shape;
pub mod space;
mod window;

pub use convolution::{ConvolutionPass, DeviceConvolution, Maker, PreparedConvolution};
pub use device::{Arg, Device, DevicePtr, DeviceQueue, Fault, Gemm, Grid};
pub use dtype::{DType, Float};
pub use error::{Error, Position, Result, nearest};
pub use format::{ChannelsLast, Element, Format, Formats, Kernel, Layout, Offer, Storage, TENSOR_CORES_FROM, rounded};
pub use layer::{
    Arity, BuildCx, Bwd, Compute, ConversionFactory, DeviceCall, DeviceLayer, EpilogueRule, Everywhere, Factory,
    FusionRule, Fwd, HostCall, HostLayer, Layer, Node, ParamSpec, Plan, Registry, Run, Sharing, Sink, Source,
    StandInRule, State, Step, Views, ViewsMut,
};
pub use lgm_proto::Phase;
pub use shape::{Axes3, BlobSpec, Shape, count};
pub use space::{Host, Space, View, ViewMut};
pub use window::Window;
