//! HDF5Data: order, transformation, resumption, bounded memory, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{Running, begins_anew, cx, error, open, resumes_exactly, start};
use lgm_core::{Phase, Shape, State};
use lgm_data::Hdf5Data;
use lgm_data::hdf5::write_f32;
use lgm_proto::{Hdf5DataParameter, LayerParameter, TransformationParameter};

/// Files of `rows` images of 2 x 4 x 5: pixel p of image n is 100·n + p; label n. Returns the list's path.
fn write_files(dir: &Path, rows: &[usize]) -> String {
    let (mut list, mut next) = (String::new(), 0);
    for (i, &n) in rows.iter().enumerate() {
        let path = dir.join(format!("file{i}.h5"));
        let data: Vec<f32> = (next..next + n).flat_map(|v| (0..40).map(move |p| (100 * v + p) as f32)).collect();
        let label: Vec<f32> = (next..next + n).map(|v| v as f32).collect();
        next += n;
        write_f32(&path, &[("data", &Shape::from([n, 2, 4, 5]), &data), ("label", &Shape::from([n]), &label)]).unwrap();
        list += &format!("{}\n", path.display());
    }
    let path = dir.join("list.txt");
    fs::write(&path, list).unwrap();
    path.to_str().unwrap().into()
}

fn layer(param: Hdf5DataParameter) -> LayerParameter {
    LayerParameter {
        name: Some("data".into()),
        r#type: Some("HDF5Data".into()),
        top: vec!["data".into(), "label".into()],
        hdf5_data_param: Some(param),
        ..Default::default()
    }
}

fn param(list: &str, batch: u32) -> Hdf5DataParameter {
    Hdf5DataParameter { source: Some(list.into()), batch_size: Some(batch), ..Default::default() }
}

fn images(batch: &[f32], each: usize) -> Vec<Vec<f32>> {
    batch.chunks(each).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_come_in_order_across_files_and_round_again() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[3, 4]);
    let mut run = open(&layer(param(&list, 5)), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes, [Shape::from([5, 2, 4, 5]), Shape::from([5])]);
    let mut labels = Vec::new();
    for _ in 0..4 {
        let batch = run.next();
        for (image, &n) in images(&batch[0], 40).iter().zip(&batch[1]) {
            assert_eq!(image, &(0..40).map(|p| 100.0 * n + p as f32).collect::<Vec<_>>());
        }
        labels.extend(batch[1].clone());
    }
    assert_eq!(labels, (0..20).map(|i| (i % 7) as f32).collect::<Vec<_>>());
}

#[test]
fn shuffling_visits_each_row_once_an_epoch_and_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[6, 9]);
    let shuffled = Hdf5DataParameter { shuffle: Some(true), ..param(&list, 5) };
    let epochs = |seed| {
        let labels = open(&layer(shuffled.clone()), &cx(Phase::Train, seed)).unwrap().collect(1, 12);
        images(&labels, 15)
    };
    let first = epochs(1);
    let mut file_orders = std::collections::BTreeSet::new();
    for epoch in &first {
        let mut sorted = epoch.clone();
        sorted.sort_by(f32::total_cmp);
        assert_eq!(sorted, (0..15).map(|v| v as f32).collect::<Vec<_>>());
        let short_first = epoch[0] < 6.0;
        file_orders.insert(short_first);
        let head = if short_first { 6 } else { 9 };
        assert!(epoch[..head].iter().all(|&v| (v < 6.0) == short_first), "{epoch:?}");
    }
    assert_eq!(file_orders.len(), 2, "four epochs of two files, all in one order");
    assert_ne!(first[0], first[1]);
    assert_eq!(first, epochs(1));
    assert_ne!(first, epochs(2));
}

#[test]
fn the_first_top_is_cropped_centred_mirrored_and_scaled() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[50]);
    let p = Hdf5DataParameter {
        crop_size: Some(3),
        mean_value: vec![1.0, 2.0],
        mirror: Some(true),
        scale: Some(0.5),
        ..param(&list, 50)
    };
    let mut run = open(&layer(p), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([50, 2, 3, 3]));
    let mut corners = std::collections::BTreeMap::new();
    for _ in 0..6 {
        let batch = run.next();
        for (image, &n) in images(&batch[0], 18).iter().zip(&batch[1]) {
            let raw = |c: usize, y: usize, x: usize| 100.0 * n + (20 * c + 5 * y + x) as f32;
            let want = |top: usize, left: usize, mirror: bool| -> Vec<f32> {
                let (mut out, means) = (Vec::new(), [1.0, 2.0]);
                for (c, mean) in means.iter().enumerate() {
                    for y in 0..3 {
                        for x in 0..3 {
                            let x = if mirror { 2 - x } else { x };
                            out.push((raw(c, top + y, left + x) - mean) * 0.5);
                        }
                    }
                }
                out
            };
            let places = (0..12usize).map(|i| (i % 2, i / 2 % 3, i >= 6));
            let found: Vec<_> = places.filter(|&(t, l, m)| *image == want(t, l, m)).collect();
            assert_eq!(found.len(), 1, "image {n} is no window of its row");
            *corners.entry(found[0]).or_insert(0) += 1;
        }
    }
    // Drawn for each image: all 12 windows occur about equally often.
    assert!(corners.len() == 12 && corners.values().all(|&n| n >= 10), "{corners:?}");
}

#[test]
fn test_crops_are_centred_and_several_in_the_fork_s_order() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[2]);
    let crop = |n, mirror| {
        let p = Hdf5DataParameter {
            crop_size: Some(3),
            crop_num: n,
            mirror: Some(mirror),
            mean_value: vec![1.0],
            ..param(&list, 2)
        };
        let mut run = open(&layer(p), &cx(Phase::Test, 1)).unwrap();
        let batch = run.next();
        assert_eq!(batch[1], [0.0, 1.0]);
        assert_eq!(run.shapes[1], Shape::from([2]));
        assert_eq!(run.shapes[0].count(), batch[0].len());
        // The top left value of each window.
        images(&batch[0], 18).iter().map(|i| i[0] + 1.0).collect::<Vec<_>>()
    };
    assert_eq!(crop(None, false), [1.0, 101.0]);
    assert_eq!(crop(Some(5), false), [1.0, 0.0, 7.0, 2.0, 5.0, 101.0, 100.0, 107.0, 102.0, 105.0]);
    assert_eq!(crop(None, true), [3.0, 1.0, 103.0, 101.0]);
    assert_eq!(crop(Some(2), true), [3.0, 2.0, 1.0, 0.0, 103.0, 102.0, 101.0, 100.0]);
}

#[test]
fn rows_of_any_rank_can_be_scaled_and_centred() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    write_f32(&path, &[("x", &Shape::from([3, 2]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap();
    let list = dir.path().join("l.txt");
    fs::write(&list, path.to_str().unwrap()).unwrap();
    let p = Hdf5DataParameter { mean_value: vec![1.0, 2.0], scale: Some(2.0), ..param(list.to_str().unwrap(), 3) };
    let one = LayerParameter { top: vec!["x".into()], ..layer(p) };
    assert_eq!(open(&one, &cx(Phase::Train, 1)).unwrap().next()[0], [0.0, 0.0, 4.0, 4.0, 8.0, 8.0]);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[7, 30]);
    let p = Hdf5DataParameter { shuffle: Some(true), crop_size: Some(2), mirror: Some(true), ..param(&list, 5) };
    let row_bytes = 41 * 4;
    for window in [1 << 30, 10 * row_bytes, row_bytes] {
        let make = || -> Running {
            let source = Hdf5Data::new(&layer(p.clone()), &cx(Phase::Train, 3)).unwrap();
            start(Box::new(source.with_window_bytes(window)), 2).unwrap()
        };
        resumes_exactly(&make, 20);
    }
}

#[test]
fn a_small_memory_bound_changes_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[25]);
    for shuffle in [false, true] {
        let p = Hdf5DataParameter { shuffle: Some(shuffle), ..param(&list, 5) };
        let source = Hdf5Data::new(&layer(p), &cx(Phase::Train, 3)).unwrap().with_window_bytes(7 * 41 * 4);
        let mut run = start(Box::new(source), 2).unwrap();
        for _ in 0..3 {
            let batches: Vec<_> = (0..5).map(|_| run.next()).collect();
            let mut labels: Vec<f32> = batches.iter().flat_map(|b| b[1].clone()).collect();
            for b in &batches {
                for (image, &n) in images(&b[0], 40).iter().zip(&b[1]) {
                    assert_eq!(image, &(0..40).map(|p| 100.0 * n + p as f32).collect::<Vec<_>>());
                }
            }
            labels.sort_by(f32::total_cmp);
            assert_eq!(labels, (0..25).map(|v| v as f32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn missing_and_unsuitable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[3]);
    let data = dir.path().join("file0.h5");
    let train = cx(Phase::Train, 1);
    let good = layer(param(&list, 2));
    let fails = |what: &str| {
        let e = error(&good, &train);
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };

    let e = error(&layer(param("/nonexistent/list.txt", 2)), &train);
    assert!(e.contains("/nonexistent/list.txt: cannot open the list"), "{e}");
    fs::write(&list, "no_such.h5\n").unwrap();
    fails("lists 'no_such.h5', which does not exist (names are relative to the folder the program runs in");
    fs::write(&list, " \n").unwrap();
    fails("list.txt: must list at least one HDF5 file");
    fs::write(dir.path().join("text.h5"), "not HDF5").unwrap();
    fs::write(&list, dir.path().join("text.h5").to_str().unwrap()).unwrap();
    fails("text.h5: cannot be read as an HDF5 file");

    fs::write(&list, data.to_str().unwrap()).unwrap();
    let (a, b, v) = (Shape::from([2, 3]), Shape::from([3]), [0.0f32; 6]);
    write_f32(&data, &[("data", &a, &v), ("other", &b, &v[..3])]).unwrap();
    fails("no dataset named 'label' (datasets found: data, other)");
    write_f32(&data, &[("data", &a, &v), ("label", &b, &v[..3])]).unwrap();
    fails("'data' has 2, 'label' has 3");
    write_f32(&data, &[("data", &Shape::from([0, 3]), &[]), ("label", &Shape::from([0]), &[])]).unwrap();
    fails("file0.h5: holds no rows");
    write_f32(&data, &[("data", &Shape::scalar(), &v[..1]), ("label", &Shape::scalar(), &v[..1])]).unwrap();
    fails("dataset 'data' is a scalar");

    let second = dir.path().join("second.h5");
    write_f32(&data, &[("data", &a, &v), ("label", &Shape::from([2]), &v[..2])]).unwrap();
    write_f32(&second, &[("data", &b, &v[..3]), ("label", &b, &v[..3])]).unwrap();
    fs::write(&list, format!("{}\n{}\n", data.display(), second.display())).unwrap();
    fails("one row of dataset 'data', as in");

    let text = hdf5_metno::File::create(&data).unwrap();
    let words = vec![hdf5_metno::types::VarLenUnicode::default(); 2];
    text.new_dataset_builder().with_data(&words).create("data").unwrap();
    text.close().unwrap();
    fs::write(&list, data.to_str().unwrap()).unwrap();
    fails("dataset 'data': expected integers or floating-point numbers, found");
}

#[test]
fn wrong_parameters_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[3]);
    let train = cx(Phase::Train, 1);
    let fails = |p: Hdf5DataParameter, phase, what: &str| {
        let e = error(&layer(p), &cx(phase, 1));
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    let p = || param(&list, 2);
    fails(Hdf5DataParameter { source: None, ..p() }, Phase::Train, "needs a source");
    fails(Hdf5DataParameter { batch_size: None, ..p() }, Phase::Train, "positive batch_size");
    fails(
        Hdf5DataParameter { crop_size: Some(5), ..p() },
        Phase::Train,
        "crop_size 5 is larger than the images, 4 x 5",
    );
    fails(Hdf5DataParameter { mean_value: vec![0.0; 3], ..p() }, Phase::Train, "each of the 2 channels, found 3");
    let crops = |n| Hdf5DataParameter { crop_size: Some(2), crop_num: Some(n), ..p() };
    fails(crops(6), Phase::Test, "crop_num must be between 1 and 5, found 6");
    fails(crops(5), Phase::Train, "crop_num 5 is for the TEST phase");
    let transforms = LayerParameter {
        transform_param: Some(TransformationParameter { scale: Some(2.0), ..Default::default() }),
        ..layer(p())
    };
    assert!(error(&transforms, &train).contains("HDF5Data does not transform data"));
    let labels = LayerParameter { top: vec!["label".into()], ..layer(Hdf5DataParameter { mirror: Some(true), ..p() }) };
    assert!(error(&labels, &train).contains("need images, rows of channels x height x width"));
    let itself = dir.path().join("file0.h5");
    assert!(itself.exists());
    let itself = Hdf5DataParameter { source: Some(itself.to_str().unwrap().into()), ..p() };
    fails(
        itself,
        Phase::Train,
        "file0.h5: is an HDF5 file; source must be a text file that lists HDF5 files, one a line",
    );
}

#[test]
fn a_saved_position_that_does_not_fit_begins_the_run_anew() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[3]);
    let make = || open(&layer(param(&list, 2)), &cx(Phase::Train, 1)).unwrap();
    let name = layer(param(&list, 2)).name().to_string();
    let name = format!("HDF5Data '{name}'");
    let set = |key: &'static str, value: f64| move |state: &mut State| state.extend([(key.to_string(), value)]);
    begins_anew(&make, &name, &set("row", 3.0), "the saved position is row 3 of 3");
    begins_anew(&make, &name, &set("file", 1.0), "the saved position is in file number 2, but the list has 1");
    begins_anew(&make, &name, &|state| state.retain(|key, _| key != "image"), "the saved data position lacks 'image'");
}

#[test]
fn a_file_that_changes_under_training_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let list = write_files(dir.path(), &[3]);
    let mut run = open(&layer(param(&list, 2)), &cx(Phase::Train, 1)).unwrap();
    write_files(dir.path(), &[4]);
    assert!(run.try_next().unwrap_err().to_string().contains("has changed since training began"));
}
