//! convert_imageset: keys, order, encodings, what is left out, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

mod common;

use common::{jpeg, listen, warned};
use image::{GrayImage, RgbImage};
use lgm_data::convert::{Encoding, ImageFile, ImageSet, ImageSetOptions, convert_imageset};
use lgm_data::db::{Backend, Database, Records};
use lgm_proto::Datum;
use prost::Message;

const PLAIN: ImageSetOptions = ImageSetOptions {
    gray: false,
    shuffle: None,
    backend: Backend::Lmdb,
    size: None,
    check_size: false,
    encoding: Encoding::None,
};

/// Twenty images `N im.png` of 5 x 4 pixels, blue n, label 2 n.
fn images(dir: &Path) -> String {
    (0..20u8)
        .map(|n| {
            RgbImage::from_pixel(4, 5, image::Rgb([1, 2, n])).save(dir.join(format!("{n} im.png"))).unwrap();
            format!("{n} im.png {}\n", 2 * n)
        })
        .collect()
}

fn convert(dir: &Path, list: &str, options: &ImageSetOptions) -> Result<(ImageSet, Vec<(String, Datum)>), String> {
    listen();
    fs::write(dir.join("list.txt"), list).unwrap();
    let out = dir.join("db");
    let _ = fs::remove_dir_all(&out);
    let mut seen = Vec::new();
    let set =
        convert_imageset(&format!("{}/", dir.display()), dir.join("list.txt"), &out, options, &mut |done, all| {
            seen.push((done, all))
        });
    let set = set.map_err(|e| {
        assert!(!out.exists());
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("db")), "{left:?}");
        e.to_string()
    })?;
    let lines = list.lines().count();
    assert_eq!(seen, (1..=lines).map(|n| (n, lines)).collect::<Vec<_>>());
    let mut records = Records::from(Database::open(&out).unwrap(), 0).unwrap();
    let records = records.next(set.written).unwrap();
    let all = records.iter().map(|r| (String::from_utf8(r.key.to_vec()).unwrap(), Datum::decode(r.value).unwrap()));
    Ok((set, all.collect()))
}

#[test]
fn records_have_caffes_keys_and_planes() {
    let dir = tempfile::tempdir().unwrap();
    let list = images(dir.path());
    let (set, records) = convert(dir.path(), &list, &PLAIN).unwrap();
    assert_eq!(set, ImageSet { written: 20, left_out: 0 });
    for (n, (key, datum)) in records.iter().enumerate() {
        assert_eq!(*key, format!("{n:08}_{n} im.png"));
        assert_eq!((datum.channels(), datum.height(), datum.width(), datum.label()), (3, 5, 4, 2 * n as i32));
        assert_eq!(datum.data(), [[n as u8; 20], [2; 20], [1; 20]].concat());
        assert!(!datum.encoded());
    }
    let options = ImageSetOptions { gray: true, size: Some((2, 3)), ..PLAIN };
    let (_, records) = convert(dir.path(), &list, &options).unwrap();
    assert!(records.iter().all(|(_, d)| (d.channels(), d.height(), d.width(), d.data().len()) == (1, 2, 3, 6)));
}

#[test]
fn shuffled_by_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let list = images(dir.path());
    let order = |seed| -> Vec<i32> {
        let options = ImageSetOptions { shuffle: Some(seed), ..PLAIN };
        convert(dir.path(), &list, &options).unwrap().1.iter().map(|(_, d)| d.label()).collect()
    };
    let (one, two) = (order(1), order(2));
    assert_eq!(one, order(1));
    assert_ne!(one, two);
    let mut sorted = one.clone();
    sorted.sort_unstable();
    assert!(sorted != one && sorted == (0..20).map(|n| 2 * n).collect::<Vec<_>>());
}

#[test]
fn files_are_kept_or_made() {
    let dir = tempfile::tempdir().unwrap();
    let list = images(dir.path());
    let own = fs::read(dir.path().join("7 im.png")).unwrap();
    let stored = |options: ImageSetOptions| {
        let datum = convert(dir.path(), &list, &options).unwrap().1.swap_remove(7).1;
        assert!(datum.encoded() && datum.label() == 14);
        datum.data().to_vec()
    };
    assert_eq!(stored(ImageSetOptions { encoding: Encoding::AsNamed, ..PLAIN }), own);
    assert_eq!(stored(ImageSetOptions { encoding: Encoding::As(ImageFile::Png), ..PLAIN }), own);
    let jpeg = stored(ImageSetOptions { encoding: Encoding::As(ImageFile::Jpeg), ..PLAIN });
    assert_eq!(jpeg[..2], [0xff, 0xd8]);
    let bmp = image::load_from_memory(&stored(ImageSetOptions { encoding: Encoding::As(ImageFile::Bmp), ..PLAIN }));
    assert_eq!(bmp.unwrap().into_rgb8().get_pixel(1, 1).0, [1, 2, 7]);
    let small = stored(ImageSetOptions { encoding: Encoding::AsNamed, size: Some((2, 2)), ..PLAIN });
    let small = image::load_from_memory(&small).unwrap();
    assert_eq!((small.width(), small.height()), (2, 2));
    let gray = stored(ImageSetOptions { encoding: Encoding::AsNamed, gray: true, ..PLAIN });
    assert_eq!(image::load_from_memory(&gray).unwrap().color(), image::ColorType::L8);
    GrayImage::from_pixel(3, 3, image::Luma([9])).save(dir.path().join("g.png")).unwrap();
    let options = ImageSetOptions { encoding: Encoding::AsNamed, gray: true, ..PLAIN };
    let kept = convert(dir.path(), "g.png 1\n", &options).unwrap().1.swap_remove(0).1;
    assert_eq!(kept.data(), fs::read(dir.path().join("g.png")).unwrap());
}

#[test]
fn what_cannot_be_read_is_left_out_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    fs::write(dir.path().join("bad.jpg"), "no picture").unwrap();
    let list = "0 im.png 1\nbad.jpg 2\nnone.png 3\n1 im.png 4\n";
    let (set, records) = convert(dir.path(), list, &PLAIN).unwrap();
    assert_eq!(set, ImageSet { written: 2, left_out: 2 });
    let keys: Vec<&str> = records.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, ["00000000_0 im.png", "00000003_1 im.png"]);
}

#[test]
fn mistakes_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    RgbImage::new(6, 5).save(dir.path().join("wide.png")).unwrap();
    fs::copy(dir.path().join("0 im.png"), dir.path().join("nameless")).unwrap();
    let fails = |list: &str, options: ImageSetOptions, what: &str| {
        let e = convert(dir.path(), list, &options).unwrap_err();
        assert!(e.contains(what), "{e}");
    };
    let check = ImageSetOptions { check_size: true, ..PLAIN };
    fails(
        "0 im.png 1\n1 im.png 1\nwide.png 2\n",
        check,
        "line 3: 'wide.png' is 3 x 5 x 6, but the image of line 1 is 3 x 5 x 4",
    );
    fails("none.png 1\n", PLAIN, "list.txt: none of the 1 images can be read");
    fails("none.png 99999999999\n", PLAIN, "line 1: expected a label of 32 bits, found '99999999999'");
    let named = ImageSetOptions { encoding: Encoding::AsNamed, ..PLAIN };
    fails(
        "0 im.png 1\nnameless 1\n",
        named,
        "line 2: the name 'nameless' does not tell how to encode the image; give -encode_type",
    );
    let long = format!("{}0 im.png 1\n", "./".repeat(300));
    fails(&long, PLAIN, "list.txt: line 1: the name makes a key of 617 bytes, and LMDB takes 511");
    fs::create_dir(dir.path().join("there")).unwrap();
    let e = convert_imageset("", dir.path().join("list.txt"), dir.path().join("there"), &PLAIN, &mut |_, _| ());
    assert!(e.unwrap_err().to_string().contains("there"), "a folder that exists");
    fs::write(dir.path().join("list.txt"), "0 im.png 1\n").unwrap();
    let (folder, out) = (dir.path().to_str().unwrap(), dir.path().join("out"));
    let e = convert_imageset(folder, dir.path().join("list.txt"), out, &PLAIN, &mut |_, _| ()).unwrap_err().to_string();
    let hint = format!("the folder '{folder}' needs a slash at its end");
    assert!(e.contains("none of the 1 images can be read; the first: '") && e.contains(&hint), "{e}");
    assert!(warned(folder).iter().any(|text| text.starts_with("Could not open or find") && text.contains(&hint)));
}

#[test]
fn lines_are_read_as_caffe_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    fs::copy(dir.path().join("0 im.png"), dir.path().join("a.png")).unwrap();
    let (set, records) =
        convert(dir.path(), "0 im.png 1.7\n\n1 im.png 3abc\na.png\na.png 2.5\n \na.png\n", &PLAIN).unwrap();
    assert_eq!(set, ImageSet { written: 5, left_out: 0 });
    let found: Vec<_> = records.iter().map(|(key, datum)| (&key[..], datum.label())).collect();
    let names = ["00000000_0 im.png", "00000002_1 im.png", "00000003_a.png", "00000004_a.png", "00000006_a.png"];
    assert_eq!(found, names.into_iter().zip([1, 3, 0, 2, 0]).collect::<Vec<_>>());
    let mut told = warned(dir.path().to_str().unwrap());
    told.sort();
    let want = [
        "line 1: the label '1.7' is taken for 1, as in Caffe (2 more like it)",
        "line 2 names no file and is passed over (1 more like it)",
        "line 4: 'a.png' has no label; 0 is taken, as in Caffe (1 more like it)",
    ];
    assert!(told.len() == 3 && told.iter().zip(want).all(|(told, want)| told.ends_with(want)), "{told:?}");
}

#[test]
fn jpegs_that_are_cut_short_are_used_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = jpeg();
    for (name, lacks) in [("whole.jpg", 0), ("end.jpg", 2), ("cut.jpg", 30), ("other.jpg", 40)] {
        fs::write(dir.path().join(name), &bytes[..bytes.len() - lacks]).unwrap();
    }
    let (set, records) = convert(dir.path(), "whole.jpg 1\nend.jpg 2\ncut.jpg 3\nother.jpg 4\n", &PLAIN).unwrap();
    assert_eq!(set, ImageSet { written: 4, left_out: 0 });
    assert!(records[0].1.data() == records[1].1.data() && records[0].1.data() != records[2].1.data());
    let told = warned(dir.path().to_str().unwrap());
    let want = "line 3: 'cut.jpg' is a JPEG that is cut short: what is missing of it is gray (1 more like it)";
    assert!(told.len() == 1 && told[0].ends_with(want), "{told:?}");
}

#[test]
fn a_picture_is_the_same_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8 * 30, y as u8 * 40, (x * y) as u8]));
    let ends = ["png", "bmp", "ppm", "tif", "webp"];
    ends.iter().for_each(|end| picture.save(dir.path().join(format!("im.{end}"))).unwrap());
    // What a name ends in does not matter.
    fs::copy(dir.path().join("im.tif"), dir.path().join("im.jpg")).unwrap();
    let list: String = ends.iter().chain(&["jpg"]).map(|end| format!("im.{end} 1\n")).collect();
    let encoded = ImageSetOptions { encoding: Encoding::As(ImageFile::Png), ..PLAIN };
    let resized = ImageSetOptions { size: Some((3, 4)), gray: true, ..PLAIN };
    for options in [PLAIN, encoded, resized] {
        let (set, records) = convert(dir.path(), &list, &options).unwrap();
        assert_eq!(set, ImageSet { written: 6, left_out: 0 });
        for (key, datum) in &records[1..] {
            // The file of the kind that is asked for is stored as it is.
            if options.encoding == Encoding::None {
                assert_eq!(datum.data(), records[0].1.data(), "{key}");
            } else {
                let stored = image::load_from_memory(datum.data()).unwrap();
                assert_eq!(stored.into_rgb8(), picture, "{key}");
            }
        }
    }
    let as_named = ImageSetOptions { encoding: Encoding::AsNamed, ..PLAIN };
    let error = convert(dir.path(), "im.webp 1\n", &as_named).unwrap_err();
    assert!(error.contains("the name 'im.webp' does not tell how to encode the image; give -encode_type"), "{error}");
}
