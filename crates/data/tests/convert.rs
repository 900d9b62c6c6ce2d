//! Converters: what they write, and what they refuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use lgm_core::Shape;
use lgm_core::rng::{Philox, stream_id};
use lgm_data::convert::{
    CifarOptions, Format, convert_cifar, convert_cifar_data, convert_mnist, convert_mnist_siamese,
};
use lgm_data::db::{Backend, Database, Record, Records};
use lgm_data::hdf5::{H5File, Values};
use lgm_proto::Datum;
use prost::Message;

/// An idx file: magic number, extents, values.
fn idx(magic: u32, extents: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    extents.iter().for_each(|e| bytes.extend(e.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_files_become_lmdb_and_hdf5_compressed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..600 * 6).map(|i| (i % 251) as u8).collect();
    let labels: Vec<u8> = (0..600).map(|i| (i % 10) as u8).collect();
    let images = put(dir.path(), "images.gz", &gzip(&idx(2051, &[600, 2, 3], &pixels)));
    let labels_file = put(dir.path(), "labels", &idx(2049, &[600], &labels));

    let mut calls = Vec::new();
    let db = dir.path().join("db");
    let n = convert_mnist(&images, &labels_file, &db, Format::Lmdb, &mut |done, all| calls.push((done, all)));
    assert_eq!(n.unwrap(), 600);
    assert_eq!(calls, [(256, 600), (512, 600), (600, 600)]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions();
    assert_eq!(mode(db.join("data.mdb")), mode(labels_file.clone()), "a database that others cannot read");
    let lmdb = Database::open(&db).unwrap();
    assert_eq!(lmdb.count().unwrap(), 600);
    let mut records = Records::from(lmdb, 0).unwrap();
    for (i, &Record { index, value, .. }) in records.next(600).unwrap().iter().enumerate() {
        assert_eq!(index, i as u64);
        let want = Datum {
            channels: Some(1),
            height: Some(2),
            width: Some(3),
            data: Some(pixels[6 * i..6 * i + 6].to_vec()),
            label: Some(i32::from(labels[i])),
            ..Default::default()
        };
        assert_eq!(value, want.encode_to_vec());
    }

    let h5 = dir.path().join("out.h5");
    assert_eq!(convert_mnist(&images, &labels_file, &h5, Format::Hdf5, &mut |_, _| ()).unwrap(), 600);
    let file = H5File::open(&h5).unwrap();
    let data = file.dataset("data").unwrap();
    assert_eq!(data.shape(), &Shape::from([600, 1, 2, 3]));
    assert_eq!(data.read().unwrap(), Values::F32(pixels.iter().map(|&v| f32::from(v)).collect()));
    let label = file.dataset("label").unwrap();
    assert_eq!(label.shape(), &Shape::from([600]));
    assert_eq!(label.read().unwrap(), Values::F32(labels.iter().map(|&v| f32::from(v)).collect()));
}

#[test]
fn damaged_idx_files_are_described_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = |n: u32| idx(2051, &[n, 1, 2], &vec![1; 2 * n as usize]);
    let fails = |images: &[u8], labels: &[u8], what: &str| {
        let (i, l) = (put(dir.path(), "i", images), put(dir.path(), "l", labels));
        for format in [Format::Lmdb, Format::Leveldb, Format::Hdf5] {
            let e = convert_mnist(&i, &l, dir.path().join("out"), format, &mut |_, _| ()).unwrap_err().to_string();
            assert!(e.contains(what), "expected '{what}' in: {e}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    };
    let labels = idx(2049, &[2], &[0, 1]);
    fails(
        &idx(2050, &[2, 1, 2], &[0; 4]),
        &labels,
        "expected images in MNIST's format (idx), which begin with the number 2051, found 2050",
    );
    let swapped =
        "expected labels in MNIST's format (idx), found images in MNIST's format (idx): convert-mnist takes it";
    fails(&good(2), &good(2), swapped);
    fails(&labels, &labels, "found labels in MNIST's format (idx): convert-mnist takes it, behind the images");
    fails(b"layer { name: 'a' }", &labels, "found a net's prototxt: -model takes it");
    fails(&gzip(b"<!DOCTYPE html>"), &labels, "found a web page: a download that failed");
    fails(b"\x80\x02}.", &labels, "found a Python pickle: convert-cifar takes the folder it is in");
    fails(b"\x89HDF\r\n\x1a\n\0", &labels, "found an HDF5 file");
    fails(&[], &labels, "found an empty file");
    fails(&[0, 1], &labels, "found only 2 bytes");
    // Compressed, a claim that no memory holds.
    fails(&gzip(&idx(2051, &[u32::MAX, u32::MAX, 1], &[])), &labels, "but there are only");
    fails(&idx(2051, &[2, 1, 2], &[0; 3]), &labels, "is cut short: its header [2, 1, 2] needs 4 bytes, found 3");
    fails(&idx(2051, &[2], &[]), &labels, "the header is not whole");
    fails(
        &idx(2051, &[u32::MAX; 3], &[]),
        &labels,
        "the values that its header [4294967295, 4294967295, 4294967295] announces",
    );
    fails(&good(3), &labels, "holds 2 labels for the 3 images");
    fails(&good(0), &idx(2049, &[0], &[]), "holds 0 images");
    fails(&gzip(&good(2))[..20], &labels, "cannot read");

    let (i, l) = (put(dir.path(), "i", &good(2)), put(dir.path(), "l", &labels));
    fs::create_dir(dir.path().join("db")).unwrap();
    let e = convert_mnist(&i, &l, dir.path().join("db"), Format::Lmdb, &mut |_, _| ()).unwrap_err().to_string();
    assert!(e.contains("already exists"), "{e}");
    let e = convert_mnist(dir.path().join("x"), &l, "out", Format::Hdf5, &mut |_, _| ()).unwrap_err().to_string();
    assert!(e.contains("cannot open"), "{e}");
}

/// The kind of a database, and its keys and values.
fn contents(path: &Path) -> (Backend, Vec<(String, Datum)>) {
    let database = Database::open(path).unwrap();
    let backend = database.backend();
    let mut records = Records::from(database, 0).unwrap();
    let found = records.next_to_end(10_000).unwrap();
    let record = |r: &Record<'_>| (String::from_utf8(r.key.to_vec()).unwrap(), Datum::decode(r.value).unwrap());
    (backend, found.iter().map(record).collect())
}

fn datum([channels, height, width]: [i32; 3], data: Vec<u8>, label: i32) -> Datum {
    let (channels, height, width) = (Some(channels), Some(height), Some(width));
    Datum { channels, height, width, data: Some(data), label: Some(label), ..Default::default() }
}

#[test]
fn mnist_becomes_pairs_that_a_seed_draws() {
    let dir = tempfile::tempdir().unwrap();
    let image = |n: usize| (0..6).map(|p| (n * 6 + p) as u8).collect::<Vec<u8>>();
    let label = |n: usize| (n % 3) as u8;
    let images = put(dir.path(), "i", &idx(2051, &[40, 2, 3], &(0..40).flat_map(image).collect::<Vec<_>>()));
    let labels = put(dir.path(), "l.gz", &gzip(&idx(2049, &[40], &(0..40).map(label).collect::<Vec<_>>())));
    let pairs = |name: &str, backend, seed| {
        let (out, mut calls) = (dir.path().join(name), Vec::new());
        let n = convert_mnist_siamese(&images, &labels, &out, backend, seed, &mut |d, n| calls.push((d, n))).unwrap();
        assert_eq!((n, &calls[..]), (40, &[(40, 40)][..]));
        let (found, pairs) = contents(&out);
        assert_eq!(found, backend);
        pairs
    };
    let first = pairs("a", Backend::Leveldb, 1);
    let mut draws = Philox::new(1, stream_id("convert_mnist_siamese_data", "pairs")).from(0);
    for (i, (key, found)) in first.iter().enumerate() {
        let (a, b) = (draws.below(40), draws.below(40));
        let want = datum([2, 2, 3], [image(a), image(b)].concat(), i32::from(label(a) == label(b)));
        assert_eq!((key, found), (&format!("{i:08}"), &want));
    }
    let same = first.iter().filter(|(_, datum)| datum.label() == 1).count();
    assert!((5..25).contains(&same), "{same} of 40 pairs are of one of three classes");
    assert_eq!(first, pairs("b", Backend::Lmdb, 1));
    assert_ne!(first, pairs("c", Backend::Leveldb, 2));

    let fails = |images: &Path, out: &str, what: &str| {
        let out = dir.path().join(out);
        let e = convert_mnist_siamese(images, &labels, out, Backend::Leveldb, 1, &mut |_, _| ()).unwrap_err();
        assert!(e.to_string().contains(what), "expected '{what}' in: {e}");
        assert!(!dir.path().join("new").exists());
    };
    fails(&images, "a", "a: already exists");
    fails(&dir.path().join("gone"), "new", "gone: cannot open");
    fails(&labels, "new", "expected images in MNIST's format (idx), found labels");
    fails(&put(dir.path(), "3", &idx(2051, &[3, 1, 1], &[0; 3])), "new", "holds 40 labels for the 3 images");
}

#[test]
fn cifar_becomes_a_database_of_each_split() {
    let dir = tempfile::tempdir().unwrap();
    let (ten, hundred) = (dir.path().join("ten"), dir.path().join("hundred"));
    [&ten, &hundred].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let record = |heads: &[u8], n| [heads, &cifar_image(n)].concat();
    for b in 0..5 {
        let batch = [record(&[b as u8], 2 * b), record(&[9 - b as u8], 2 * b + 1)].concat();
        put(&ten, &format!("data_batch_{}.bin", b + 1), &batch);
    }
    put(&ten, "test_batch.bin", &record(&[7], 100));
    put(&hundred, "train.bin", &[record(&[3, 99], 0), record(&[19, 0], 1)].concat());
    put(&hundred, "test.bin", &record(&[4, 42], 100));

    let out = dir.path().join("new/out");
    let check = |input: &Path, backend, coarse: bool, names: [&str; 2], train: &[i32], test: &[i32]| {
        let mut calls = Vec::new();
        let made = convert_cifar_data(input, &out, backend, coarse, &mut |d, n| calls.push((d, n))).unwrap();
        assert_eq!(calls, [(train.len(), train.len()), (test.len(), test.len())]);
        for ((made, name), (labels, first)) in made.iter().zip(names).zip([(train, 0), (test, 100)]) {
            assert_eq!((made.folder.clone(), made.images), (out.join(name), labels.len()));
            let want = labels
                .iter()
                .enumerate()
                .map(|(i, &label)| (format!("{i:05}"), datum([3, 32, 32], cifar_image(first + i), label)));
            assert_eq!(contents(&made.folder), (backend, want.collect()));
        }
    };
    let train = [0, 9, 1, 8, 2, 7, 3, 6, 4, 5];
    check(&ten, Backend::Lmdb, false, ["cifar10_train_lmdb", "cifar10_test_lmdb"], &train, &[7]);
    check(&ten, Backend::Leveldb, false, ["cifar10_train_leveldb", "cifar10_test_leveldb"], &train, &[7]);
    let names = ["cifar100_train_lmdb", "cifar100_test_lmdb"];
    check(&hundred, Backend::Lmdb, false, names, &[99, 0], &[42]);
    let names = ["cifar100_train_leveldb", "cifar100_test_leveldb"];
    check(&hundred, Backend::Leveldb, true, names, &[3, 19], &[4]);

    let fails = |input: &Path, coarse: bool, what: &str| {
        let e = convert_cifar_data(input, &out, Backend::Lmdb, coarse, &mut |_, _| ()).unwrap_err().to_string();
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    fails(&ten, true, "only CIFAR-100 has coarse labels");
    fails(&dir.path().join("gone"), false, "gone: cannot open");
    // The training images have no database left, because the test images' is there already.
    fs::remove_dir_all(out.join("cifar10_train_lmdb")).unwrap();
    fails(&ten, false, "cifar10_test_lmdb: already exists");
    fs::remove_dir_all(out.join("cifar10_test_lmdb")).unwrap();
    put(&ten, "test_batch.bin", &record(&[7], 100)[1..]);
    fails(&ten, false, "test_batch.bin: is damaged: 3072 bytes are not a number of records of 3073 bytes");
    fs::remove_file(ten.join("data_batch_4.bin")).unwrap();
    fails(&ten, false, "data_batch_4.bin: cannot read");
    let folders = dir.path().join("folders");
    fs::create_dir_all(folders.join("train")).unwrap();
    fails(&folders, false, "holds folders of images, of which convert_imageset makes a database");
    let mut left: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(
        left,
        ["cifar100_test_leveldb", "cifar100_test_lmdb", "cifar100_train_leveldb", "cifar100_train_lmdb"]
            .into_iter()
            .chain(["cifar10_test_leveldb", "cifar10_train_leveldb"])
            .collect::<Vec<_>>()
    );
}

/// Caffe's converter read the same images from the files they were published in.
#[test]
fn mnist_to_lmdb_writes_what_caffe_s_converter_wrote() {
    let records = |path: &Path| {
        let mut records = Records::from(Database::open(path).unwrap(), 0).unwrap();
        records.next(200).unwrap().into_iter().map(|r| r.value.to_vec()).collect::<Vec<_>>()
    };
    let theirs = records(&common::golden("db/mnist_200_lmdb"));
    let data: Vec<Datum> = theirs.iter().map(|record| Datum::decode(&record[..]).unwrap()).collect();
    let pixels: Vec<u8> = data.iter().flat_map(|datum| datum.data().to_vec()).collect();
    let labels: Vec<u8> = data.iter().map(|datum| datum.label() as u8).collect();
    let dir = tempfile::tempdir().unwrap();
    let images = put(dir.path(), "images", &idx(2051, &[200, 28, 28], &pixels));
    let labels = put(dir.path(), "labels", &idx(2049, &[200], &labels));
    convert_mnist(images, labels, dir.path().join("db"), Format::Lmdb, &mut |_, _| ()).unwrap();
    let ours = records(&dir.path().join("db"));
    let differ: Vec<usize> = (0..200).filter(|&i| ours[i] != theirs[i]).collect();
    assert!(differ.is_empty(), "records {differ:?} differ");
}

/// Pixel values that differ by image, channel, row and column.
fn cifar_image(n: usize) -> Vec<u8> {
    (0..3072).map(|p| (p / 7 + n * 31) as u8).collect()
}

const OPTIONS: CifarOptions = CifarOptions { pad: 2, coarse: false };

fn check_cifar(out: &Path, train_labels: &[f32], test_labels: &[f32]) {
    for (name, pad, labels, first) in [("train", 2, train_labels, 0), ("test", 0, test_labels, 100)] {
        let listed = fs::read_to_string(out.join(format!("{name}.txt"))).unwrap();
        assert_eq!(Path::new(listed.trim()), out.canonicalize().unwrap().join(format!("{name}.h5")));
        let file = H5File::open(listed.trim()).unwrap();
        let side = 32 + 2 * pad;
        let data = file.dataset("data").unwrap();
        assert_eq!(data.shape(), &Shape::from([labels.len(), 3, side, side]));
        let Values::U8(data) = data.read().unwrap() else { panic!("not 8-bit") };
        for (n, image) in data.chunks(3 * side * side).enumerate() {
            let raw = cifar_image(first + n);
            for (i, &v) in image.iter().enumerate() {
                let (c, y, x) = (i / side / side, i / side % side, i % side);
                let inside = (pad..pad + 32).contains(&y) && (pad..pad + 32).contains(&x);
                let want = if inside { raw[(c * 32 + y - pad) * 32 + x - pad] } else { 0 };
                assert_eq!(v, want, "{name} image {n} channel {c} at {y}, {x}");
            }
        }
        assert_eq!(file.dataset("label").unwrap().read().unwrap().into_f32(), labels);
    }
}

#[test]
fn cifar_in_binary_form() {
    let dir = tempfile::tempdir().unwrap();
    let ten = dir.path().join("ten/cifar-10-batches-bin");
    fs::create_dir_all(&ten).unwrap();
    let record = |heads: &[u8], n| [heads, &cifar_image(n)].concat();
    for b in 0..5 {
        put(&ten, &format!("data_batch_{}.bin", b + 1), &record(&[b as u8], b));
    }
    put(&ten, "test_batch.bin", &[record(&[7], 100), record(&[9], 101)].concat());
    let out = dir.path().join("out10");
    let mut calls = Vec::new();
    let splits = convert_cifar(dir.path().join("ten"), &out, OPTIONS, &mut |d, n| calls.push((d, n))).unwrap();
    assert_eq!(splits.map(|s| (s.images, s.classes)), [(5, 5), (2, 10)]);
    assert_eq!(calls, [(5, 5), (2, 2)]);
    check_cifar(&out, &[0.0, 1.0, 2.0, 3.0, 4.0], &[7.0, 9.0]);

    let hundred = dir.path().join("hundred");
    fs::create_dir_all(&hundred).unwrap();
    put(&hundred, "train.bin", &record(&[3, 99], 0));
    put(&hundred, "test.bin", &record(&[4, 42], 100));
    for (coarse, train, test) in [(false, 99.0, 42.0), (true, 3.0, 4.0)] {
        let out = dir.path().join(format!("out100{coarse}"));
        convert_cifar(&hundred, &out, CifarOptions { coarse, ..OPTIONS }, &mut |_, _| ()).unwrap();
        check_cifar(&out, &[train], &[test]);
    }
}

#[test]
fn folders_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let save = |path: &str, n: usize| {
        let planes = cifar_image(n);
        let rgb: Vec<u8> = (0..1024).flat_map(|p| [planes[p], planes[1024 + p], planes[2048 + p]]).collect();
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_raw(32, 32, rgb).unwrap().save(path).unwrap();
    };
    save("in/train/ant/a.png", 0);
    save("in/train/ant/b.PNG", 1);
    save("in/train/bee/a.png", 2);
    save("in/val/ant/a.png", 100);
    save("in/val/bee/a.png", 101);
    put(&dir.path().join("in/train/bee"), "notes.txt", b"not an image");
    let out = dir.path().join("out");
    let convert = || convert_cifar(dir.path().join("in"), &out, OPTIONS, &mut |_, _| ());
    convert().unwrap();
    check_cifar(&out, &[0.0, 0.0, 1.0], &[0.0, 1.0]);

    let fails = |what: &str| {
        let e = convert().unwrap_err().to_string();
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    save("in/val/cow/a.png", 5);
    fails("has the classes [\"ant\", \"bee\", \"cow\"], but train/ has [\"ant\", \"bee\"]");
    fs::remove_dir_all(dir.path().join("in/val")).unwrap();
    fails("neither test/ nor val/");
    image::RgbImage::new(8, 9).save(dir.path().join("in/train/bee/z.png")).unwrap();
    fails("z.png: is 9 x 8 pixels, but the first image is 32 x 32");
    put(&dir.path().join("in/train/bee"), "z.png", b"junk");
    fails("z.png: cannot be decoded");
    put(&dir.path().join("in/train/bee"), "z.png", b"version https://git-lfs.github.com/spec/v1");
    fails(
        "z.png: expected a picture (JPEG, PNG, BMP, TIFF, WebP and PPM, PGM or PBM), found a Git LFS pointer: 'git lfs pull' gets the file itself",
    );
    // The failures left the earlier, whole files.
    check_cifar(&out, &[0.0, 0.0, 1.0], &[0.0, 1.0]);
}

#[test]
fn what_is_no_dataset_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let convert = |options| convert_cifar(&input, dir.path().join("out"), options, &mut |_, _| ());
    let fails = |what: &str| {
        let e = convert(OPTIONS).unwrap_err().to_string();
        assert!(e.contains(what), "expected '{what}' in: {e}");
    };
    fails("in: cannot open");
    fs::create_dir(&input).unwrap();
    fails("holds no dataset: expected CIFAR-10 or CIFAR-100");
    let packed = dir.path().join("cifar.tar.gz");
    fs::write(&packed, b"\x1f\x8b\x08\0").unwrap();
    let e = convert_cifar(&packed, dir.path().join("out"), OPTIONS, &mut |_, _| ()).unwrap_err().to_string();
    assert!(e.ends_with("cifar.tar.gz: expected a folder, found an archive (gzip): unpack it"), "{e}");
    let labels = put(dir.path(), "labels", &idx(2049, &[2], &[0, 1]));
    let e = convert_cifar(&labels, dir.path().join("out"), OPTIONS, &mut |_, _| ()).unwrap_err().to_string();
    assert!(e.contains("expected a folder, found labels in MNIST's format (idx): convert-mnist takes it"), "{e}");
    fs::create_dir(input.join("train")).unwrap();
    fails("holds no images: expected a folder for each class");
    put(&input, "train.bin", &[0; 100]);
    fails("100 bytes are not a number of records of 3074 bytes");
    put(&input, "train.bin", b"<!DOCTYPE html><html></html>");
    fails("train.bin: expected a batch of CIFAR's binary version, found a web page: a download that failed");
    put(&input, "data_batch_1.bin", &vec![0; 3073]);
    fails("data_batch_2.bin: cannot read");
    let e = convert(CifarOptions { coarse: true, ..OPTIONS }).unwrap_err().to_string();
    assert!(e.contains("only CIFAR-100 has coarse labels"), "{e}");
}
