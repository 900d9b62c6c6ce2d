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

use prost_reflect::{DescriptorPool, MessageDescriptor};

pub use binary::{LayerWeights, Weights, decode_net, encode, read_binary, read_net_binary, read_weights};
pub use error::{BinaryFault, Error, Fault, Position, Result, WireFault};
pub use forks::forks_of_layer;
pub use kind::FileKind;
pub use layer_types::layer_type_of_older;
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

/// The supported part of the schema, which the types here are made of.
pub static DESCRIPTOR_POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| decoded(include_bytes!(concat!(env!("OUT_DIR"), "/supported.bin"))));

/// The whole schema, with the fields of every known fork. It is several times as large, and most files need none of it.
pub static WHOLE_POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| decoded(include_bytes!(concat!(env!("OUT_DIR"), "/whole.bin"))));

#[expect(clippy::expect_used, reason = "the bytes are written by build.rs, and every test of this crate decodes them")]
fn decoded(schema: &[u8]) -> DescriptorPool {
    DescriptorPool::decode(schema).expect("the schema compiled by build.rs decodes")
}

/// A message type with the fields of every known fork.
pub fn whole(of: &MessageDescriptor) -> MessageDescriptor {
    WHOLE_POOL.get_message_by_name(of.full_name()).unwrap_or_else(|| of.clone())
}
