//! AnnotatedData and convert_annoset: a list of images and annotations, its database, and the batches of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{begins_anew, cx, error, jpeg, open, resumes_exactly, warned};
use lgm_core::{Phase, Shape, State};
use lgm_data::convert::{AnnosetOptions, AnnotationFile, Annotations, ClassNames, convert_annoset, get_image_size};
use lgm_data::db::{Backend, Database, Records, Writer};
use lgm_proto::{AnnotatedDatum, Datum, LayerParameter};
use lgm_testkit::says;
use prost::Message;

/// Three images of 8 × 10, image i of the colour (i, 2i, 100 + i) but for a white corner, with i objects; and a list.
fn images(folder: &Path) {
    for i in 0..3u8 {
        let mut image = image::RgbImage::from_pixel(10, 8, image::Rgb([i, 2 * i, 100 + i]));
        image.put_pixel(0, 0, image::Rgb([255; 3]));
        image.save(folder.join(format!("{i} .png"))).unwrap();
        let object = |k: u8| {
            format!(
                "<object><name>{}</name><difficult>{k}</difficult><bndbox><xmin>{k}</xmin><ymin>0</ymin><xmax>5</xmax><ymax>4</ymax></bndbox></object>",
                ["cat", "dog"][usize::from(k)]
            )
        };
        let objects: String = (0..i).map(object).collect();
        fs::write(folder.join(format!("{i}.xml")), format!("<annotation>{objects}</annotation>")).unwrap();
    }
    fs::write(folder.join("list.txt"), "0 .png 0.xml\n\n1 .png 1.xml\n2 .png 2.xml\nnone.png 2.xml\n").unwrap();
    fs::write(folder.join("map"), "item { name: 'cat' label: 4 } item { name: 'dog' label: 2 }").unwrap();
}

fn names(folder: &Path) -> ClassNames {
    ClassNames::read(folder.join("map"), true).unwrap()
}

fn converted(folder: &Path, change: impl FnOnce(AnnosetOptions) -> AnnosetOptions) -> String {
    let out = folder.join("lmdb");
    let _ = fs::remove_dir_all(&out);
    let options = change(AnnosetOptions::new(Annotations::Objects(AnnotationFile::Xml, names(folder))));
    let counts = convert_annoset(folder, folder.join("list.txt"), &out, &options, &mut |_, _| {}).unwrap();
    assert_eq!(counts, (3, 1));
    out.to_str().unwrap().into()
}

fn layer(source: &str, batch: usize, more: &str) -> LayerParameter {
    let text = format!(
        "layer {{ name: 'd' type: 'AnnotatedData' top: 'data' top: 'label' data_param {{ source: '{source}' batch_size: {batch} }} {more} }}"
    );
    lgm_testkit::parse_layer(&text).unwrap()
}

fn rows(label: &[f32]) -> Vec<Vec<f32>> {
    label.chunks(8).map(<[f32]>::to_vec).collect()
}

/// The first row, in double precision.
fn row(label: &[f32]) -> Vec<f64> {
    label[..8].iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn images_and_their_objects() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    for encoded in [false, true] {
        let source = converted(folder.path(), |o| AnnosetOptions { encoded, ..o });
        let mut run = open(&layer(&source, 2, ""), &cx(Phase::Test, 1)).unwrap();
        assert_eq!(run.shapes, [Shape::from([2, 3, 8, 10]), Shape::from([1, 1, 4, 8])]);
        let [first, second] = [run.next(), run.next()];
        // Blue, green, red planes.
        assert_eq!((first[0][0], first[0][1], first[0][81], first[0][161]), (255.0, 100.0, 0.0, 0.0));
        assert_eq!((first[0][241], first[0][321], first[0][401]), (101.0, 2.0, 1.0));
        let none = vec![-1.0; 8];
        let cat = |image: f32| vec![image, 4.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0];
        assert_eq!(rows(&first[1]), [cat(1.0), none.clone(), none.clone(), none.clone()]);
        assert_eq!(rows(&second[1]), [cat(0.0), vec![0.0, 2.0, 0.0, 0.1, 0.0, 0.5, 0.5, 1.0], none.clone(), none]);
    }
    let resized = converted(folder.path(), |o| AnnosetOptions { size: [4, 5], check_size: true, gray: true, ..o });
    let mut run = open(&layer(&resized, 1, ""), &cx(Phase::Test, 1)).unwrap();
    assert_eq!(run.shapes[0], Shape::from([1, 1, 4, 5]));
    // 0.299 of red 1, 0.587 of green 2 and 0.114 of blue 101.
    assert_eq!(run.collect(0, 2)[21], 13.0);
}

#[test]
fn objects_go_with_their_image() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let source = converted(folder.path(), |o| o);
    let of = |more: &str, phase: Phase| {
        let mut run = open(&layer(&source, 3, more), &cx(phase, 5)).unwrap();
        (run.shapes[0].clone(), run.next())
    };
    let (shape, padded) = of(
        "transform_param { resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 20 width: 20 pad_value: 7 } mean_value: 7 }",
        Phase::Test,
    );
    assert_eq!((shape, padded[0][0]), (Shape::from([3, 3, 20, 20]), 0.0));
    lgm_testkit::assert_close("padded", &row(&padded[1]), &[1.0, 4.0, 0.0, 0.0, 0.1, 0.5, 0.5, 0.0], 1e-6);
    // The middle of 8 × 10 shows columns 1 to 8 of rows 0 to 7.
    let (_, cropped) = of("transform_param { crop_size: 8 }", Phase::Test);
    lgm_testkit::assert_close("cropped", &row(&cropped[1]), &[1.0, 4.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0], 1e-6);
    let (_, inverted) = of("transform_param { noise_param { inverse: true } }", Phase::Test);
    assert_eq!((inverted[0][0], inverted[0][1]), (0.0, 155.0));
    for seed in 0..20 {
        let all = "transform_param { mirror: true expand_param { max_expand_ratio: 2 } distort_param { brightness_prob: 1 brightness_delta: 9 }
                     resize_param { height: 16 width: 16 interp_mode: NEAREST interp_mode: AREA interp_mode: CUBIC } emit_constraint { emit_type: CENTER }
                     noise_param { gauss_blur: true jpeg: 80 saltpepper: true saltpepper_param { fraction: 0.2 value: 9 } } }
                   annotated_data_param { batch_sampler { max_sample: 1 sampler { min_scale: 0.5 } sample_constraint { min_jaccard_overlap: 0.2 } } }";
        let mut run = open(&layer(&source, 3, all), &cx(Phase::Train, seed)).unwrap();
        let batch = run.next();
        assert!(batch[0].iter().all(|v| (0.0..=255.0).contains(v)));
        for row in rows(&batch[1]).iter().filter(|row| row[0] >= 0.0) {
            let [x1, y1, x2, y2] = [row[3], row[4], row[5], row[6]];
            assert!(0.0 <= x1 && x1 < x2 && x2 <= 1.0 && 0.0 <= y1 && y1 < y2 && y2 <= 1.0, "{row:?}");
        }
    }
    let mirrored = (0..20).filter(|&seed| {
        let mut run = open(&layer(&source, 2, "transform_param { mirror: true }"), &cx(Phase::Train, seed)).unwrap();
        let batch = run.next();
        let (corner, row) = (batch[0][240 + 9] == 255.0, rows(&batch[1])[0].clone());
        assert_eq!((row[3], row[5]), if corner { (0.5, 1.0) } else { (0.0, 0.5) });
        corner
    });
    assert!((3..17).contains(&mirrored.count()));
}

#[test]
fn runs_resume_exactly() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let source = converted(folder.path(), |o| o);
    let more = "transform_param { mirror: true expand_param { max_expand_ratio: 2 } resize_param { height: 16 width: 16 }
                  noise_param { saltpepper: true saltpepper_param { fraction: 0.2 value: 9 } }
                  distort_param { hue_prob: 1 hue_delta: 9 } } annotated_data_param { batch_sampler { sampler { min_scale: 0.3 } } }";
    let make = || open(&layer(&source, 20, more), &cx(Phase::Train, 3)).unwrap();
    resumes_exactly(&make, 6);
    let behind = |state: &mut State| state.extend([("record".to_string(), 3.0)]);
    begins_anew(&make, "AnnotatedData 'd'", &behind, "lmdb: the saved position is record 3 of 3");
}

#[test]
fn records_with_a_flaw_are_used_and_the_first_of_each_kind_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let (whole, extents) = (jpeg(), (Some(3), Some(37), Some(53)));
    let mut writer = Writer::create(&path, Backend::Leveldb).unwrap();
    for (i, lacks) in [None, Some(0), Some(30), None, Some(40)].into_iter().enumerate() {
        let datum = match lacks {
            Some(lacks) => {
                Datum { data: Some(whole[..whole.len() - lacks].to_vec()), encoded: Some(true), ..Default::default() }
            }
            None => {
                let (channels, height, width) = extents;
                Datum { channels, height, width, data: Some(vec![7; 3 * 37 * 53 + i + 1]), ..Default::default() }
            }
        };
        let record = AnnotatedDatum { datum: Some(datum), ..Default::default() };
        writer.put(&[b'0' + i as u8], record.encode_to_vec()).unwrap();
    }
    writer.finish().unwrap();
    let mut run = open(&layer(path.to_str().unwrap(), 5, ""), &cx(Phase::Train, 1)).unwrap();
    let images = run.next().swap_remove(0);
    let images: Vec<&[f32]> = images.chunks(3 * 37 * 53).collect();
    assert!(images[0].iter().chain(images[3]).all(|&v| v == 7.0) && images[1][..53] == images[2][..53]);
    run.next();
    let told = warned(path.to_str().unwrap());
    let want = [
        "record 0 (key '0') has 3 x 37 x 53 = 5883 pixels but 5884 values",
        "record 2 (key '2') is a JPEG that is cut",
    ];
    assert!(told.len() == 2 && told.iter().zip(want).all(|(told, want)| told.contains(want)), "{told:?}");
}

/// A file in a kind's other spelling is kept, names that begin with a slash lie in the root, and XML may be in Latin-1 and
/// have a DOCTYPE.
#[test]
fn files_are_taken_as_scripts_for_ssd_name_and_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("a.JPEG", &jpeg());
    let object = "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>4</ymax></bndbox>";
    let xml =
        "<?xml version='1.0' encoding='ISO-8859-1'?><!DOCTYPE annotation><annotation><object><name>caf\u{e9}</name>";
    let latin = |text: String| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
    write("a.xml", &latin(format!("{xml}{object}</object></annotation>")));
    write("map", &latin("item { name: 'caf\u{e9}' label: 4 }".into()));
    write("list.txt", b"/a.JPEG /a.xml\n");
    let out = folder.path().join("lmdb");
    let of = Annotations::Objects(AnnotationFile::Xml, names(folder.path()));
    let options = AnnosetOptions { encoded: true, encode_type: Some("jpg".into()), ..AnnosetOptions::new(of) };
    let counts = convert_annoset(folder.path(), folder.path().join("list.txt"), &out, &options, &mut |_, _| {});
    assert_eq!(counts.unwrap(), (1, 0));
    let mut records = Records::from(Database::open(&out).unwrap(), 0).unwrap();
    let record = AnnotatedDatum::decode(records.next(1).unwrap()[0].value).unwrap();
    assert!(record.datum.unwrap().data() == jpeg(), "not encoded anew");
    let groups: Vec<_> = record.annotation_group.iter().map(|group| group.group_label()).collect();
    assert_eq!(groups, [4]);
}

#[test]
fn lists_of_labels() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    fs::write(folder.path().join("labels.txt"), "0 .png 5\n2 .png 6\n").unwrap();
    let out = folder.path().join("labels_lmdb");
    let list = folder.path().join("labels.txt");
    let shuffled = AnnosetOptions {
        shuffle: Some(1),
        encode_type: Some("png".into()),
        ..AnnosetOptions::new(Annotations::Labels)
    };
    assert_eq!(convert_annoset(folder.path(), &list, &out, &shuffled, &mut |_, _| {}).unwrap(), (2, 0));
    let mut run = open(&layer(out.to_str().unwrap(), 2, ""), &cx(Phase::Test, 1)).unwrap();
    assert_eq!(run.shapes[1], Shape::from([2]));
    let mut labels = run.next().swap_remove(1);
    labels.sort_by(f32::total_cmp);
    assert_eq!(labels, [5.0, 6.0]);
    let mut records = Records::from(Database::open(&out).unwrap(), 0).unwrap();
    let keys: Vec<String> = records.next(2).unwrap().iter().map(|r| String::from_utf8_lossy(r.key).into()).collect();
    assert!(
        keys[0].starts_with("00000000_") && keys[1].starts_with("00000001_") && keys[0].ends_with(" .png"),
        "{keys:?}"
    );
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path);
    let source = converted(path, |o| o);
    let fails = |more: &str, needles: &[&str]| says(&error(&layer(&source, 1, more), &cx(Phase::Train, 1)), needles);
    fails("annotated_data_param { anno_type: LANE }", &["anno_type", "BBOX", "LANE"]);
    fails("transform_param { crop_size: 9 }", &["record 0", "8 x 10", "crop_size 9"]);
    fails(
        "transform_param { resize_param { height: 3 width: 3 } resize_param { height: 3 width: 3 } }",
        &["resize_param", "2 times"],
    );
    fails("transform_param { noise_param { } noise_param { } }", &["noise_param", "2 times"]);
    fails("transform_param { noise_param { convert_to_lab: true } }", &["convert_to_lab"]);
    fails("transform_param { expand_param { max_expand_ratio: 2 } mean_file: 'x' }", &["expand_param", "mean_value"]);
    fails("annotated_data_param { batch_sampler { sampler { max_scale: 2 } } }", &["max_scale", "1 to 2"]);
    says(&error(&layer("", 1, ""), &cx(Phase::Train, 1)), &["source"]);
    says(&error(&layer(&source, 0, ""), &cx(Phase::Train, 1)), &["batch_size"]);
    let data = lgm_testkit::parse_layer(&format!(
        "layer {{ name: 'd' type: 'Data' top: 'x' data_param {{ source: '{source}' batch_size: 1 }} transform_param {{ expand_param {{ prob: 1 }} }} }}"
    ));
    says(&error(&data.unwrap(), &cx(Phase::Train, 1)), &["record 0"]);

    let objects = || AnnosetOptions::new(Annotations::Objects(AnnotationFile::Xml, names(path)));
    let convert = |list: &str, options: &AnnosetOptions, needles: &[&str]| {
        fs::write(path.join("bad.txt"), list).unwrap();
        let result = convert_annoset(path, path.join("bad.txt"), path.join("bad_lmdb"), options, &mut |_, _| {});
        says(&result.unwrap_err().to_string(), needles);
        assert!(!path.join("bad_lmdb").exists());
    };
    convert("0 .png 0.xml\nalone\n", &objects(), &["bad.txt", "line 2", "'alone'"]);
    convert("\n", &objects(), &["names no images"]);
    convert("x.png 0.xml\n", &objects(), &["none of its images"]);
    convert("0 .png x\n", &AnnosetOptions::new(Annotations::Labels), &["bad.txt", "label", "'x'"]);
    convert(
        "0 .png 0.xml\n",
        &AnnosetOptions { encode_type: Some("gif".into()), ..objects() },
        &["none of its images"],
    );
    fs::write(path.join("bad.xml"), "<annotation><object><name>cow</name></object></annotation>").unwrap();
    convert("0 .png bad.xml\n", &objects(), &["bad.xml", "line 1", "'cow'"]);
    fs::write(path.join("twice"), "item { name: 'cat' label: 4 } item { name: 'cat' label: 2 }").unwrap();
    says(&ClassNames::read(path.join("twice"), true).unwrap_err().to_string(), &["twice", "'cat'"]);
    assert!(ClassNames::read(path.join("twice"), false).is_ok());
    says(&ClassNames::read(path.join("absent"), false).unwrap_err().to_string(), &["absent", "cannot read"]);

    let junk = path.join("junk");
    let mut writer = Writer::create(&junk, Backend::Lmdb).unwrap();
    writer.put(b"0", vec![0xff]).unwrap();
    writer.finish().unwrap();
    says(&error(&layer(junk.to_str().unwrap(), 1, ""), &cx(Phase::Train, 1)), &["record 0", "not an AnnotatedDatum"]);
    let other = path.join("other");
    let mut writer = Writer::create(&other, Backend::Lmdb).unwrap();
    let record = AnnotatedDatum { datum: Some(Default::default()), ..Default::default() };
    writer.put(b"0", record.encode_to_vec()).unwrap();
    writer.finish().unwrap();
    says(&error(&layer(other.to_str().unwrap(), 1, ""), &cx(Phase::Train, 1)), &["record 0", "channels 0"]);
}

#[test]
fn sizes_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("in")).unwrap();
    image::RgbImage::new(10, 8).save(path("in/a.b.png")).unwrap();
    image::GrayImage::new(3, 5).save(path("c.png")).unwrap();
    let list = path("list.txt");
    fs::write(&list, "in/a.b.png 1.xml\n\n/c.png 7\n").unwrap();
    let sizes = |ids: Option<&str>| {
        let ids = ids.map(|text| {
            fs::write(path("ids"), text).unwrap();
            path("ids")
        });
        get_image_size(folder.path(), &list, path("out"), ids.as_deref(), &mut |_, _| {}).map_err(|e| e.to_string())
    };
    assert_eq!(sizes(None), Ok(2));
    assert_eq!(fs::read_to_string(path("out")).unwrap(), "a.b 8 10\nc 5 3\n");
    assert_eq!(sizes(Some("c 12\na.b -3\nother 1\n")), Ok(2));
    assert_eq!(fs::read_to_string(path("out")).unwrap(), "-3 8 10\n12 5 3\n");
    for (ids, words) in [
        ("c 12\n", "ids: has no number for 'a.b'"),
        ("c 12\nc 13\n", "line 2: 'c' has a number already"),
        ("c\n", "line 1: expected a name and a number, found 'c'"),
    ] {
        let error = sizes(Some(ids)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    fs::write(&list, "c.png 7\nd.png 7\n").unwrap();
    assert!(sizes(None).unwrap_err().contains("d.png"));
    assert_eq!(fs::read_to_string(path("out")).unwrap(), "-3 8 10\n12 5 3\n");
}
