use super::*;
use crate::tests::registry;
use lgm_core::{DType, Phase, Step};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

fn layer(param: &str) -> String {
    format!(
        "layer {{ name: 'a' type: 'AnchorTarget' bottom: 's' bottom: 'g' bottom: 'i' top: 'l' top: 't' top: 'n' top: 'o' \
         anchor_target_param {{ {param} }} }}"
    )
}

/// Anchors of 16 by 16, 8 apart, in two rows of four: those of the first row begin at 0, 8, 16 and 24.
const SMALL: &str = "feat_stride: 8 ratio: 1 scale: 1";

/// labels, targets, inside and outside weights of eight anchors, on an image 24 high and 40 wide.
fn run(param: &str, objects: &[f64], width: usize, batch: u64) -> Vec<Vec<f64>> {
    let shapes: [Shape; 3] = [[1, 2, 2, 4].into(), [objects.len() / width, width].into(), [1, 3].into()];
    let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F64, &shapes).unwrap();
    let mut inputs = harness.forward_inputs(&[&[0.0; 16], objects, &[24.0, 40.0, 1.0]]).unwrap();
    inputs.step = Step { batch, ..inputs.step };
    harness.run(&inputs).unwrap().tops
}

#[test]
fn cases() {
    let objects = Fill::Given(vec![10.0, 12.0, 40.0, 50.0, 1.0, 50.0, 4.0, 75.0, 40.0, 2.0]);
    let shares = Fill::Given(vec![0.0, 1.0, 0.0, 0.1, 0.1, 0.5, 0.6, 0.0]);
    let case =
        |param: &str, anchors: usize| Case::new(layer(param)).bottom_of([1, 2 * anchors, 6, 8], Fill::Normal(0.0, 1.0));
    let image = Fill::Given(vec![60.0, 80.0, 1.5]);
    check(
        &registry(),
        &[
            case("feat_stride: 10 scale: 2 scale: 3", 6)
                .bottom_of([1, 2, 5], objects.clone())
                .bottom_of([1, 3], image.clone()),
            case("feat_stride: 10 ratio: 1 scale: 2 batch_size: 8 clobber_positives: true positive_weight: 0.3", 1)
                .bottom_of([2, 5], objects)
                .bottom_of([3], image.clone()),
            case("feat_stride: 10 ratio: 1 scale: 2 allowed_border: 5", 1)
                .bottom_of([1, 1, 1, 8], shares)
                .bottom_of([1, 3], image),
        ],
    );
}

#[test]
fn anchors_are_labelled_by_their_overlaps() {
    // The object is the second anchor, moved down by 2 and narrower by 4; a row of class 0 is none.
    let objects = [8.0, 2.0, 19.0, 17.0, 3.0, 0.0, 0.0, 9.0, 9.0, 0.0];
    let tops = run(SMALL, &objects, 5, 0);
    // They overlap it by 112 of 336, 168 of 280, 56 of 392 and 0; those below by 80 of 368, 120 of 328, and less.
    assert_eq!(tops[0], [-1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0]);
    let by = [-0.125, 0.125, 0.75f64.ln(), 0.0];
    for k in 0..4 {
        let mut want = [0.0; 8];
        want[1] = by[k];
        assert_close("targets", &tops[1][8 * k..][..8], &want, 1e-12);
        want[1] = 1.0;
        assert_eq!(tops[2][8 * k..][..8], want);
        let want = [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0].map(|anchors| anchors / 6.0);
        assert_close("outside weights", &tops[3][8 * k..][..8], &want, 1e-12);
    }
    // As fractions of the image, and with one that is difficult.
    let shares = [0.0, 3.0, 0.0, 0.2, 2.0 / 24.0, 0.5, 0.75, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.4, 0.6, 1.0];
    let found = run(SMALL, &shares, 8, 0);
    found.iter().zip(&tops).for_each(|(found, want)| assert_close("of shares", found, want, 1e-12));
    let weighted = run(&format!("{SMALL} positive_weight: 0.4"), &objects, 5, 0);
    assert_close("weights", &weighted[3][..4], &[0.0, 0.4, 0.12, 0.12], 1e-7);
}

#[test]
fn the_best_anchor_of_an_object_is_its() {
    // Small: it overlaps the first anchor by 16 of 256, and no other.
    let objects = [0.0, 0.0, 3.0, 3.0, 1.0];
    assert_eq!(run(SMALL, &objects, 5, 0)[0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(run(&format!("{SMALL} clobber_positives: true"), &objects, 5, 0)[0], [0.0; 8]);
    // Where there is no object, or none on the map, all is background.
    assert_eq!(run(SMALL, &[0.0, 0.0, 9.0, 9.0, 0.0], 5, 0)[0], [0.0; 8]);
    assert_eq!(run(SMALL, &[60.0, 0.0, 69.0, 9.0, 1.0], 5, 0)[0], [0.0; 8]);
}

#[test]
fn as_many_are_drawn_as_asked_for_and_others_in_each_pass() {
    let objects = [0.0, 0.0, 15.0, 15.0, 1.0, 16.0, 8.0, 31.0, 23.0, 1.0];
    let labels = |batch| run(&format!("{SMALL} batch_size: 3 negative_overlap: 0.35"), &objects, 5, batch)[0].clone();
    let mut seen = [0; 8];
    for batch in 0..100 {
        let found = labels(batch);
        assert_eq!(found, labels(batch), "the same pass");
        let of = |label: f64| found.iter().filter(|l| **l == label).count();
        assert_eq!((of(1.0), of(0.0)), (1, 2), "{found:?}");
        (0..8).filter(|&i| found[i] >= 0.0).for_each(|i| seen[i] += 1);
    }
    assert!([0, 6].iter().all(|&i| (30..70).contains(&seen[i])), "{seen:?}");
    assert_eq!(seen.iter().sum::<i32>(), 300);
}

#[test]
fn anchors_beyond_the_image_are_left_out() {
    // Those of 32 by 32, around the same centres: none lies on an image 24 high, and four hold the object.
    let big = "feat_stride: 8 ratio: 1 scale: 2";
    let objects = [0.0, 0.0, 9.0, 9.0, 1.0];
    assert_eq!(run(big, &objects, 5, 0)[0], [-1.0; 8]);
    let border = run(&format!("{big} allowed_border: 8"), &objects, 5, 0);
    assert_eq!(border[0].iter().filter(|l| **l == 1.0).count(), 4, "{:?}", border[0]);
}

#[test]
fn mistakes_are_named() {
    let shapes: [Shape; 3] = [[1, 2, 2, 2].into(), [1, 5].into(), [1, 3].into()];
    for (param, needles) in [
        ("", &["anchor_target_param", "feat_stride of at least 1, found 0"][..]),
        ("feat_stride: 8 scale: 1 ratio: -1", &["every ratio", "-1"]),
        ("feat_stride: 8 batch_size: 0", &["batch_size"]),
        ("feat_stride: 8 positive_overlap: 1.5", &["positive_overlap", "1.5"]),
        ("feat_stride: 8 negative_overlap: nan", &["negative_overlap", "NaN"]),
        ("feat_stride: 8 fg_fraction: -0.5", &["fg_fraction", "-0.5"]),
        ("feat_stride: 8 positive_weight: 1", &["positive_weight", "1"]),
        ("feat_stride: 8", &["bottom 0", "9 anchors", "(1, 18, 2, 2)", "(1, 2, 2, 2)"]),
    ] {
        config_error(&registry(), &layer(param), &shapes, needles);
    }
    let small = layer(SMALL);
    let wrong = |objects: &[usize], image: &[usize], needles: &[&str]| {
        config_error(&registry(), &small, &[[1, 2, 2, 2].into(), objects.into(), image.into()], needles);
    };
    wrong(&[4, 6], &[1, 3], &["bottom 1", "5 numbers", "8", "(4, 6)"]);
    wrong(&[4, 5], &[1, 2], &["bottom 2", "(1, 2)"]);
    let harness = Harness::new(&registry(), &small, Phase::Train, DType::F64, &shapes).unwrap();
    for (object, needles) in [
        ([5.0, 0.0, 3.0, 9.0, 1.0], &["row 0", "x1 5", "x2 3"][..]),
        ([0.0, f64::NAN, 3.0, 9.0, 1.0], &["row 0", "NaN"]),
    ] {
        let inputs = harness.forward_inputs(&[&[0.0; 8], &object, &[24.0, 40.0, 1.0]]).unwrap();
        let text = harness.run(&inputs).err().unwrap().to_string();
        lgm_testkit::says(&text, needles);
    }
}
