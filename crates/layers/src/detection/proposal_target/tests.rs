use super::*;
use crate::tests::registry;
use lgm_core::{DType, Phase, Step};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

fn layer(param: &str, more: &str) -> String {
    format!(
        "layer {{ name: 'p' type: 'ProposalTarget' bottom: 'r' bottom: 'g' {more} top: 'rois' top: 'l' top: 't' top: 'n' \
         top: 'o' proposal_target_param {{ {param} }} }}"
    )
}

/// Tops, of regions and objects given by their corners and classes.
fn run(text: &str, regions: &[[f64; 4]], objects: &[f64], batch: u64) -> Vec<Vec<f64>> {
    let regions: Vec<f64> = regions.iter().flat_map(|[a, b, c, d]| [0.0, *a, *b, *c, *d]).collect();
    let shapes: [Shape; 2] = [[regions.len() / 5, 5].into(), [objects.len() / 5, 5].into()];
    let harness = Harness::new(&registry(), text, Phase::Train, DType::F64, &shapes).unwrap();
    let mut inputs = harness.forward_inputs(&[&regions, objects]).unwrap();
    inputs.step = Step { batch, ..inputs.step };
    harness.run(&inputs).unwrap().tops
}

const OBJECT: [f64; 5] = [10.0, 10.0, 19.0, 19.0, 2.0];
/// Overlaps the object by 60 of 100.
const HIT: [f64; 4] = [10.0, 14.0, 19.0, 19.0];
/// By 20 of 100.
const NEAR: [f64; 4] = [10.0, 18.0, 19.0, 19.0];
const FAR: [f64; 4] = [40.0, 40.0, 49.0, 49.0];
const NONE: [f64; 4] = [0.0; 4];

#[test]
fn cases() {
    let regions: Vec<f64> =
        (0..24).flat_map(|i| [0, 3 * i, 2 * i, 3 * i + 20 + i % 5, 2 * i + 25].map(|v| v as f64)).collect();
    let objects = Fill::Given(vec![10.0, 12.0, 40.0, 50.0, 1.0, 50.0, 34.0, 75.0, 60.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let case = |param: &str, more: &str| Case::new(layer(param, more)).bottom_of([24, 5], Fill::Given(regions.clone()));
    let shares = Fill::Given(vec![0.0, 1.0, 0.0, 0.1, 0.1, 0.5, 0.6, 0.0]);
    check(
        &registry(),
        &[
            case("cls_num: 3", "").bottom_of([1, 3, 5], objects.clone()),
            case("batch_size: 8 fg_thr: 0.4 bg_thr_hg: 0.4 bg_thr_lw: 0", "bbox_reg_param { cls_aware: false }")
                .bottom_of([3, 5], objects),
            case("cls_num: 2 append_gtbox: false", "bottom: 'i'")
                .bottom_of([1, 1, 1, 8], shares)
                .bottom_of([1, 3], Fill::Given(vec![60.0, 80.0, 1.0])),
        ],
    );
}

#[test]
fn regions_are_what_they_overlap() {
    let text = layer("cls_num: 4 batch_size: 4 fg_fraction: 0.5", "");
    let tops = run(&text, &[FAR, HIT, NONE, NEAR], &OBJECT, 0);
    // The object itself and the one that hits it; of background only that which comes near, twice.
    let with_image = |b: [f64; 4]| [0.0, b[0], b[1], b[2], b[3]];
    let object = [OBJECT[0], OBJECT[1], OBJECT[2], OBJECT[3]];
    assert_eq!(tops[0], [HIT, object, NEAR, NEAR].map(with_image).concat());
    assert_eq!(tops[1], [2.0, 2.0, 0.0, 0.0]);
    let mut want = [0.0; 64];
    // Its centre is 2 pixels higher, a third of its 6; 6 to 10 pixels high.
    want[8..12].copy_from_slice(&[0.0, -1.0 / 3.0 / 0.1, 0.0, (10f64 / 6.0).ln() / 0.2]);
    assert_close("targets", &tops[2], &want, 1e-6);
    let mut want = [0.0; 64];
    [8..12, 24..28].into_iter().for_each(|four| want[four].fill(1.0));
    assert_eq!((&tops[3][..], &tops[4][..]), (&want[..], &want[..]));
}

#[test]
fn without_classes_all_objects_are_the_second() {
    let text = layer(
        "batch_size: 1 fg_fraction: 1 append_gtbox: false",
        "bbox_reg_param { cls_aware: false bbox_mean: 0 bbox_mean: 1 bbox_mean: 0 bbox_mean: 0 bbox_std: 1 bbox_std: 2 bbox_std: 1 bbox_std: 1 }",
    );
    let tops = run(&text, &[HIT], &OBJECT, 0);
    assert_eq!(tops[1], [2.0]);
    let want = [0.0, 0.0, 0.0, 0.0, 0.0, -2.0 / 3.0, 0.0, (10f64 / 6.0).ln()];
    assert_close("targets", &tops[2], &want, 1e-12);
}

#[test]
fn rows_are_filled_whatever_there_is() {
    let text = layer("cls_num: 3 batch_size: 3 fg_fraction: 0.34 append_gtbox: false bg_thr_lw: 0.1", "");
    let labels = |regions: &[[f64; 4]], objects: &[f64]| run(&text, regions, objects, 0)[1].clone();
    assert_eq!(labels(&[HIT, NEAR], &OBJECT), [2.0, 0.0, 0.0]);
    assert_eq!(labels(&[HIT, HIT], &OBJECT), [2.0; 3], "no background");
    assert_eq!(labels(&[FAR], &OBJECT), [0.0; 3], "nothing");
    assert_eq!(labels(&[FAR], &[0.0; 5]), [0.0; 3], "no object");
    let zero = layer("cls_num: 3 batch_size: 2 bg_thr_lw: 0 fg_thr: 0", "");
    let tops = run(&zero, &[FAR], &[0.0; 5], 0);
    assert_eq!((&tops[1][..], &tops[0][5..]), (&[0.0, 0.0][..], &[0.0, 40.0, 40.0, 49.0, 49.0][..]));
}

#[test]
fn others_are_drawn_in_each_pass() {
    let text = layer("cls_num: 3 batch_size: 4 fg_fraction: 0.25 bg_thr_lw: 0", "");
    let regions: Vec<[f64; 4]> = (0..20).map(|i| [40.0 + i as f64, 40.0, 60.0 + i as f64, 60.0]).collect();
    let of = |batch| run(&text, &regions, &OBJECT, batch)[0].clone();
    assert_eq!(of(7), of(7));
    assert!((0..8).any(|batch| of(batch) != of(8)));
    assert_eq!(of(3)[..5], [0.0, 10.0, 10.0, 19.0, 19.0]);
}

#[test]
fn mistakes_are_named() {
    let shapes: [Shape; 2] = [[4, 5].into(), [1, 5].into()];
    for (param, more, needles) in [
        ("", "", &["cls_num of at least 2", "found 0", "cls_aware: false"][..]),
        ("cls_num: 3 batch_size: -1", "", &["batch_size", "-1"]),
        ("cls_num: 3 fg_fraction: 2", "", &["fg_fraction", "2"]),
        ("cls_num: 3 fg_thr: nan", "", &["fg_thr", "NaN"]),
        ("cls_num: 3 bg_thr_lw: 0.5", "", &["bg_thr_lw must be below bg_thr_hg", "0.5"]),
        ("cls_num: 3", "bbox_reg_param { bbox_mean: 1 }", &["bbox_mean", "four times", "[1.0]"]),
        (
            "cls_num: 3",
            "bbox_reg_param { bbox_std: 1 bbox_std: 0 bbox_std: 1 bbox_std: 1 }",
            &["bbox_std must be positive", "0.0"],
        ),
    ] {
        config_error(&registry(), &layer(param, more), &shapes, needles);
    }
    let text = layer("cls_num: 3", "");
    config_error(&registry(), &text, &[[4, 6].into(), [1, 5].into()], &["bottom 0", "5 numbers", "(4, 6)"]);
    config_error(&registry(), &text, &[[4, 5].into(), [1, 8].into()], &["bottom 2", "height and width"]);
    let harness = Harness::new(&registry(), &text, Phase::Train, DType::F64, &[[1, 5].into(), [1, 5].into()]).unwrap();
    for (region, object, needles) in [
        ([1.0, 0.0, 0.0, 9.0, 9.0], OBJECT, &["region 0", "image 1"][..]),
        ([0.0; 5], [0.0, 0.0, 9.0, 9.0, 3.0], &["row 0", "class 3", "3 classes"]),
    ] {
        let inputs = harness.forward_inputs(&[&region, &object]).unwrap();
        lgm_testkit::says(&harness.run(&inputs).err().unwrap().to_string(), needles);
    }
}
