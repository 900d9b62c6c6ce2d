//! The paper's CIFAR-100 net keeps within its memory budget.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use lgm_core::Phase;
use lgm_net::{Net, Options};
use lgm_proto::{BlobShape, DummyDataParameter, LayerParameter};

/// What training the paper's net at batch 128 may take: blobs, gradients, scratch, parameters and one history.
const BUDGET: usize = 1_300_000_000;

fn paper_net(batch: i64, fuse: bool) -> Net {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/cifar100_simple/train_val.prototxt");
    let mut parsed = lgm_proto::read_net(path).unwrap();
    let data = parsed.message.layer.iter_mut().find(|l| l.r#type() == "HDF5Data").unwrap();
    let shape = |dim: &[i64]| BlobShape { dim: dim.to_vec() };
    *data = LayerParameter {
        r#type: Some("DummyData".into()),
        hdf5_data_param: None,
        dummy_data_param: Some(DummyDataParameter {
            shape: vec![shape(&[batch, 3, 32, 32]), shape(&[batch])],
            ..Default::default()
        }),
        ..data.clone()
    };
    let options = Options { fuse, ..Options::new(Phase::Train, 1) };
    Net::new(&parsed.message, &parsed.positions, &common::registry(), &options).unwrap()
}

#[test]
fn the_papers_net_fits_its_budget() {
    let net = paper_net(128, true);
    let history = net.param_bytes() / 2;
    let total = net.arena_bytes() + net.param_bytes() + history;
    assert!(total < BUDGET, "{total} bytes: {} in the arena, {} in parameters", net.arena_bytes(), net.param_bytes());
}

#[test]
fn the_arena_grows_with_the_batch() {
    let (small, large) = (paper_net(4, true).arena_bytes(), paper_net(8, true).arena_bytes());
    assert!(small < large && large < 2 * small + 4096, "{small} and {large}");
}
