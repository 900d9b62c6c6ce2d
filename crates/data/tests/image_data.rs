//! ImageData: order, sizes, transformation, resumption, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{begins_anew, cx, error, jpeg, open, resumes_exactly, warned};
use image::{DynamicImage, GrayImage, RgbImage};
use lgm_core::{Phase, Shape, State};
use lgm_proto::{DataParameter, ImageDataParameter, LayerParameter, TransformationParameter};

/// Image n of 3 x 4 pixels is blue n, green n + 1, red n + 2 all over; its label is 100 + n.
fn numbered(dir: &Path, n: usize) -> LayerParameter {
    let lines: String = (0..n)
        .map(|i| {
            let v = i as u8;
            let image = RgbImage::from_pixel(4, 3, image::Rgb([v + 2, v + 1, v]));
            image.save(dir.join(format!("{i} im.png"))).unwrap();
            format!("{i} im.png {}\n", 100 + i)
        })
        .collect();
    layer(dir, &lines, 5)
}

fn layer(dir: &Path, lines: &str, batch: u32) -> LayerParameter {
    fs::write(dir.join("list.txt"), lines).unwrap();
    LayerParameter {
        name: Some("data".into()),
        r#type: Some("ImageData".into()),
        top: vec!["data".into(), "label".into()],
        image_data_param: Some(ImageDataParameter {
            source: Some(dir.join("list.txt").to_str().unwrap().into()),
            root_folder: Some(format!("{}/", dir.display())),
            batch_size: Some(batch),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn with(layer: &LayerParameter, change: impl FnOnce(&mut ImageDataParameter)) -> LayerParameter {
    let mut layer = layer.clone();
    change(layer.image_data_param.as_mut().unwrap());
    layer
}

#[test]
fn images_come_in_the_lists_order_and_round_again() {
    let dir = tempfile::tempdir().unwrap();
    let layer = numbered(dir.path(), 7);
    let mut run = open(&layer, &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes, [Shape::from([5, 3, 3, 4]), Shape::from([5])]);
    let mut labels = Vec::new();
    for _ in 0..6 {
        let batch = run.next();
        for (image, &label) in batch[0].chunks(36).zip(&batch[1]) {
            let n = label - 100.0;
            assert!(image.chunks(12).zip([n, n + 1.0, n + 2.0]).all(|(plane, v)| plane == [v; 12]));
        }
        labels.extend(batch[1].clone());
    }
    assert_eq!(labels, (0..30).map(|i| (100 + i % 7) as f32).collect::<Vec<_>>());
    let one = LayerParameter { top: vec!["data".into()], ..layer };
    assert_eq!(open(&one, &cx(Phase::Train, 1)).unwrap().next().len(), 1);
}

#[test]
fn each_epoch_is_shuffled_anew_and_rand_skip_starts_inside() {
    let dir = tempfile::tempdir().unwrap();
    let layer = with(&numbered(dir.path(), 20), |p| p.shuffle = Some(true));
    let labels = open(&layer, &cx(Phase::Train, 1)).unwrap().collect(1, 12);
    let mut epochs: Vec<Vec<f32>> = labels.chunks(20).map(<[f32]>::to_vec).collect();
    assert_ne!(epochs[0], epochs[1]);
    for epoch in &mut epochs {
        epoch.sort_by(f32::total_cmp);
        assert_eq!(*epoch, (100..120).map(|v| v as f32).collect::<Vec<_>>());
    }
    assert_ne!(labels, open(&layer, &cx(Phase::Train, 2)).unwrap().collect(1, 12));
    let skipped = with(&numbered(dir.path(), 20), |p| p.rand_skip = Some(20));
    let starts: Vec<f32> = (1..9).map(|seed| open(&skipped, &cx(Phase::Train, seed)).unwrap().next()[1][0]).collect();
    assert!(starts.iter().any(|s| *s != starts[0]), "{starts:?}");
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = with(&numbered(dir.path(), 7), |p| {
        p.shuffle = Some(true);
        p.rand_skip = Some(5);
        (p.new_height, p.new_width) = (Some(6), Some(5));
    });
    layer.data_param = Some(DataParameter { prefetch: Some(2), ..Default::default() });
    layer.transform_param =
        Some(TransformationParameter { crop_size: Some(2), mirror: Some(true), ..Default::default() });
    resumes_exactly(&|| open(&layer, &cx(Phase::Train, 1)).unwrap(), 10);
}

#[test]
fn a_saved_position_that_does_not_fit_begins_the_run_anew() {
    let dir = tempfile::tempdir().unwrap();
    let layer = with(&numbered(dir.path(), 7), |p| (p.shuffle, p.rand_skip) = (Some(true), Some(5)));
    let make = || open(&layer, &cx(Phase::Train, 1)).unwrap();
    let set = |state: &mut State| state.extend([("taken".to_string(), 7.0)]);
    begins_anew(&make, "ImageData 'data'", &set, "the saved position is image 7 of an epoch, but the list has 7");
    let other = |state: &mut State| *state = State::from([("record".into(), 1.0)]);
    begins_anew(&make, "ImageData 'data'", &other, "the saved data position lacks 'epoch'");
}

#[test]
fn the_first_jpeg_that_is_cut_short_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let jpeg = jpeg();
    for (name, lacks) in [("whole.jpg", 0), ("no_end.jpg", 2), ("cut.jpg", 30), ("cut_too.jpg", 40)] {
        fs::write(dir.path().join(name), &jpeg[..jpeg.len() - lacks]).unwrap();
    }
    let mut run =
        open(&layer(dir.path(), "whole.jpg 1\nno_end.jpg 2\ncut.jpg 3\ncut_too.jpg 4\n", 4), &cx(Phase::Test, 1))
            .unwrap();
    let images = run.next().swap_remove(0);
    let images: Vec<&[f32]> = images.chunks(3 * 37 * 53).collect();
    assert!(images[0] == images[1] && images[0][..8] == images[2][..8] && images[0] != images[2]);
    run.next();
    let told = warned(dir.path().to_str().unwrap());
    let what = "cut.jpg is a JPEG that is cut short: what is missing of it is gray";
    assert!(told.len() == 1 && told[0].contains("list.txt: line 3: ") && told[0].contains(what), "{told:?}");
}

#[test]
fn colors_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let base = numbered(dir.path(), 1);
    DynamicImage::ImageLuma8(GrayImage::from_pixel(8, 6, image::Luma([9]))).save(dir.path().join("g.png")).unwrap();
    let shape = |layer: &LayerParameter| open(layer, &cx(Phase::Test, 1)).unwrap().shapes[0].clone();
    let gray = with(&base, |p| p.is_color = Some(false));
    assert_eq!(shape(&gray), Shape::from([5, 1, 3, 4]));
    // As in Caffe, that is for records.
    for (layer, channels) in [(&gray, 1), (&base, 3)] {
        let transform = TransformationParameter {
            force_color: Some(channels == 1),
            force_gray: Some(channels == 3),
            ..Default::default()
        };
        let name = format!("forced to {}", 4 - channels);
        let forced = LayerParameter { transform_param: Some(transform), name: Some(name.clone()), ..layer.clone() };
        assert_eq!(shape(&forced), Shape::from([5, channels, 3, 4]));
        let told = warned(&name);
        let what = format!("force_{} has no effect, as in Caffe", if channels == 1 { "color" } else { "gray" });
        assert!(told.len() == 1 && told[0].contains(&what) && told[0].contains("is_color"), "{told:?}");
    }
    // A gray file among coloured ones has three equal channels.
    let mixed = layer(dir.path(), "0 im.png 1\ng.png 2\n", 2);
    let resized = with(&mixed, |p| (p.new_height, p.new_width) = (Some(2), Some(3)));
    let mut run = open(&resized, &cx(Phase::Test, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([2, 3, 2, 3]));
    assert_eq!(run.next()[0][18..], [9.0; 18]);
    let e = error(&mixed, &cx(Phase::Test, 1));
    assert!(
        e.contains("list.txt: line 2: ") && e.contains("g.png is 3 x 6 x 8, but the first image is 3 x 3 x 4"),
        "{e}"
    );
}

#[test]
fn mistakes_name_list_line_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = numbered(dir.path(), 2);
    let fails = |layer: &LayerParameter, what: &str| {
        let e = error(layer, &cx(Phase::Train, 1));
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    fails(&with(&base, |p| p.source = None), "image_data_param needs a source");
    fails(&with(&base, |p| p.batch_size = Some(0)), "needs a positive batch_size");
    fails(&with(&base, |p| p.new_width = Some(3)), "new_height and new_width both or neither, found 0 and 3");
    fails(&LayerParameter { top: vec!["a".into(); 3], ..base.clone() }, "takes one top, the images, or two");
    fails(&with(&base, |p| p.source = Some("/nonexistent".into())), "/nonexistent: cannot open the list of images");
    let folder = dir.path().to_str().unwrap().to_string();
    fails(&with(&base, |p| p.root_folder = Some(folder.clone())), "needs a slash at its end");
    fails(&layer(dir.path(), "0 im.png 1\nnone.png 2\n", 5), "list.txt: line 2: '");
    fails(&with(&layer(dir.path(), "none.png 2\n", 5), |p| p.root_folder = None), "relative to the folder the program");
    fs::write(dir.path().join("bad.jpg"), "no picture").unwrap();
    fails(
        &layer(dir.path(), "0 im.png 1\nbad.jpg 2\n", 5),
        "bad.jpg: cannot be decoded (JPEG, PNG, BMP, TIFF, WebP and PPM, PGM or PBM can be)",
    );
    fs::create_dir(dir.path().join("folder")).unwrap();
    fails(&layer(dir.path(), "folder 2\n", 5), "cannot read");
    fails(&layer(dir.path(), "0 im.png\n", 5), "line 1: expected a label, a whole number, at the end, found 'im.png'");
    let huge = fs::File::create(dir.path().join("huge.png")).unwrap();
    huge.set_len(1 << 30).unwrap();
    fails(&layer(dir.path(), "huge.png 1\n", 5), "huge.png: has 1.0 GiB, more than the 512.0 MiB of an image");
}

#[test]
fn every_format_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_fn(4, 3, |x, y| image::Rgb([x as u8 * 30, y as u8 * 40, (x * y) as u8]));
    let ends = ["png", "bmp", "ppm", "tiff", "webp"];
    ends.iter().for_each(|end| picture.save(dir.path().join(format!("im.{end}"))).unwrap());
    let deep = image::ImageBuffer::from_fn(4, 3, |x, y| {
        image::Rgb(picture.get_pixel(x, y).0.map(|value| u16::from(value) << 8 | 0x7f))
    });
    DynamicImage::ImageRgb16(deep).save(dir.path().join("deep.ppm")).unwrap();
    let lines: String = ends.iter().map(|end| format!("im.{end} 1\n")).chain(["deep.ppm 1\n".to_string()]).collect();
    let batch = open(&layer(dir.path(), &lines, 6), &cx(Phase::Train, 1)).unwrap().next().swap_remove(0);
    for image in batch.chunks(36) {
        let value = |c: usize, y: usize, x: usize| image[(c * 3 + y) * 4 + x] as u8;
        for (x, y, pixel) in picture.enumerate_pixels() {
            let [b, g, r] = [0, 1, 2].map(|c| value(c, y as usize, x as usize));
            assert_eq!([r, g, b], pixel.0);
        }
    }
}
