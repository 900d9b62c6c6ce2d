//! The memory plan: what is shared and overwritten never shows in a result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_core::Phase;
use lgm_net::{Keep, Net, Options};

/// Branches with views, in-place layers, dropout, concatenation and sums over one another.
fn branched() -> String {
    let relu =
        |name: &str, blob: &str| format!("layer {{ name: '{name}' type: 'ReLU' bottom: '{blob}' top: '{blob}' }}\n");
    gaussian("x", &[6, 2, 4])
        + &gaussian("t", &[6, 5])
        + "layer { name: 'flat' type: 'Flatten' bottom: 'x' top: 'xf' }\n"
        + &product("ip1", "xf", "a", 12, "")
        + &relu("r1", "a")
        + &product("ip2", "a", "b", 12, "")
        + "layer { name: 'd2' type: 'Dropout' bottom: 'b' top: 'b' }\n"
        + "layer { name: 'bv' type: 'Reshape' bottom: 'b' top: 'bv' reshape_param { shape { dim: 6 dim: 3 dim: 4 } } }\n"
        + "layer { name: 'tanh' type: 'TanH' bottom: 'bv' top: 'bv' }\n"
        + "layer { name: 'slice' type: 'Slice' bottom: 'bv' top: 's1' top: 's2' slice_param { slice_point: 1 } }\n"
        + "layer { name: 'p1' type: 'Power' bottom: 's1' top: 's1' power_param { power: 2 shift: 0.5 } }\n"
        + "layer { name: 'sf1' type: 'Flatten' bottom: 's1' top: 'sf1' }\n"
        + "layer { name: 'sf2' type: 'Flatten' bottom: 's2' top: 'sf2' }\n"
        + "layer { name: 'cat' type: 'Concat' bottom: 'sf2' bottom: 'sf1' top: 'c' }\n"
        + "layer { name: 'sum' type: 'Eltwise' bottom: 'c' bottom: 'a' top: 'e' eltwise_param { coeff: [1, -0.5] } }\n"
        + &relu("r2", "e")
        + &product("ip3", "e", "y", 5, "")
        + "layer { name: 'max' type: 'Eltwise' bottom: 'c' bottom: 'e' top: 'm' eltwise_param { operation: MAX } }\n"
        + "layer { name: 'sig' type: 'Sigmoid' bottom: 'm' top: 'm' loss_weight: 0.01 }\n"
        + "layer { name: 'scale' type: 'Scale' bottom: 'y' top: 'y' scale_param { bias_term: true } }\n"
        + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }"
}

/// Losses, outputs and gradients of some passes, as bits.
fn results(net: &mut Net) -> Vec<(u64, Vec<u64>, Vec<u32>)> {
    (0..4)
        .map(|batch| {
            let loss = pass(net, batch).to_bits();
            let outputs = data(net, "m").iter().chain(&data(net, "loss")).map(|v| v.to_bits()).collect();
            (loss, outputs, gradients(net).iter().map(|v| v.to_bits()).collect())
        })
        .collect()
}

#[test]
fn keeping_blobs_changes_nothing_but_memory() {
    let text = branched();
    let with = |keep: Keep| {
        let mut net = try_net(&text, &Options { keep, ..options() }).unwrap();
        (results(&mut net), net.arena_bytes())
    };
    let (all, all_bytes) = with(Keep::All);
    assert!(all.iter().all(|(_, _, g)| g.iter().filter(|v| **v != 0).count() > g.len() / 2));
    let (outputs, few_bytes) = with(Keep::Outputs);
    assert_eq!(all, outputs);
    assert!(few_bytes < all_bytes, "{few_bytes} against {all_bytes}");
    for named in ["a", "b", "bv", "c", "e"] {
        let (named_results, bytes) = with(Keep::Named(vec![named.into()]));
        assert_eq!(all, named_results, "{named}");
        assert!(bytes <= all_bytes, "{named}: {bytes} against {all_bytes}");
    }
}

/// A blob that is kept holds, after backward, what forward put there last.
#[test]
fn a_kept_blob_holds_its_value_after_backward() {
    let mut whole = try_net(&branched(), &Options { backward: false, ..options() }).unwrap();
    whole.forward(&step(0)).unwrap();
    for blob in ["x", "xf", "a", "b", "bv", "s1", "s2", "sf1", "c", "e", "y", "m"] {
        let keep = Keep::Named(vec![blob.into()]);
        let mut net = try_net(&branched(), &Options { keep, ..options() }).unwrap();
        pass(&mut net, 0);
        assert_eq!(data(&net, blob), data(&whole, blob), "{blob}");
    }
}

#[test]
fn a_deep_chain_takes_less_memory_than_its_blobs() {
    let (rows, width, depth) = (32, 64, 20);
    let blob = rows * width * 4;
    let mut text = gaussian("x", &[rows, width]);
    for i in 0..depth {
        let bottom = if i == 0 { "x".to_string() } else { format!("h{}", i - 1) };
        text += &product(&format!("ip{i}"), &bottom, &format!("h{i}"), width, "");
    }
    let bytes = |text: &str, options: Options| try_net(text, &options).unwrap().arena_bytes();
    // Without backward two blobs are in use at a time, whatever the depth.
    let forward = bytes(&text, Options { keep: Keep::Outputs, backward: false, ..options() });
    assert!(forward < 4 * blob, "{forward} bytes for blobs of {blob}");
    // With backward the products' inputs must be kept, but of the gradients only two at a time.
    let text = text + "layer { name: 'l' type: 'Power' bottom: 'h19' top: 'l' loss_weight: 1 }";
    let training = bytes(&text, Options { keep: Keep::Outputs, ..options() });
    assert!(training < (depth + 6) * blob, "{training} bytes for {depth} blobs of {blob}");
    let all = bytes(&text, options());
    assert!(all >= 2 * depth * blob, "{all}");
}

/// Layers that can run in place in a test net do, whatever the prototxt names their tops.
#[test]
fn element_wise_layers_share_memory_of_their_own_accord() {
    let (rows, width) = (16, 256);
    let mut text = gaussian("x", &[rows, width]);
    for i in 0..10 {
        let bottom = if i == 0 { "x".to_string() } else { format!("h{}", i - 1) };
        text += &format!("layer {{ name: 'r{i}' type: 'ReLU' bottom: '{bottom}' top: 'h{i}' }}\n");
    }
    let net = try_net(&text, &Options::new(Phase::Test, 1)).unwrap();
    assert!(net.arena_bytes() <= rows * width * 4 + 1024, "{}", net.arena_bytes());
}
