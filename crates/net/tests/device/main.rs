//! Nets on a simulated device, or on a GPU where `LGM_TEST_DEVICE` is `cuda`, against the same nets on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod formats;
mod nets;
mod sharing;

use lgm_core::{Phase, Storage};
use lgm_cuda::sim::Order;
use lgm_net::{Keep, Options};
use lgm_testkit::device;
use nets::*;

#[test]
fn a_device_computes_what_the_host_does_and_the_same_bits_each_time() {
    let Some(forward) = device(Order::Forward, None, Storage::default()) else { return };
    let Some(reversed) = device(Order::Reversed, None, Storage::default()) else { return };
    for (name, text) in nets() {
        for keep in [Keep::Outputs, Keep::All] {
            let options = Options { keep: keep.clone(), ..Options::new(Phase::Train, 1) };
            let want = run(&text, &options).unwrap();
            assert!(want.gradients.iter().any(|g| *g != 0.0), "{name}");
            let a = run(&text, &on(&forward, options.clone())).unwrap();
            let b = run(&text, &on(&reversed, options)).unwrap();
            for (what, ((a, b), want)) in ["losses", "outputs", "parameters", "gradients"]
                .iter()
                .zip(a.all().into_iter().zip(b.all()).zip(want.all()))
            {
                near(&format!("{name} {keep:?}: {what}"), a, want);
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(a) == bits(b), "{name}: {what} depend on the order of threads");
            }
        }
    }
}
