use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

fn text(fields: &str) -> String {
    format!("layer {{ name: 's' type: 'SpatialTransformer' bottom: 'x' bottom: 't' top: 'y' st_param {{ {fields} }} }}")
}

fn case(fields: &str, image: [usize; 4], theta: &[f64], size: impl Into<Shape>) -> Case {
    Case::new(text(fields)).bottom(image).bottom_of(size, Fill::Given(theta.to_vec()))
}

#[test]
fn cases() {
    let affine = [0.83, 0.11, -0.07, -0.13, 0.71, 0.05, 1.91, -0.4, 0.3, 0.22, 1.73, -0.61];
    let projective = [0.83, 0.11, -0.07, -0.13, 0.71, 0.05, 0.21, -0.17];
    let grid: Vec<f64> = (0..24).map(|i| (f64::from(i) * 1.371) % 5.3 - 0.65).collect();
    check(
        &crate::tests::registry(),
        &[
            case("", [2, 3, 4, 5], &affine, [2, 6]),
            case("output_H: 3 output_W: 7", [2, 2, 5, 4], &affine, [2, 6, 1, 1]),
            case("transform_type: 'translation' theta_1_1: 0.61 theta_2_2: 0.47", [1, 2, 5, 6], &[0.13, -0.77], [1, 2]),
            case("transform_type: 'translation_scaling'", [1, 2, 5, 6], &[0.61, 0.13, 1.47, -0.27], [1, 4]),
            case("transform_type: 'projective' output_H: 4", [1, 2, 5, 6], &projective, [1, 8]),
            case("transform_type: 'similarity'", [1, 2, 5, 6], &[0.4, 1.21, 0.13, -0.27], [1, 4]),
            case("transform_type: 'similarity+'", [1, 2, 5, 6], &[-0.7, 1.21, 0.83, 0.13, -0.27], [1, 5]),
            case("transform_type: 'grid' output_H: 2 output_W: 3", [2, 2, 4, 3], &grid, [2, 6, 2]),
            // One row, one column, one position.
            case("output_H: 1", [1, 2, 1, 4], &affine[..6], [1, 6]),
            case("output_H: 1 output_W: 1", [1, 2, 3, 3], &affine[..6], [1, 6]),
            // Exactly on pixels, and far beyond them.
            case("", [1, 2, 5, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1, 6]).without_gradients(),
            case("transform_type: 'similarity'", [1, 1, 4, 3], &[0.0, 1e9, 3.0, 0.5], [1, 4]).without_gradients(),
            // Many onto one pixel, and several blocks.
            case("output_H: 33 output_W: 40", [3, 2, 4, 5], &[affine, affine].concat()[..18], [3, 6])
                .without_gradients(),
        ],
    );
}

#[test]
fn the_identity_gives_the_image_and_mirroring_mirrors_it() {
    let run = |theta: &[f64]| {
        let shapes = [[1, 1, 2, 3].into(), [1, 6].into()];
        let harness = Harness::new(&crate::tests::registry(), &text(""), Phase::Test, DType::F64, &shapes).unwrap();
        harness.run(&harness.forward_inputs(&[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], theta]).unwrap()).unwrap().tops.remove(0)
    };
    assert_close("identity", &run(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1e-12);
    assert_close("mirrored", &run(&[-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), &[3.0, 2.0, 1.0, 6.0, 5.0, 4.0], 1e-12);
    assert_close("between", &run(&[0.5, 0.0, 0.0, 0.0, 0.0, 0.0]), &[3.0, 3.5, 4.0, 3.0, 3.5, 4.0], 1e-12);
    assert!(run(&[f64::NAN, 0.0, 0.0, 0.0, 1.0, 0.0]).iter().all(|y| y.is_nan()));
}

#[test]
fn mistakes_are_named() {
    let registry = crate::tests::registry();
    let fails = |fields: &str, shapes: [Shape; 2], needles: &[&str]| {
        config_error(&registry, &text(fields), &shapes, needles);
    };
    let (image, theta): (Shape, Shape) = ([2, 3, 4, 5].into(), [2, 6].into());
    fails(
        "transform_type: 'afine'",
        [image.clone(), theta.clone()],
        &["afine", "did you mean 'affine'", "similarity+"],
    );
    fails("theta_1_1: nan", [image.clone(), theta.clone()], &["theta_1_1", "NaN"]);
    fails("output_H: 0", [image.clone(), theta.clone()], &["output_H", "0"]);
    fails("output_W: -3", [image.clone(), theta.clone()], &["output_W", "-3"]);
    fails("", [image.clone(), [2, 4].into()], &["affine takes 6 numbers", "(2, 4)"]);
    fails("", [image.clone(), [1, 6].into()], &["2 items", "(1, 6)"]);
    fails("transform_type: 'grid'", [image, theta.clone()], &["grid takes 40 numbers"]);
    fails("", [[2, 3, 4].into(), theta.clone()], &["4 axes", "(2, 3, 4)"]);
    fails("", [[2, 3, 0, 4].into(), theta], &["pixels", "(2, 3, 0, 4)"]);
}
