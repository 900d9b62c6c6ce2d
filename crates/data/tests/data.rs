//! Data: records in order, transformation, sharing, resumption, recorded databases, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{begins_anew, cx, error, golden, jpeg, open, resumes_exactly, start, warned};
use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions};
use lgm_core::{Node, Phase, Registry, Shape, State};
use lgm_data::db::{Backend, Writer};
use lgm_proto::{DataParameter, Datum, LayerParameter, TransformationParameter, data_parameter::Db};
use prost::Message;

/// A database of the given values under the keys `00000000`, `00000001`, …
fn write_db(path: &Path, records: &[Vec<u8>]) -> String {
    fs::create_dir_all(path).unwrap();
    let env = unsafe { EnvOpenOptions::new().map_size(1 << 24).open(path) }.unwrap();
    env.create_databases_and_commit(env.write_txn().unwrap(), |opener, txn| -> heed::Result<_> {
        let db = opener.create_database::<Bytes, Bytes>(txn, None)?;
        for (i, r) in records.iter().enumerate() {
            db.put(txn, format!("{i:08}").as_bytes(), r)?;
        }
        Ok(CommitOrAbort::<_, ()>::Commit(()))
    })
    .unwrap();
    path.to_str().unwrap().into()
}

/// The same in LevelDB.
fn leveldb(path: &Path, records: impl Iterator<Item = Vec<u8>>) -> String {
    let mut writer = Writer::create(path, Backend::Leveldb).unwrap();
    records.enumerate().for_each(|(i, record)| writer.put(format!("{i:08}").as_bytes(), record).unwrap());
    writer.finish().unwrap();
    path.to_str().unwrap().into()
}

/// Image n of 1 x 3 x 4 has pixels n, n+1, …; its label is n.
fn datum(n: usize) -> Datum {
    Datum {
        channels: Some(1),
        height: Some(3),
        width: Some(4),
        data: Some((n..n + 12).map(|v| v as u8).collect()),
        label: Some(n as i32),
        ..Default::default()
    }
}

fn numbered(path: &Path, n: usize) -> String {
    write_db(path, &(0..n).map(|i| datum(i).encode_to_vec()).collect::<Vec<_>>())
}

fn layer(source: &str, batch: u32) -> LayerParameter {
    LayerParameter {
        name: Some("data".into()),
        r#type: Some("Data".into()),
        top: vec!["data".into(), "label".into()],
        data_param: Some(DataParameter {
            source: Some(source.into()),
            batch_size: Some(batch),
            backend: Some(Db::Lmdb as i32),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn transformed(source: &str, batch: u32, transform: TransformationParameter) -> LayerParameter {
    LayerParameter { transform_param: Some(transform), ..layer(source, batch) }
}

#[test]
fn records_come_in_order_and_round_again() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 7);
    let mut run = open(&layer(&db, 5), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes, [Shape::from([5, 1, 3, 4]), Shape::from([5])]);
    let mut labels = Vec::new();
    for _ in 0..6 {
        let batch = run.next();
        for (image, &n) in batch[0].chunks(12).zip(&batch[1]) {
            assert_eq!(image, (0..12).map(|p| n + p as f32).collect::<Vec<_>>());
        }
        labels.extend(batch[1].clone());
    }
    assert_eq!(labels, (0..30).map(|i| (i % 7) as f32).collect::<Vec<_>>());
    // A batch larger than the database, and no label top.
    let one = LayerParameter { top: vec!["data".into()], ..layer(&db, 17) };
    let first: Vec<f32> = open(&one, &cx(Phase::Train, 1)).unwrap().next()[0].chunks(12).map(|i| i[0]).collect();
    assert_eq!(first, (0..17).map(|i| (i % 7) as f32).collect::<Vec<_>>());
}

#[test]
fn train_and_test_read_one_database_at_once_and_it_can_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 4);
    for _ in 0..3 {
        let mut train = open(&layer(&db, 3), &cx(Phase::Train, 1)).unwrap();
        let mut test = open(&layer(&db, 2), &cx(Phase::Test, 1)).unwrap();
        assert_eq!(train.collect(1, 2), [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(test.collect(1, 2), [0.0, 1.0, 2.0, 3.0]);
        drop(train);
        assert_eq!(test.collect(1, 1), [0.0, 1.0]);
    }
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let db = db.clone();
            std::thread::spawn(move || {
                for _ in 0..20 {
                    assert_eq!(open(&layer(&db, 2), &cx(Phase::Train, 1)).unwrap().collect(1, 1), [0.0, 1.0]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn a_database_that_cannot_be_written_is_read_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(&dir.path().join("db"), 3);
    fs::remove_file(Path::new(&db).join("lock.mdb")).unwrap();
    let mut readonly = fs::metadata(&db).unwrap().permissions();
    let writable = readonly.clone();
    readonly.set_readonly(true);
    fs::set_permissions(&db, readonly).unwrap();
    let labels = open(&layer(&db, 3), &cx(Phase::Train, 1)).unwrap().collect(1, 1);
    fs::set_permissions(&db, writable).unwrap();
    assert_eq!(labels, [0.0, 1.0, 2.0]);
    assert_eq!(fs::read_dir(&db).unwrap().count(), 1, "reading made a file");
}

#[test]
fn images_are_transformed() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 40);
    let t =
        TransformationParameter { crop_size: Some(2), mean_value: vec![1.0], scale: Some(0.5), ..Default::default() };
    let mut run = open(&transformed(&db, 2, t.clone()), &cx(Phase::Test, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([2, 1, 2, 2]));
    assert_eq!(run.next()[0], [0.0, 0.5, 2.0, 2.5, 0.5, 1.0, 2.5, 3.0]);
    // In TRAIN, the window is drawn for each image.
    let mut run = open(&transformed(&db, 40, t), &cx(Phase::Train, 1)).unwrap();
    let batch = run.next();
    let corners: std::collections::BTreeSet<i32> =
        batch[0].chunks(4).zip(&batch[1]).map(|(i, n)| (i[0] / 0.5 + 1.0 - n) as i32).collect();
    assert_eq!(corners.into_iter().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6]);
}

#[test]
fn encoded_and_floating_records() {
    let dir = tempfile::tempdir().unwrap();
    let png = |n: u8| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let rgb = image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([n, 10 + x as u8, 20 + y as u8]));
        rgb.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let d =
            Datum { data: Some(bytes.into_inner()), label: Some(n.into()), encoded: Some(true), ..Default::default() };
        d.encode_to_vec()
    };
    // More than one thread's share of images.
    let db = write_db(&dir.path().join("png"), &(0..100).map(png).collect::<Vec<_>>());
    let mut run = open(&layer(&db, 100), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([100, 3, 2, 3]));
    let batch = run.next();
    for (image, &n) in batch[0].chunks(18).zip(&batch[1]) {
        let (bg, red) = image.split_at(12);
        assert_eq!(bg, [20.0, 20.0, 20.0, 21.0, 21.0, 21.0, 10.0, 11.0, 12.0, 10.0, 11.0, 12.0]);
        assert_eq!(red, [n; 6]);
    }
    let gray = TransformationParameter { force_gray: Some(true), ..Default::default() };
    let gray = open(&transformed(&db, 2, gray), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(gray.shapes[0], Shape::from([2, 1, 2, 3]));

    let floats = Datum { data: None, float_data: (0..12).map(|v| v as f32 / 4.0).collect(), ..datum(3) };
    let db = write_db(&dir.path().join("float"), &[floats.encode_to_vec()]);
    let batch = open(&layer(&db, 1), &cx(Phase::Train, 1)).unwrap().next();
    assert_eq!(batch[0], (0..12).map(|v| v as f32 / 4.0).collect::<Vec<_>>());
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 23);
    let t = TransformationParameter { crop_size: Some(2), mirror: Some(true), ..Default::default() };
    let mut l = transformed(&db, 5, t);
    l.data_param.as_mut().unwrap().rand_skip = Some(10);
    resumes_exactly(&|| open(&l, &cx(Phase::Train, 3)).unwrap(), 12);
}

fn shuffled(source: &str, batch: u32) -> LayerParameter {
    let mut layer = layer(source, batch);
    layer.data_param.as_mut().unwrap().shuffle = Some(true);
    layer
}

#[test]
fn shuffled_records_all_come_each_time_round_in_another_order() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        numbered(&dir.path().join("lmdb"), 40),
        leveldb(&dir.path().join("leveldb"), (0..40).map(|i| datum(i).encode_to_vec())),
    ];
    let orders = sources.map(|db| {
        let layer = shuffled(&db, 8);
        let mut run = open(&layer, &cx(Phase::Train, 1)).unwrap();
        let rounds: Vec<Vec<f32>> = (0..3).map(|_| run.collect(1, 5)).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_by(f32::total_cmp);
            assert_eq!(sorted, (0..40).map(|i| i as f32).collect::<Vec<_>>());
        }
        assert!(rounds[0] != rounds[1] && rounds[1] != rounds[2]);
        let images = open(&layer, &cx(Phase::Train, 1)).unwrap().collect(0, 5);
        for (image, &n) in images.chunks(12).zip(&rounds[0]) {
            assert_eq!(image, (0..12).map(|p| n + p as f32).collect::<Vec<_>>());
        }
        assert_ne!(open(&layer, &cx(Phase::Train, 2)).unwrap().collect(1, 5), rounds[0]);
        rounds
    });
    assert_eq!(orders[0], orders[1], "the order depends on the kind of database");
}

#[test]
fn a_shuffled_run_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 23);
    let mut l = shuffled(&db, 5);
    l.data_param.as_mut().unwrap().rand_skip = Some(10);
    resumes_exactly(&|| open(&l, &cx(Phase::Train, 3)).unwrap(), 12);
}

#[test]
fn a_bad_record_of_a_shuffled_run_is_named_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..9).map(|i| if i == 5 { vec![0xff] } else { datum(i).encode_to_vec() }).collect();
    let e = error(&shuffled(&write_db(dir.path(), &records), 9), &cx(Phase::Train, 1));
    assert!(e.contains("record 5 (key '00000005') is not a Datum"), "{e}");
}

#[test]
fn a_leveldb_run_resumes_exactly_and_anew_behind_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let db = leveldb(&dir.path().join("db"), (0..23).map(|i| datum(i).encode_to_vec()));
    resumes_exactly(&|| open(&layer(&db, 5), &cx(Phase::Train, 3)).unwrap(), 12);
    let make = || open(&layer(&db, 5), &cx(Phase::Train, 3)).unwrap();
    let behind = |state: &mut State| state.extend([("record".to_string(), 23.0)]);
    begins_anew(&make, "Data 'data'", &behind, "position is record 23, but the database ends before it");
}

#[test]
fn a_saved_position_that_does_not_fit_begins_the_run_anew() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 30);
    let mut l = layer(&db, 2);
    l.data_param.as_mut().unwrap().rand_skip = Some(9);
    let make = || open(&l, &cx(Phase::Train, 4)).unwrap();
    let behind = |state: &mut State| state.extend([("record".to_string(), 30.0)]);
    begins_anew(&make, "Data 'data'", &behind, "the saved position is record 30 of 30");
    let other = |state: &mut State| *state = State::from([("epoch".into(), 1.0), ("taken".into(), 3.0)]);
    begins_anew(&make, "Data 'data'", &other, "the saved data position lacks 'record'");
    // A position taken up before the database is opened.
    let mut registry = Registry::default();
    lgm_data::register(&mut registry);
    let Node::Source(mut source) = registry.build(&l, &cx(Phase::Train, 4)).unwrap() else { panic!("no source") };
    source.restore(&State::from([("record".into(), 77.0), ("image".into(), 0.0)])).unwrap();
    assert!(start(source, 2).unwrap().next() == make().next());
    assert_eq!(warned("the saved position is record 77 of 30").len(), 1);
}

#[test]
fn the_first_record_with_too_many_values_is_told_and_its_first_ones_used() {
    let dir = tempfile::tempdir().unwrap();
    let more = |n: usize| Datum { data: Some((n..n + 15).map(|v| v as u8).collect()), ..datum(n) }.encode_to_vec();
    let records: Vec<_> = (0..9).map(|n| if n > 3 { more(n) } else { datum(n).encode_to_vec() }).collect();
    let mut run = open(&layer(&write_db(dir.path(), &records), 9), &cx(Phase::Train, 1)).unwrap();
    let images = run.next().swap_remove(0);
    assert_eq!(images, (0..9).flat_map(|n| (n..n + 12).map(|v| v as f32)).collect::<Vec<_>>());
    run.next();
    let told = warned(dir.path().to_str().unwrap());
    let what = "record 4 (key '00000004') has 1 x 3 x 4 = 12 pixels but 15 values";
    assert!(told.len() == 1 && told[0].starts_with("Data 'data': ") && told[0].contains(what), "{told:?}");
}

#[test]
fn the_first_jpeg_that_is_cut_short_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let jpeg = jpeg();
    let record = |len: usize| {
        let data = Some(jpeg[..len].to_vec());
        Datum { data, encoded: Some(true), ..Default::default() }.encode_to_vec()
    };
    let records = [jpeg.len(), jpeg.len() - 2, jpeg.len() - 30, jpeg.len() - 40].map(record);
    let mut run = open(&layer(&write_db(dir.path(), &records), 4), &cx(Phase::Train, 1)).unwrap();
    let images = run.next().swap_remove(0);
    let images: Vec<&[f32]> = images.chunks(3 * 37 * 53).collect();
    assert!(images[0] == images[1] && images[0][..8] == images[2][..8] && images[0] != images[2]);
    run.next();
    let told = warned(dir.path().to_str().unwrap());
    let what = "record 2 (key '00000002') is a JPEG that is cut short: what is missing of it is gray";
    assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
}

#[test]
fn rand_skip_starts_among_the_first_records() {
    let dir = tempfile::tempdir().unwrap();
    let db = numbered(dir.path(), 30);
    let mut l = layer(&db, 1);
    l.data_param.as_mut().unwrap().rand_skip = Some(4);
    let starts: std::collections::BTreeSet<i32> =
        (0..40).map(|seed| open(&l, &cx(Phase::Train, seed)).unwrap().collect(1, 1)[0] as i32).collect();
    assert_eq!(starts.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_database_that_caffe_wrote() {
    let path = golden("db/mnist_200_lmdb");
    let mut run = open(&layer(path.to_str().unwrap(), 200), &cx(Phase::Test, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([200, 1, 28, 28]));
    let batch = run.next();
    assert_eq!(&batch[1][..10], [7.0, 2.0, 1.0, 0.0, 4.0, 1.0, 4.0, 9.0, 5.0, 9.0]);
    assert!(batch[0].iter().all(|v| (0.0..=255.0).contains(v)) && batch[0].contains(&255.0));
    assert!(run.next() == batch, "200 records, then the first again");
}

#[test]
fn a_leveldb_database_gives_the_same_whatever_backend_says() {
    for backend in [Db::Lmdb, Db::Leveldb] {
        let batches = ["db/mnist_200_lmdb", "db/mnist_200_leveldb"].map(|name| {
            let mut layer = layer(golden(name).to_str().unwrap(), 150);
            layer.data_param.as_mut().unwrap().backend = Some(backend as i32);
            let mut run = open(&layer, &cx(Phase::Train, 1)).unwrap();
            (0..3).map(|_| run.next()).collect::<Vec<_>>()
        });
        assert!(batches[0] == batches[1]);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let train = cx(Phase::Train, 1);
    let fails = |l: &LayerParameter, what: &str| {
        let e = error(l, &train);
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    let sub = |name: &str| dir.path().join(name);
    fails(&layer("", 2), "needs a source");
    fails(&layer("x", 0), "positive batch_size");
    fails(&layer("/nonexistent/db", 2), "/nonexistent/db: cannot open the database");
    fails(
        &layer(dir.path().to_str().unwrap(), 2),
        "expected a file data.mdb (LMDB) or CURRENT (LevelDB) in the folder",
    );
    fs::write(sub("file"), "x").unwrap();
    fails(&layer(sub("file").to_str().unwrap(), 2), "expected the folder of an LMDB or LevelDB database, found a file");
    fs::create_dir(sub("junk")).unwrap();
    fs::write(sub("junk").join("data.mdb"), vec![7u8; 9000]).unwrap();
    fails(&layer(sub("junk").to_str().unwrap(), 2), "cannot be read as an LMDB database");
    fails(&layer(&write_db(&sub("empty"), &[]), 2), "the database holds no records");
    fails(
        &layer(&write_db(&sub("damaged"), &[datum(0).encode_to_vec(), vec![0xff]]), 2),
        "record 1 (key '00000001') is not a Datum",
    );
    let other = Datum { height: Some(4), width: Some(3), ..datum(1) };
    let mixed = write_db(&sub("mixed"), &[datum(0).encode_to_vec(), other.encode_to_vec()]);
    fails(
        &layer(&mixed, 2),
        "record 1 (key '00000001') is 1 x 4 x 3, but the first image is 1 x 3 x 4; images of several sizes need crop_size",
    );

    let db = numbered(&sub("good"), 3);
    let crop = TransformationParameter { crop_size: Some(4), ..Default::default() };
    fails(&transformed(&db, 2, crop), "record 0 (key '00000000') is 1 x 3 x 4, smaller than crop_size 4");
    let three = LayerParameter { top: vec!["a".into(), "b".into(), "c".into()], ..layer(&db, 1) };
    fails(&three, "Data takes one top, the images, or two");
}
