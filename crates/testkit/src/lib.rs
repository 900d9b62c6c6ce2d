//! Tests of layers from one description: a [`Case`] is a layer in prototxt with its inputs, written out or recorded
//! from Caffe, and [`check`] puts it through everything a layer must satisfy:
//!
//! - recorded values, where the case has them, in f32;
//! - gradients against central finite differences in f64, for every bottom and parameter;
//! - an honest [`lgm_core::Plan`]: the layer sees nothing it did not plan to read, writes every output whole, finds its
//!   scratch and saved memory full of NaN, adds to (not overwrites) its parameters' gradients, gives the same bits with
//!   and without each sharing of memory it allows, with each gradient wanted alone, in a net without backward, and with
//!   any number of threads.
//!
//! - the device half, if the layer has one, on the simulated device ([`DeviceHarness`]) against the host's f32 run, with the
//!   same honesty; the same bits whatever the order of the threads.
//!
//! [`random_nets`] draws whole nets, for what lies between layers. [`Harness`] runs one layer by hand, for what a case cannot
//! say, and [`FakeGpu`] has calls fail, where tests run on one. [`config_error`] tests messages.

#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod case;
mod check;
mod compare;
mod device;
mod fake;
mod gpu;
mod harness;
mod host_only;
mod memory;
mod nets;
mod npz;
mod pool;
mod require;
mod text;

pub use case::{Case, Fill};
pub use check::{check, config_error};
pub use compare::assert_close;
pub use device::DeviceHarness;
pub use fake::{Fails, FakeGpu};
pub use gpu::{device, gpu};
pub use harness::{Harness, Inputs, Outputs, Sharing, parse_layer};
pub use host_only::HostOnly;
pub use nets::{RandomNet, random_nets};
pub use npz::{Recorded, golden};
pub use require::{has_simulator, skip, skipped};
pub use text::{registry, says};
