//! The mean of a database's images: its values, whatever the number of images, and errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use lgm_data::ImageMean;
use lgm_data::db::{Backend, Database, Writer};
use lgm_proto::Datum;
use prost::Message;

fn datum(values: Vec<u8>, width: i32) -> Datum {
    let height = values.len() as i32 / 2 / width;
    Datum { channels: Some(2), height: Some(height), width: Some(width), data: Some(values), ..Default::default() }
}

fn database(path: &Path, backend: Backend, data: impl IntoIterator<Item = Datum>) -> Arc<Database> {
    let mut writer = Writer::create(path, backend).unwrap();
    for (i, datum) in data.into_iter().enumerate() {
        writer.put(format!("{i:06}").as_bytes(), datum.encode_to_vec()).unwrap();
    }
    writer.finish().unwrap();
    Database::open(path).unwrap()
}

#[test]
fn means_of_pixels_and_of_channels() {
    let dir = tempfile::tempdir().unwrap();
    for backend in [Backend::Lmdb, Backend::Leveldb] {
        for count in [1u32, 7, 300, 1000] {
            let pixel = |n: u32, p: u32| ((n * 31 + p * 17) % 251) as u8;
            let images = (0..count).map(|n| datum((0..12).map(|p| pixel(n, p)).collect(), 3));
            let database = database(&dir.path().join(format!("{backend}{count}")), backend, images);
            let mut calls = Vec::new();
            let mean = ImageMean::of(&database, |done| calls.push(done)).unwrap();
            assert_eq!(calls, (1..=u64::from(count)).collect::<Vec<_>>());
            let blob = mean.to_blob();
            assert_eq!((blob.num(), blob.channels(), blob.height(), blob.width()), (1, 2, 2, 3));
            let want: Vec<f64> =
                (0..12).map(|p| (0..count).map(|n| f64::from(pixel(n, p))).sum::<f64>() / f64::from(count)).collect();
            assert_eq!(blob.data, want.iter().map(|&v| v as f32).collect::<Vec<_>>());
            for (got, want) in mean.channels().iter().zip(want.chunks(6)) {
                assert!((got - want.iter().sum::<f64>() / 6.0).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn a_record_that_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let images = (0..40).map(|n| datum(vec![n; 12], if n == 33 { 2 } else { 3 }));
    let database = database(&dir.path().join("sizes"), Backend::Lmdb, images);
    let e = ImageMean::of(&database, |_| ()).err().unwrap().to_string();
    assert!(
        e.contains("sizes: record 33 (key '000033') is 2 x 3 x 2, but the first image is 2 x 2 x 3; a mean"),
        "{e}"
    );
    let more = Datum { data: Some(vec![1; 13]), ..datum(vec![1; 12], 3) };
    let database = self::database(&dir.path().join("more"), Backend::Lmdb, [datum(vec![1; 12], 3), more]);
    let e = ImageMean::of(&database, |_| ()).err().unwrap().to_string();
    assert!(e.contains("more: record 1 (key '000001') has 2 x 2 x 3 = 12 pixels but 13 values"), "{e}");
    let broken = Datum { data: Some(vec![1]), ..datum(vec![1; 12], 3) };
    let database = self::database(&dir.path().join("broken"), Backend::Leveldb, [datum(vec![1; 12], 3), broken]);
    let e = ImageMean::of(&database, |_| ()).err().unwrap().to_string();
    assert!(e.contains("broken: record 1 (key '000001') has 2 x 2 x 3 = 12 pixels but 1 values"), "{e}");
}
