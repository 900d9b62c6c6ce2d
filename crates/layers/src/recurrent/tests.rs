use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, check, config_error};

fn layer(kind: &str, param: &str, bottoms: usize, tops: usize) -> String {
    let names = |what: &str, n: usize| (0..n).map(|i| format!("{what}: '{what}{i}' ")).collect::<String>();
    let (bottoms, tops) = (names("bottom", bottoms), names("top", tops));
    format!("layer {{ name: 'r' type: '{kind}' {bottoms} {tops} recurrent_param {{ {param} }} }}")
}

/// Continuations: streams that begin, that go on, and some between.
fn cont(values: &[f64]) -> Fill {
    Fill::Given(values.to_vec())
}

/// Widens what is recorded of a layer that exposes its state: Caffe lets no gradient in through it.
fn golden(name: &str, tops: usize) -> Case {
    (1..tops).fold(Case::golden(name), Case::flat_top)
}

#[test]
fn lstm() {
    let streams = [1.0, 0.0, 0.0, 1.0, 1.0, 0.5];
    check(
        &registry(),
        &[
            golden("layers/lstm", 1),
            golden("layers/lstm_more_0", 1),
            golden("layers/lstm_more_1", 3),
            golden("layers/lstm_more_2", 1),
            Case::new(layer("LSTM", "num_output: 3", 2, 1))
                .bottom([3, 2, 2])
                .bottom_of([3, 2], cont(&streams))
                .param(3, Fill::Normal(0.0, 1.0))
                .param(4, Fill::Normal(0.0, 1.0)),
            Case::new(layer("LSTM", "num_output: 2 expose_hidden: true", 5, 3))
                .bottom([2, 3, 2, 1])
                .bottom_of([2, 3], cont(&streams))
                .bottom([3, 1, 2])
                .bottom([1, 3, 2])
                .bottom([1, 3, 2]),
            Case::new(layer("LSTM", "num_output: 1 weight_filler { type: 'xavier' }", 3, 1))
                .bottom([1, 1, 1])
                .bottom_of([1, 1], cont(&[1.0]))
                .bottom([1]),
            Case::new(layer("LSTM", "num_output: 33", 2, 1))
                .bottom([2, 70, 5])
                .bottom_of([2, 70], Fill::Labels(2))
                .without_gradients(),
        ],
    );
}

#[test]
fn rnn() {
    let streams = [1.0, 0.0, 0.0, 1.0, 1.0, 0.5];
    check(
        &registry(),
        &[
            golden("layers/rnn", 1),
            golden("layers/rnn_more_0", 1),
            golden("layers/rnn_more_1", 2),
            Case::new(layer("RNN", "num_output: 3", 2, 1))
                .bottom([3, 2, 2])
                .bottom_of([3, 2], cont(&streams))
                .param(5, Fill::Normal(0.0, 1.0)),
            Case::new(layer("RNN", "num_output: 2 expose_hidden: true", 4, 2))
                .bottom([2, 3, 2])
                .bottom_of([2, 3], cont(&streams))
                .bottom([3, 2])
                .bottom([1, 3, 2]),
            Case::new(layer("RNN", "num_output: 40", 3, 1))
                .bottom([3, 66, 3])
                .bottom_of([3, 66], Fill::Labels(2))
                .bottom([66, 4])
                .without_gradients(),
        ],
    );
}

#[test]
fn unit() {
    let unit = "layer { name: 'u' type: 'LSTMUnit' bottom: 'c0' bottom: 'x' bottom: 'cont' top: 'c' top: 'h' }";
    check(
        &registry(),
        &[
            Case::new(unit).bottom([1, 3, 2]).bottom([1, 3, 8]).bottom_of([1, 3], cont(&[1.0, 0.0, 0.5])),
            Case::new(unit)
                .bottom([1, 70, 33])
                .bottom([1, 70, 132])
                .bottom_of([1, 70], Fill::Labels(2))
                .without_gradients(),
        ],
    );
    let refused = |shapes: [Shape; 3], needles: &[&str]| config_error(&registry(), unit, &shapes, needles);
    refused([[2, 3, 2].into(), [1, 3, 8].into(), [1, 3].into()], &["bottom 0, the cells", "(2, 3, 2)"]);
    refused([[1, 3, 2].into(), [1, 3, 2].into(), [1, 3].into()], &["bottom 1, the gates", "(1, 3, 8)", "(1, 3, 2)"]);
    refused([[1, 3, 2].into(), [1, 3, 8].into(), [3].into()], &["bottom 2, the continuation", "(1, 3)", "(3)"]);
}

/// Two passes of three steps are one of six, where the second goes on from the first.
#[test]
fn a_pass_goes_on_from_the_one_before() {
    for kind in ["LSTM", "RNN"] {
        let text = layer(kind, "num_output: 4 weight_filler { type: 'xavier' } bias_filler { value: 0.2 }", 2, 1);
        let run = |steps: usize, bottoms: Vec<Vec<f64>>, state: Option<&[Vec<f64>]>| {
            let shapes = [[steps, 2, 3].into(), [steps, 2].into()];
            let harness = Harness::new(&registry(), &text, Phase::Train, DType::F64, &shapes).unwrap();
            let mut inputs = harness.forward_inputs(&[&bottoms[0], &bottoms[1]]).unwrap();
            let first = harness.plan.params.iter().position(|p| p.carried).unwrap();
            inputs.params[first..].iter_mut().zip(state.unwrap_or_default()).for_each(|(p, s)| p.clone_from(s));
            let out = harness.run(&inputs).unwrap();
            (out.tops[0].clone(), out.params[first..].to_vec())
        };
        let x: Vec<f64> = (0..36).map(|i| ((i * 7) % 11) as f64 / 5.0 - 1.0).collect();
        let cont = [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]].concat();
        let (whole, end) = run(6, vec![x.clone(), cont.clone()], None);
        let (first, state) = run(3, vec![x[..18].to_vec(), cont[..6].to_vec()], None);
        let (second, last) = run(3, vec![x[18..].to_vec(), cont[6..].to_vec()], Some(&state));
        assert_eq!(whole, [first, second].concat(), "{kind}");
        assert_eq!(end, last, "{kind}");
    }
}

#[test]
fn plan() {
    let shapes = |lists: &[&[usize]]| lists.iter().map(|&l| Shape::from(l)).collect::<Vec<_>>();
    let harness = |text: &str, bottoms: &[&[usize]]| {
        Harness::new(&registry(), text, Phase::Train, DType::F32, &shapes(bottoms)).unwrap()
    };
    let lstm = harness(&layer("LSTM", "num_output: 5", 3, 1), &[&[4, 3, 2, 2], &[4, 3], &[3, 6]]);
    let found: Vec<Shape> = lstm.params.iter().map(|p| p.shape.clone()).collect();
    assert_eq!(found, shapes(&[&[20, 4], &[20], &[20, 6], &[20, 5], &[1, 3, 5], &[1, 3, 5]]));
    assert_eq!(lstm.plan.flops, 2 * 12 * 20 * (4 + 5));
    let rnn = harness(&layer("RNN", "num_output: 5 expose_hidden: true", 3, 2), &[&[4, 3], &[4, 3], &[1, 3, 5]]);
    let found: Vec<Shape> = rnn.params.iter().map(|p| p.shape.clone()).collect();
    assert_eq!(found, shapes(&[&[5, 1], &[5], &[5, 5], &[5, 5], &[5]]));
    assert_eq!(rnn.plan.tops[1].shape, Shape::from([1, 3, 5]));
}

#[test]
fn mistakes_are_named() {
    let lstm = layer("LSTM", "num_output: 2", 2, 1);
    config_error(&registry(), &layer("RNN", "", 2, 1), &[[2, 3].into(), [2, 3].into()], &["num_output"]);
    config_error(&registry(), &lstm, &[[2].into(), [2, 3].into()], &["bottom 0", "time steps", "streams", "(2)"]);
    config_error(&registry(), &lstm, &[[2, 3, 0].into(), [2, 3].into()], &["bottom 0 must not be empty"]);
    config_error(&registry(), &lstm, &[[2, 3, 1].into(), [3, 2].into()], &["bottom 1", "go on", "(2, 3)", "(3, 2)"]);
    let fixed = layer("LSTM", "num_output: 2", 3, 1);
    config_error(
        &registry(),
        &fixed,
        &[[2, 3, 1].into(), [2, 3].into(), [2, 3].into()],
        &["static input", "3 streams"],
    );
    let exposed = layer("LSTM", "num_output: 2 expose_hidden: true", 4, 3);
    let shapes: [Shape; 4] = [[2, 3, 1].into(), [2, 3].into(), [1, 3, 2].into(), [1, 3, 1].into()];
    config_error(&registry(), &exposed, &shapes, &["bottom 3, the first cells", "(1, 3, 2)", "(1, 3, 1)"]);
}
