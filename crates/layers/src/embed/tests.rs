use lgm_core::{DType, DevicePtr, DeviceQueue, Grid, Phase, Shape, args};
use lgm_cuda::Allocator;
use lgm_cuda::sim::{Order, Sim};
use lgm_testkit::{Case, DeviceHarness, Fill, Harness, Inputs, check, config_error};

use crate::tests::registry;

fn layer(param: &str) -> String {
    format!("layer {{ name: 'e' type: 'Embed' bottom: 'x' top: 'y' embed_param {{ {param} }} }}")
}

fn embed(rows: usize, outputs: usize, fields: &str) -> Case {
    Case::new(layer(&format!("input_dim: {rows} num_output: {outputs} {fields}")))
}

#[test]
fn cases() {
    check(
        &registry(),
        &[
            Case::golden("layers/embed"),
            embed(5, 3, "").bottom_of([4], Fill::Labels(5)),
            embed(5, 2, "bias_term: false").bottom_of([2, 3], Fill::Labels(5)),
            embed(3, 2, "weight_filler { value: 1 } bias_filler { value: 2 }").bottom_of([2, 1, 2, 2], Fill::Labels(3)),
            // A single index; one row; an index that repeats, out of order.
            embed(4, 2, "").bottom_of(Shape::scalar(), Fill::Given(vec![3.0])),
            embed(1, 1, "").bottom_of([3], Fill::Given(vec![0.0, -0.0, 0.0])),
            embed(4, 3, "").bottom_of([7], Fill::Given(vec![3.0, 1.0, 3.0, 0.0, 3.0, 1.0, 3.0])),
            // Enough for more than one part of the table, with rows that end within the last and parts that have none.
            embed(37, 70, "").without_gradients().bottom_of([1000], Fill::Labels(37)),
            embed(5, 70, "bias_term: false").without_gradients().bottom_of([1000], Fill::Labels(5)),
        ],
    );
}

#[test]
fn plan() {
    let text = layer("input_dim: 6 num_output: 5 weight_filler { value: 3 } bias_filler { value: 2 }");
    let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 3].into()]).unwrap();
    assert_eq!(harness.plan.tops[0].shape, Shape::from([2, 3, 5]));
    assert_eq!(harness.filled().unwrap(), [vec![3.0; 30], vec![2.0; 5]]);
    assert_eq!([&harness.plan.params[0].shape, &harness.plan.params[1].shape], [&Shape::from([6, 5]), &[5].into()]);
    assert_eq!(harness.plan.no_gradient, [0]);
    let text = layer("input_dim: 6 num_output: 5 bias_term: false");
    let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 3].into()]).unwrap();
    assert_eq!(harness.plan.params.len(), 1);
}

/// An index that repeats adds in the order of the batch, which rounding tells: 1 is lost beside 1e8.
#[test]
fn repeats_add_in_the_order_of_the_batch() {
    let text = layer("input_dim: 70 num_output: 1100 bias_term: false");
    let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[70].into()]).unwrap();
    let (mut indices, mut diffs) = (vec![0.0; 70], vec![0.0; 70 * 1100]);
    for (i, value) in [(3, 1e8), (30, 1.0), (69, -1e8)] {
        indices[i] = 69.0;
        diffs[i * 1100..][..1100].fill(value);
    }
    let want = [(0.0, [1e8, 1.0, -1e8]), (1.0, [1e8, -1e8, 1.0])];
    for (sum, order) in want {
        for (i, value) in [3, 30, 69].into_iter().zip(order) {
            diffs[i * 1100..][..1100].fill(value);
        }
        for threads in [1, 2, 5] {
            let inputs = Inputs { top_diffs: vec![diffs.clone()], ..harness.forward_inputs(&[&indices]).unwrap() };
            let out = lgm_cpu::with_threads(threads, || harness.run(&inputs)).unwrap();
            let dw = out.param_diffs[0].as_ref().unwrap();
            assert_eq!(dw[69 * 1100..], [sum; 1100], "{threads} threads");
            assert_eq!(dw[..69 * 1100], [0.0; 69 * 1100]);
        }
    }
}

#[test]
fn mistakes_are_named() {
    config_error(&registry(), &layer("input_dim: 3"), &[[2].into()], &["embed_param", "num_output of at least 1"]);
    config_error(&registry(), &layer("num_output: 3"), &[[2].into()], &["embed_param", "input_dim of at least 1"]);
    let harness =
        Harness::new(&registry(), &layer("input_dim: 7 num_output: 2"), Phase::Test, DType::F64, &[[2, 3].into()])
            .unwrap();
    for bad in [7.0, -1.0, 1.5, 6.5, -0.5, f64::NAN, f64::INFINITY] {
        let inputs = harness.forward_inputs(&[&[0.0, 6.0, 2.0, 1.0, bad, 9.0]]).unwrap();
        let error = harness.run(&inputs).unwrap_err().to_string();
        let needles = [&format!("index {bad} at position 4"), "shape (2, 3)", "0 to 6", "input_dim"];
        assert!(needles.iter().all(|n| error.contains(n)), "{error}");
    }
}

/// On a device: around a warp, the keys that are added up together and those that a block sorts; one index everywhere.
#[test]
fn sorted_positions() {
    let mut cases = Vec::new();
    for n in [1, 15, 16, 17, 31, 32, 33, 257] {
        cases.push(embed(n, 3, "").bottom_of([33], Fill::Labels(n)));
        cases.push(embed(5, n, "").bottom_of([2, 17], Fill::Labels(5)));
        cases.push(embed(7, 2, "").bottom_of([n], Fill::Labels(7)));
        cases.push(embed(9, 33, "bias_term: false").bottom_of([n], Fill::Given(vec![8.0; n])));
    }
    for n in [1023, 1024, 1025, 2049, 5000] {
        let padded = (0..n).map(|i| if i % 3 == 0 { (i % 101) as f64 } else { 40.0 });
        cases.push(embed(101, 2, "bias_term: false").bottom_of([n], Fill::Given(padded.collect())));
        cases.push(embed(50, 3, "bias_term: false").bottom_of([n], Fill::Labels(50)));
    }
    cases.push(embed(70_000, 2, "bias_term: false").bottom_of([3000], Fill::Labels(70_000)));
    check(&registry(), &cases.into_iter().map(Case::without_gradients).collect::<Vec<_>>());
}

#[test]
fn a_stranger_is_reported_as_on_the_host() {
    let text = layer("input_dim: 3 num_output: 1 bias_term: false");
    let shapes = [Shape::from([50, 60])];
    let host = Harness::new(&registry(), &text, Phase::Test, DType::F32, &shapes).unwrap();
    for unknown in [vec![(2999, -1.0)], vec![(2000, 1e10), (17, 1.5), (1041, 2.5)], vec![(1, f64::NAN)]] {
        let mut indices = vec![2.0; 3000];
        unknown.iter().for_each(|&(i, v)| indices[i] = v);
        let first = unknown.iter().map(|s| s.0).min().unwrap();
        for order in [Order::Forward, Order::Reversed] {
            let Some(harness) = DeviceHarness::new(&registry(), &text, Phase::Test, &shapes, order).unwrap() else {
                return;
            };
            let inputs = harness.harness.forward_inputs(&[&indices]).unwrap();
            let (device, host) =
                (harness.run(&inputs).unwrap_err().to_string(), host.run(&inputs).unwrap_err().to_string());
            assert!(device == host && device.contains(&format!("at position {first} of")), "{device}, {host}");
        }
    }
}

/// What forward reports, backward leaves out: no kernel reaches beyond the table, even where that is larger than single
/// precision's whole numbers without gaps.
#[test]
fn indices_of_no_row_are_left_out() {
    for order in [Order::Forward, Order::Reversed] {
        let sim = match Sim::new(order) {
            Ok(sim) => sim,
            Err(why) => return lgm_testkit::skipped("simulator", why),
        };
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let upload = |values: &[f32]| {
            let at = sim.alloc(4 * values.len()).unwrap();
            sim.upload(&bytes(values), at).unwrap();
            at
        };
        let download = |at: DevicePtr, len: usize| {
            let mut bytes = vec![0; 4 * len];
            sim.download(at, &mut bytes).unwrap();
            bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let (x, keys) = (upload(&[1.0, 1e9, 0.5, 1.0, -1.0, f32::NAN, 0.0, 3.0]), upload(&[0.0; 16]));
        let (dw, dy) = (upload(&[1.0; 3]), upload(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]));
        sim.launch("embed_sort", Grid::rows(1, Grid::THREADS), args![keys, x, 3u32, 8u32]).unwrap();
        let grid = Grid::rows(1, Grid::THREADS);
        sim.launch("embed_add", grid, args![dw, DevicePtr::NULL, keys, dy, 8u32, 1u32]).unwrap();
        assert_eq!(download(dw, 3), [65.0, 10.0, 1.0]);

        let (wide, fault) = (upload(&[16777216.0, 16777218.0, 4294967296.0]), upload(&[0.0; 4]));
        for (table, first) in [(16777216u32, 0), (16777217, 1), (u32::MAX, 2)] {
            sim.zero(fault, 16).unwrap();
            sim.launch("embed_check", Grid::rows(1, Grid::THREADS), args![wide, table, 3u32, fault]).unwrap();
            assert_eq!(download(fault, 2).iter().map(|w| w.to_bits()).collect::<Vec<_>>(), [1, first]);
        }
        [x, keys, dw, dy, wide, fault].into_iter().for_each(|at| sim.free(at).unwrap());
    }
}
