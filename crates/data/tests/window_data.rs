//! WindowData: which windows, where they come to lie, resumption, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{begins_anew, cx, error, jpeg, open, resumes_exactly, warned};
use image::RgbImage;
use lgm_core::{Phase, Shape, State};
use lgm_proto::{LayerParameter, TransformationParameter, WindowDataParameter};

/// Two images of 8 x 10 pixels, the first blue 10, the second blue 20, each with one window of foreground and background.
const LIST: &str =
    "# 0\n0.png\n3\n8\n10\n2\n3 0.8 0 0 4 4\n3 0.1 5 3 9 7\n# 1\n1.png 3 8 10 2\n7 0.5 0 0 3 3\n7 0 0 0 9 7\n";

fn layer(dir: &Path, list: &str) -> LayerParameter {
    for (i, blue) in [10, 20].into_iter().enumerate() {
        RgbImage::from_pixel(10, 8, image::Rgb([1, 2, blue])).save(dir.join(format!("{i}.png"))).unwrap();
    }
    fs::write(dir.join("windows.txt"), list).unwrap();
    LayerParameter {
        name: Some("data".into()),
        r#type: Some("WindowData".into()),
        top: vec!["data".into(), "label".into()],
        window_data_param: Some(WindowDataParameter {
            source: Some(dir.join("windows.txt").to_str().unwrap().into()),
            root_folder: Some(format!("{}/", dir.display())),
            batch_size: Some(8),
            ..Default::default()
        }),
        transform_param: Some(TransformationParameter { crop_size: Some(6), ..Default::default() }),
        ..Default::default()
    }
}

fn with(layer: &LayerParameter, change: impl FnOnce(&mut WindowDataParameter)) -> LayerParameter {
    let mut layer = layer.clone();
    change(layer.window_data_param.as_mut().unwrap());
    layer
}

fn transformed(layer: &LayerParameter, change: impl FnOnce(&mut TransformationParameter)) -> LayerParameter {
    let mut layer = layer.clone();
    change(layer.transform_param.as_mut().unwrap());
    layer
}

#[test]
fn a_batch_has_its_share_of_foreground() {
    let dir = tempfile::tempdir().unwrap();
    let layer = layer(dir.path(), LIST);
    let mut run = open(&layer, &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes, [Shape::from([8, 3, 6, 6]), Shape::from([8])]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let batch = run.next();
        assert_eq!(batch[1][..6], [0.0; 6]);
        for (window, &label) in batch[0].chunks(108).zip(&batch[1]) {
            assert!(window[..36].iter().all(|&v| v == window[0]) && window[72..] == [1.0; 36]);
            if label > 0.0 {
                assert_eq!(label, if window[0] == 10.0 { 3.0 } else { 7.0 });
            }
            seen.insert((label as i32, window[0] as i32));
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(0, 10), (0, 20), (3, 10), (7, 20)]);
}

#[test]
fn surroundings_outside_the_image_are_zero_and_means_come_off_inside() {
    let dir = tempfile::tempdir().unwrap();
    let base = with(&layer(dir.path(), "# 0\n0.png 3 8 10 1\n3 0.9 0 0 3 3\n"), |p| {
        (p.context_pad, p.fg_fraction, p.batch_size) = (Some(1), Some(1.0), Some(16));
    });
    let base = transformed(&base, |t| {
        t.mean_value = vec![4.0];
        t.scale = Some(9.0);
    });
    let base = with(&base, |p| p.scale = Some(2.0));
    let blue = |layer: &LayerParameter| open(layer, &cx(Phase::Train, 1)).unwrap().next()[0][..36].to_vec();
    // Six pixels around four, one of each side outside: the first row and column of the result.
    let shown = blue(&base);
    for (y, row) in shown.chunks(6).enumerate() {
        let want: Vec<f32> = (0..6).map(|x| if y == 0 || x == 0 { 0.0 } else { 12.0 }).collect();
        assert_eq!(row, want, "{shown:?}");
    }
    let mirrored = open(&transformed(&base, |t| t.mirror = Some(true)), &cx(Phase::Train, 1)).unwrap().next();
    let flipped = mirrored[0].chunks(108).filter(|w| w[6] != 0.0 && w[11] == 0.0).count();
    assert!((1..16).contains(&flipped), "{flipped}");
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped_and_a_cache_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let layer = transformed(&layer(dir.path(), LIST), |t| t.mirror = Some(true));
    resumes_exactly(&|| open(&layer, &cx(Phase::Train, 1)).unwrap(), 10);
    let cached = with(&layer, |p| p.cache_images = Some(true));
    let all = |layer: &LayerParameter| open(layer, &cx(Phase::Train, 3)).unwrap().collect(0, 4);
    assert_eq!(all(&layer), all(&cached));
    let other = |state: &mut State| *state = State::from([("record".into(), 3.0)]);
    let make = || open(&layer, &cx(Phase::Train, 1)).unwrap();
    begins_anew(&make, "WindowData 'data'", &other, "the saved data position lacks 'taken'");
}

#[test]
fn windows_have_three_channels_whatever_is_forced_and_cut_images_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let base = transformed(&layer(dir.path(), LIST), |t| t.force_gray = Some(true));
    let bytes = jpeg();
    fs::write(dir.path().join("0.png"), &bytes[..bytes.len() - 20]).unwrap();
    let named = LayerParameter { name: Some("gray windows".into()), ..base };
    let mut run = open(&named, &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([8, 3, 6, 6]));
    (0..4).for_each(|_| drop(run.next()));
    let told = warned("gray windows");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("force_gray has no effect") && told[1].contains("0.png is a JPEG that is cut short"));
}

#[test]
fn mistakes_name_list_line_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = layer(dir.path(), LIST);
    let fails = |layer: &LayerParameter, what: &str| {
        let e = error(layer, &cx(Phase::Train, 1));
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    fails(&with(&base, |p| p.source = None), "window_data_param needs a source");
    fails(&with(&base, |p| p.batch_size = None), "needs a positive batch_size");
    fails(&with(&base, |p| p.fg_fraction = Some(1.5)), "fg_fraction must be between 0 and 1, found 1.5");
    fails(&with(&base, |p| p.crop_mode = Some("oval".into())), "crop_mode must be 'warp' or 'square', found 'oval'");
    fails(&with(&base, |p| p.context_pad = Some(3)), "context_pad 3 on both sides leaves nothing of crop_size 6");
    fails(&transformed(&base, |t| t.crop_size = None), "WindowData needs transform_param { crop_size");
    fails(&LayerParameter { top: vec!["a".into(); 3], ..base.clone() }, "takes one top, the windows, or two");
    fails(&with(&base, |p| p.fg_threshold = Some(0.9)), "holds no foreground window (overlap of at least 0.9)");
    fails(&with(&base, |p| p.bg_threshold = Some(-1.0)), "holds no background window (overlap below -1)");
    fails(
        &layer(dir.path(), "# 0\n0.png 3 8 10 2\n1 1 0 0 10 4\n1 0 0 0 10 4\n"),
        "windows.txt: line 4: the window from (0, 0) to (10, 4) lies outside its image, 10 x 8 pixels",
    );
    let absent = layer(dir.path(), "# 0\nnone.png 3 8 10 2\n1 1 0 0 1 4\n1 0 0 0 1 4\n");
    fails(&absent, "none.png: cannot read");
    fails(&with(&absent, |p| p.cache_images = Some(true)), "none.png: cannot read");
    let mean = dir.path().join("mean.binaryproto");
    let blob = lgm_proto::BlobProto {
        shape: Some(lgm_proto::BlobShape { dim: vec![3, 5, 9] }),
        data: vec![0.0; 135],
        ..Default::default()
    };
    fs::write(&mean, prost::Message::encode_to_vec(&blob)).unwrap();
    fails(
        &transformed(&base, |t| t.mean_file = Some(mean.to_str().unwrap().into())),
        "the mean image is 3 x 5 x 9, expected 3 channels and at least 6 x 6 pixels",
    );
}
