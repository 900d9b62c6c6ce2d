//! JPEGs that are cut short, as tools take them: used, and told in one warning that names the first and counts the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{jpeg, listen, warned};
use lgm_data::convert::{AnnosetOptions, Annotations, CifarOptions, convert_annoset, convert_cifar};
use lgm_data::db::{Backend, Database, Writer};
use lgm_data::{Crops, ImageInput, ImageMean, InputMean};
use lgm_proto::Datum;
use prost::Message;

/// How many bytes the images lack: none, the end marker alone, some of their rows.
const LACKS: [(&str, usize); 4] = [("0.jpg", 0), ("1.jpg", 2), ("2.jpg", 30), ("3.jpg", 40)];

fn images(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let whole = jpeg();
    LACKS.iter().for_each(|(name, lacks)| fs::write(folder.join(name), &whole[..whole.len() - lacks]).unwrap());
}

/// The only warning about a folder.
fn told(folder: &Path) -> String {
    let mut told = warned(folder.to_str().unwrap());
    assert_eq!(told.len(), 1, "{told:?}");
    told.swap_remove(0)
}

const WHAT: &str = "is a JPEG that is cut short: what is missing of it is gray";

#[test]
fn by_the_mean_of_a_database() {
    listen();
    let dir = tempfile::tempdir().unwrap();
    let (path, whole) = (dir.path().join("db"), jpeg());
    let mut writer = Writer::create(&path, Backend::Lmdb).unwrap();
    for (name, lacks) in LACKS {
        let data = Some(whole[..whole.len() - lacks].to_vec());
        let datum = Datum { data, encoded: Some(true), ..Default::default() };
        writer.put(name.as_bytes(), datum.encode_to_vec()).unwrap();
    }
    writer.finish().unwrap();
    let mean = ImageMean::of(&Database::open(&path).unwrap(), |_| ()).unwrap();
    assert_eq!(mean.images(), 4);
    let told = told(&path);
    assert!(told.ends_with(&format!("db: record 2 (key '2.jpg') {WHAT} (1 more like it)")), "{told}");
}

#[test]
fn by_converters() {
    listen();
    let dir = tempfile::tempdir().unwrap();
    ["in/train/a", "in/test/a"].iter().for_each(|folder| images(&dir.path().join(folder)));
    let options = CifarOptions { pad: 0, coarse: false };
    let [train, test] = convert_cifar(dir.path().join("in"), dir.path().join("out"), options, &mut |_, _| ()).unwrap();
    assert_eq!((train.images, test.images), (4, 4));
    let first = told(dir.path());
    assert!(first.ends_with(&format!("in/train/a/2.jpg: {WHAT} (3 more like it)")), "{first}");

    let (root, list) = (dir.path().join("in/train/a"), dir.path().join("list"));
    fs::write(&list, LACKS.map(|(name, lacks)| format!("{name} {lacks}\n")).concat()).unwrap();
    let options = AnnosetOptions::new(Annotations::Labels);
    assert_eq!(convert_annoset(root, list, dir.path().join("db"), &options, &mut |_, _| ()).unwrap(), (4, 0));
    let first = told(dir.path());
    assert!(first.ends_with(&format!("a/2.jpg: the image {WHAT} (1 more like it)")), "{first}");
}

#[test]
fn by_the_input_of_a_net() {
    listen();
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    let reader = ImageInput::new([3, 37, 53], Crops::Whole, InputMean::None, 1.0).unwrap();
    let read = LACKS.map(|(name, _)| reader.read(dir.path().join(name)).unwrap());
    assert!(read[0] == read[1] && read[0][..53] == read[2][..53] && read[0] != read[2]);
    assert!(warned(dir.path().to_str().unwrap()).is_empty(), "told when all have been read");
    drop(reader);
    let told = told(dir.path());
    assert!(told.ends_with(&format!("2.jpg: the image {WHAT} (1 more like it)")), "{told}");
}
