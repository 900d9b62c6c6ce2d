//! Caffe's schema as Rust types, and the files made of it: prototxt in and out, upgrades of older nets and solvers,
//! binary weights and solver states.
//!
//! Every message of `proto/caffe.proto` is a struct at the root of this crate. A field that may be absent is an
//! `Option`, because Caffe's logic depends on presence; the method of the field's name gives the value or its
//! default: `param.eps` is an `Option<f32>`, `param.eps()` an `f32`.

mod binary;
mod error;
mod forks;
mod kind;
mod layer_types;
mod nearest;
mod numbers;
mod read;
pub mod strings;
mod text;
mod upgrade;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

pub use binary::{LayerWeights, Weights, decode_net, encode, read_binary, read_net_binary, read_weights};
pub use error::{BinaryFault, Error, Fault, Position, Result, WireFault};
pub use forks::forks_of_layer;
pub use kind::FileKind;
pub use nearest::nearest;
pub use numbers::check_numbers;
pub use prost;
pub use prost_reflect;
pub use read::{parse_net, parse_solver, read_net, read_solver};
pub use text::{Parsed, Positions, parse, six_digits, to_text};
pub use upgrade::{Upgraded, upgrade_net_binary, upgrade_net_text, upgrade_solver_text};

mod schema {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/caffe.rs"));
}
pub use schema::*;

/// The compiled schema, for code that works on any message.
#[expect(clippy::expect_used, reason = "the bytes are written by build.rs, and every test of this crate decodes them")]
pub static DESCRIPTOR_POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/file_descriptor_set.bin"));
    DescriptorPool::decode(bytes).expect("the schema compiled by build.rs decodes")
});
