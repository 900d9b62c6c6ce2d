use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, Outputs, assert_close, check, config_error, says};

fn layer(param: &str) -> String {
    format!("layer {{ name: 'r' type: 'RegionLoss' bottom: 'x' bottom: 'y' top: 'l' region_loss_param {{ {param} }} }}")
}

const TWO: &str = "num: 2 num_class: 3 biases: 0.5 biases: 0.6 biases: 1.5 biases: 1.2";

#[test]
fn cases() {
    let objects = vec![
        1., 0.3, 0.4, 0.2, 0.3, 2., 0.3, 0.45, 0.25, 0.3, 0., 0.9, 0.1, 0.5,
        0.4, // The first two are in one cell.
        2., 1.0, 0.5, 0.6, 1.0, 0., 0., 0., 0., 0., 9., 0., 0., 0., 0.,
    ];
    let case = |param: &str| {
        Case::new(layer(&format!("{TWO} {param}")))
            .without_gradients()
            .bottom([2, 16, 4, 3])
            .bottom_of([2, 15], Fill::Given(objects.clone()))
    };
    let scales = "object_scale: 5 noobject_scale: 1 class_scale: 2 coord_scale: 3";
    check(
        &registry(),
        &[case(""), case(&format!("rescore: 0 {scales}")), case("bias_match: 0 thresh: 0.6"), case("thresh: 0")],
    );
}

fn run(param: &str, x: &[f64], object: &[f64], shape: [usize; 4]) -> Outputs {
    let shapes: [Shape; 2] = [shape.into(), [1, 1, 1, object.len()].into()];
    let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F64, &shapes).unwrap();
    let mut inputs = harness.forward_inputs(&[x, object]).unwrap();
    inputs.top_diffs = vec![vec![1.0]];
    harness.run(&inputs).unwrap()
}

/// What the gradient is that of, for one box in each of two cells side by side and one object, in the second.
fn surrogate(x: &[f64], overlap: Option<f64>) -> f64 {
    let number = |c: usize, cell: usize| x[2 * c + cell];
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    let square = |v: f64| 0.5 * v * v;
    let scale = if overlap.is_some() { 3.0 } else { 3.0 * (2.0 - 0.3 * 0.5) };
    let wanted = [0.7 * 2.0 - 1.0, 0.6, (0.3 * 2.0 / 0.8f64).ln(), (0.5f64 / 0.4).ln()];
    let found = [sigmoid(number(0, 1)), sigmoid(number(1, 1)), number(2, 1), number(3, 1)];
    let place: f64 = found.iter().zip(wanted).map(|(found, wanted)| scale * square(found - wanted)).sum();
    let there = 5.0 * square(sigmoid(number(4, 1)) - overlap.unwrap_or(1.0));
    let sum: f64 = (5..7).map(|c| number(c, 1).exp()).sum();
    place + there + square(sigmoid(number(4, 0))) - 2.0 * (number(6, 1).exp() / sum).ln()
}

#[test]
fn the_gradient_is_that_with_overlaps_held_fixed() {
    let x: Vec<f64> = (0..14).map(|i| ((i * 7) % 5) as f64 * 0.3 - 0.6).collect();
    let param = "num: 1 num_class: 2 biases: 0.8 biases: 0.4 object_scale: 5 noobject_scale: 1 class_scale: 2 coord_scale: 3 thresh: 0.99";
    let object = [1.0, 0.7, 0.6, 0.3, 0.5];
    for rescore in [false, true] {
        let text = format!("{param} rescore: {}", u8::from(rescore));
        let out = run(&text, &x, &object, [1, 7, 1, 2]);
        // The overlap of the second cell's box and the object.
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        let (cx, cy) = ((1.0 + sigmoid(x[1])) / 2.0, sigmoid(x[3]));
        let (w, h) = (x[5].exp() * 0.4, x[7].exp() * 0.4);
        let common =
            |a: f64, b: f64, la: f64, lb: f64| (a + la / 2.0).min(b + lb / 2.0) - (a - la / 2.0).max(b - lb / 2.0);
        let both = common(cx, 0.7, w, 0.3) * common(cy, 0.6, h, 0.5);
        let overlap = rescore.then_some(both / (w * h + 0.15 - both));
        let wanted: Vec<f64> = (0..x.len())
            .map(|i| {
                let at = |by: f64| {
                    let mut x = x.clone();
                    x[i] += by;
                    surrogate(&x, overlap)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            })
            .collect();
        let delta = out.bottom_diffs[0].as_ref().unwrap();
        assert_close("gradient", delta, &wanted, 1e-7);
        assert_close("loss", &out.tops[0], &[delta.iter().map(|d| d * d).sum()], 1e-12);
    }
}

#[test]
fn boxes_near_an_object_are_not_blamed() {
    // Both cells' boxes lie on the object in part; only one has it.
    let x = [0.0; 14];
    let param = "num: 1 num_class: 2 biases: 1.5 biases: 0.5 thresh:";
    let object = [1.0, 0.55, 0.5, 0.75, 0.5];
    let there = |thresh: &str| {
        run(&format!("{param} {thresh}"), &x, &object, [1, 7, 1, 2]).bottom_diffs[0].as_ref().unwrap()[8]
    };
    assert_eq!(there("0.3"), 0.0);
    assert_eq!(there("0.9"), 0.5 * 0.5 * 0.25);
}

#[test]
fn mistakes_are_named() {
    let shapes: [Shape; 2] = [[1, 16, 2, 2].into(), [1, 10].into()];
    for (param, needles) in [
        (TWO.replace("num: 2", "num: 0"), &["num and num_class"][..]),
        (format!("{TWO} coords: 5"), &["coords", "found 5"]),
        (TWO.replace("biases: 1.2", ""), &["biases", "4 times", "found 3"]),
        (TWO.replace("biases: 1.2", "biases: 0"), &["positive", "found 0"]),
        (TWO.replace("num_class: 3", "num_class: 4"), &["bottom 0", "18", "(1, 16, 2, 2)"]),
    ] {
        config_error(&registry(), &layer(&param), &shapes, needles);
    }
    let wrong = [[1, 16, 2, 2].into(), [1, 9].into()];
    config_error(&registry(), &layer(TWO), &wrong, &["bottom 1", "rows of 5", "(1, 9)"]);
    for (object, needles) in [
        ([3., 0.5, 0.5, 0.1, 0.1], &["object 1 of image 0", "class 3", "0 to 2"][..]),
        ([1., 1.5, 0.5, 0.1, 0.1], &["object 1 of image 0", "at (1.5, 0.5)"]),
        ([1., 0.5, 0.5, 0.1, 0.0], &["0.1 by 0 large"]),
    ] {
        let harness = Harness::new(&registry(), &layer(TWO), Phase::Train, DType::F64, &shapes).unwrap();
        let objects = [&[0., 0.1, 0.1, 0.1, 0.1], &object[..]].concat();
        let inputs = harness.forward_inputs(&[&[0.0; 64], &objects]).unwrap();
        says(&harness.run(&inputs).unwrap_err().to_string(), needles);
    }
}
