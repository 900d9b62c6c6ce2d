use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Draw, Inputs, Rig, check, config_error};

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
            embed(5, 3, "").bottom_of([4], Draw::Labels(5)),
            embed(5, 2, "bias_term: false").bottom_of([2, 3], Draw::Labels(5)),
            embed(3, 2, "weight_filler { value: 1 } bias_filler { value: 2 }").bottom_of([2, 1, 2, 2], Draw::Labels(3)),
            // A single index; one row; an index that repeats, out of order.
            embed(4, 2, "").bottom_of(Shape::scalar(), Draw::Given(vec![3.0])),
            embed(1, 1, "").bottom_of([3], Draw::Given(vec![0.0, -0.0, 0.0])),
            embed(4, 3, "").bottom_of([7], Draw::Given(vec![3.0, 1.0, 3.0, 0.0, 3.0, 1.0, 3.0])),
            // Enough for more than one part of the table, with rows that end within the last and parts that have none.
            embed(37, 70, "").without_gradients().bottom_of([1000], Draw::Labels(37)),
            embed(5, 70, "bias_term: false").without_gradients().bottom_of([1000], Draw::Labels(5)),
        ],
    );
}

#[test]
fn plan() {
    let text = layer("input_dim: 6 num_output: 5 weight_filler { value: 3 } bias_filler { value: 2 }");
    let rig = Rig::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 3].into()]).unwrap();
    assert_eq!(rig.plan.tops[0].shape, Shape::from([2, 3, 5]));
    assert_eq!(rig.filled().unwrap(), [vec![3.0; 30], vec![2.0; 5]]);
    assert_eq!([&rig.plan.params[0].shape, &rig.plan.params[1].shape], [&Shape::from([6, 5]), &[5].into()]);
    assert_eq!(rig.plan.no_gradient, [0]);
    let text = layer("input_dim: 6 num_output: 5 bias_term: false");
    let rig = Rig::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 3].into()]).unwrap();
    assert_eq!(rig.plan.params.len(), 1);
}

/// An index that repeats adds in the order of the batch, which rounding tells: 1 is lost beside 1e8.
#[test]
fn repeats_add_in_the_order_of_the_batch() {
    let text = layer("input_dim: 70 num_output: 1100 bias_term: false");
    let rig = Rig::new(&registry(), &text, Phase::Train, DType::F32, &[[70].into()]).unwrap();
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
            let inputs = Inputs { top_diffs: vec![diffs.clone()], ..rig.forward_inputs(&[&indices]).unwrap() };
            let out = lgm_cpu::with_threads(threads, || rig.run(&inputs)).unwrap();
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
    let rig =
        Rig::new(&registry(), &layer("input_dim: 7 num_output: 2"), Phase::Test, DType::F64, &[[2, 3].into()]).unwrap();
    for bad in [7.0, -1.0, 1.5, 6.5, -0.5, f64::NAN, f64::INFINITY] {
        let inputs = rig.forward_inputs(&[&[0.0, 6.0, 2.0, 1.0, bad, 9.0]]).unwrap();
        let error = rig.run(&inputs).unwrap_err().to_string();
        let needles = [&format!("index {bad} at position 4"), "shape (2, 3)", "0 to 6", "input_dim"];
        assert!(needles.iter().all(|n| error.contains(n)), "{error}");
    }
}
