//! HDF5 files: every numeric type, ranges of rows of chunked and contiguous datasets, nested names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use hdf5_metno::{File, H5Type};
use lgm_core::Shape;
use lgm_data::hdf5::{H5File, Values, write_f32};

#[test]
fn datasets_of_every_numeric_type_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("types.h5");
    let file = File::create(&path).unwrap();
    fn put<T: H5Type>(file: &File, name: &str, values: &[T]) {
        file.new_dataset_builder().with_data(values).create(name).unwrap();
    }
    put(&file, "u8", &[0u8, 255]);
    put(&file, "i8", &[-128i8, 127]);
    put(&file, "i16", &[-300i16, 300]);
    put(&file, "u32", &[0u32, 70_000]);
    put(&file, "i64", &[-5i64, 9_000_000]);
    put(&file, "u64", &[5u64, 6]);
    put(&file, "f64", &[0.1f64, -2.5]);
    put(&file, "bool", &[true, false]);
    file.close().unwrap();

    let file = H5File::open(&path).unwrap();
    let read = |name: &str| file.dataset(name).unwrap().read().unwrap();
    assert_eq!(read("u8"), Values::U8(vec![0, 255]));
    assert_eq!(read("i8"), Values::F32(vec![-128.0, 127.0]));
    assert_eq!(read("i16"), Values::F32(vec![-300.0, 300.0]));
    assert_eq!(read("u32"), Values::F32(vec![0.0, 70_000.0]));
    assert_eq!(read("i64"), Values::F32(vec![-5.0, 9_000_000.0]));
    assert_eq!(read("u64"), Values::F32(vec![5.0, 6.0]));
    assert_eq!(read("f64"), Values::F32(vec![0.1, -2.5]));
    assert!(file.dataset("bool").err().unwrap().to_string().contains("types.h5: dataset 'bool': expected integers"));
}

#[test]
fn row_ranges_of_chunked_and_contiguous_datasets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.h5");
    let file = File::create(&path).unwrap();
    let values: Vec<u8> = (0..60).collect();
    file.new_dataset::<u8>().shape([10, 2, 3]).create("plain").unwrap().write_raw(&values).unwrap();
    let packed = file.new_dataset::<u8>().chunk([4, 1, 3]).deflate(4).shape([10, 2, 3]);
    packed.create("packed").unwrap().write_raw(&values).unwrap();
    // Which keeps the file open.
    drop(packed);
    file.close().unwrap();

    let file = H5File::open(&path).unwrap();
    for name in ["plain", "packed"] {
        let d = file.dataset(name).unwrap();
        assert_eq!((d.shape(), d.rows(), d.row_len(), d.row_bytes()), (&Shape::from([10, 2, 3]), 10, 6, 6));
        assert_eq!(d.chunk_rows(), (name == "packed").then_some(4));
        assert_eq!(d.read_rows(3..7).unwrap(), Values::U8(values[18..42].to_vec()));
        assert_eq!(d.read_rows(0..10).unwrap(), Values::U8(values.clone()));
        let e = d.read_rows(8..11).unwrap_err().to_string();
        assert!(e.contains(&format!("dataset '{name}' of shape (10, 2, 3) cannot be read")), "{e}");
    }
}

#[test]
fn writing_replaces_the_file_whole_and_nests_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.h5");
    write_f32(&path, &[("old", &Shape::from([1]), &[1.0])]).unwrap();
    let shape = Shape::from([2, 2]);
    write_f32(&path, &[("data/conv/0", &shape, &[1.0, 2.0, 3.0, 4.0]), ("a", &Shape::from([1]), &[9.0])]).unwrap();
    let file = H5File::open(&path).unwrap();
    assert_eq!(file.datasets().unwrap(), ["a", "data/conv/0"]);
    let d = file.dataset("data/conv/0").unwrap();
    assert_eq!((d.shape(), d.read().unwrap().into_f32()), (&shape, vec![1.0, 2.0, 3.0, 4.0]));

    let before = fs::read(&path).unwrap();
    let e = write_f32(&path, &[("x", &shape, &[1.0])]).unwrap_err().to_string();
    assert!(e.contains("dataset 'x' of shape (2, 2) takes 4 values, got 1"), "{e}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_is_not_hdf5_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    assert!(H5File::open(&path).err().unwrap().to_string().contains("x.h5: cannot open"));
    fs::write(&path, "text").unwrap();
    assert!(H5File::open(&path).err().unwrap().to_string().contains("cannot be read as an HDF5 file"));
    write_f32(&path, &[]).unwrap();
    let e = H5File::open(&path).unwrap().dataset("data").err().unwrap().to_string();
    assert!(e.contains("no dataset named 'data' (datasets found: none)"), "{e}");
}
