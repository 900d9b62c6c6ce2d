//! A dataset that makes itself: the ten digits, or letters that resemble none, drawn by a pen that is never twice the same.
//!
//! Each image starts from one of several ways of writing its sign. Control points are jittered, the whole is sheared,
//! rotated, scaled and shifted, and drawn with a pen of random width, softness and ink. A stray stroke may cross the
//! image; noise lies over all. Classes stay apart for an attentive eye, so a small net should pass 97% and no net can
//! take it for granted.
//!
//! Every image is a pure function of (signs, seed, split, index), so any number of threads makes the same file.

mod letters;
mod raster;
mod skeleton;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use lgm_core::fs::{in_folder, write_bytes};
use lgm_core::rng::{Philox, Sequence, stream_id};
use lgm_core::{Error, Result, Shape, ensure};
use lgm_cpu::for_each_part;

use crate::hdf5_reader::list_of;
use letters::LETTERS;
use lgm_hdf5::H5Image;
use raster::{Ink, Pen};
use skeleton::{DIGITS, Skeleton};

/// Height and width of an image, in pixels.
pub const SIDE: usize = raster::SIDE;
/// What is drawn: the classes of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signs {
    /// The ten digits.
    #[default]
    Digits,
    /// The capital letters A, C, E, F, H, K, L, M, N, P, R, T, U, V, W, X and Y, labelled from 0: what a net trained on
    /// digits has never seen. Those that a hand writes like a digit (B, D, G, I, J, O, Q, S, Z) are left out.
    Letters,
}

impl Signs {
    /// The ways to write each sign, by label.
    fn ways(self) -> &'static [&'static [Skeleton]] {
        match self {
            Signs::Digits => &DIGITS,
            Signs::Letters => &LETTERS,
        }
    }

    /// Number of classes.
    pub fn classes(self) -> usize {
        self.ways().len()
    }

    /// The name of the random streams.
    fn stream(self) -> &'static str {
        match self {
            Signs::Digits => "glyphs",
            Signs::Letters => "letters",
        }
    }
}

/// Images of one split never occur in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For testing.
    Test,
}

impl Split {
    /// `train` or `test`: the stem of the split's file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// One image with its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glyph {
    /// [`SIDE`] × [`SIDE`] grey levels, row by row; 0 is paper, 255 is ink.
    pub pixels: Vec<u8>,
    /// The sign: the digit itself, or the letter's place among those drawn.
    pub label: u8,
}

/// Draws image `index` of a split.
pub fn glyph(signs: Signs, seed: u64, split: Split, index: u64) -> Glyph {
    let label = label(signs, seed, split, index);
    // An image draws about a thousand counters of its stream.
    let mut random = Philox::new(seed, stream_id(signs.stream(), split.name())).from(index << 16);
    let mut image: Ink = [0.0; SIDE * SIDE];
    draw_sign(&mut image, signs.ways()[label as usize], &mut random);
    if random.unit() < STRAY_PROBABILITY {
        draw_stray(&mut image, &mut random);
    }
    let noise = random.uniform(0.0, MAX_NOISE);
    let pixels = image.iter().map(|&ink| to_grey(ink + random.gaussian(0.0, noise))).collect();
    Glyph { pixels, label }
}

const STRAY_PROBABILITY: f64 = 0.3;
const MAX_NOISE: f64 = 0.1;

fn to_grey(ink: f64) -> u8 {
    (ink.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// Each run of as many images as there are classes holds every class once, in random order.
fn label(signs: Signs, seed: u64, split: Split, index: u64) -> u8 {
    let classes = signs.classes() as u64;
    let (block, place) = (index / classes, (index % classes) as usize);
    let mut labels: Vec<u8> = (0..classes as u8).collect();
    let purpose = format!("{} labels", split.name());
    Philox::new(seed, stream_id(signs.stream(), &purpose)).from(block << 16).shuffle(&mut labels);
    labels[place]
}

fn draw_sign(image: &mut Ink, ways: &[Skeleton], random: &mut Sequence) {
    let way = ways[random.below(ways.len())];
    let (sin, cos) = random.gaussian(0.0, 0.12).clamp(-0.3, 0.3).sin_cos();
    let shear = random.gaussian(0.08, 0.15).clamp(-0.3, 0.45);
    let height = random.uniform(7.0, 10.5);
    let width = height * random.uniform(0.75, 1.2);
    let middle = SIDE as f64 / 2.0;
    let room = middle - 0.5 - height;
    let center = (middle + random.uniform(-3.0, 3.0), middle + random.uniform(-room, room));
    let pen = Pen { radius: random.uniform(0.6, 1.7), edge: random.uniform(1.0, 2.2), ink: random.uniform(0.65, 1.0) };
    for stroke in way {
        let pieces = stroke.pieces(|(x, y)| {
            let (x, y) = (x + random.gaussian(0.0, JITTER), y + random.gaussian(0.0, JITTER));
            let (x, y) = ((x - shear * y) * width, y * height);
            (center.0 + cos * x - sin * y, center.1 + sin * x + cos * y)
        });
        raster::draw(image, &pieces, pen);
    }
}

/// Standard deviation of a control point, as a share of half the glyph's height.
const JITTER: f64 = 0.05;

/// A faint straight scratch anywhere on the paper.
fn draw_stray(image: &mut Ink, random: &mut Sequence) {
    let side = SIDE as f64;
    let start = (random.uniform(0.0, side), random.uniform(0.0, side));
    let (sin, cos) = random.uniform(0.0, std::f64::consts::TAU).sin_cos();
    let length = random.uniform(4.0, 10.0);
    let pen = Pen { radius: random.uniform(0.4, 0.8), edge: 1.0, ink: random.uniform(0.3, 0.6) };
    raster::draw(image, &[start, (start.0 + length * cos, start.1 + length * sin)], pen);
}

/// The files that [`generate`] wrote.
#[derive(Clone, Debug)]
pub struct Files {
    /// The list of training files, for HDF5Data's `source`.
    pub train_list: PathBuf,
    /// The list of test files.
    pub test_list: PathBuf,
}

/// Makes the dataset in `folder` (created if absent): `train.h5` and `test.h5`, each with 8-bit datasets `data` of
/// shape N×1×28×28 and `label` of shape N, and the lists `train.txt` and `test.txt` that name them as `folder` does
/// (a relative folder stays relative to where the net will be run, as in Caffe).
///
/// Files that exist are replaced, each in one step.
///
/// # Errors
/// When a split would be empty or the folder cannot be written.
pub fn generate(folder: impl AsRef<Path>, signs: Signs, train: usize, test: usize, seed: u64) -> Result<Files> {
    let folder = folder.as_ref();
    let split = |split, count| write_split(folder, signs, split, count, seed);
    in_folder(folder, || Ok(Files { train_list: split(Split::Train, train)?, test_list: split(Split::Test, test)? }))
}

/// Images drawn in parallel between two writes, and in one chunk of the file.
const BLOCK: usize = 1000;

fn write_split(folder: &Path, signs: Signs, split: Split, count: usize, seed: u64) -> Result<PathBuf> {
    ensure!(count > 0, "the {} split must hold at least one image, found 0", split.name());
    let data = folder.join(format!("{}.h5", split.name()));
    let file = H5Image::new(&data)?;
    let mut images = file.dataset::<u8>("data", &Shape::new([count, 1, SIDE, SIDE]), Some(BLOCK))?;
    let mut labels = file.dataset::<u8>("label", &Shape::new([count]), None)?;
    for start in (0..count).step_by(BLOCK) {
        let block = start as u64..(start + BLOCK).min(count) as u64;
        let mut pixels = vec![0; block.clone().count() * SIDE * SIDE];
        for_each_part(&mut pixels, SIDE * SIDE, |i, image| {
            image.copy_from_slice(&glyph(signs, seed, split, block.start + i as u64).pixels);
        });
        images.append(&pixels)?;
        labels.append(&block.map(|index| label(signs, seed, split, index)).collect::<Vec<u8>>())?;
    }
    file.write_atomic()?;
    let list = folder.join(format!("{}.txt", split.name()));
    write_bytes(&list, &list_of(&data))?;
    Ok(list)
}

/// Draws a table of images of the training split to a PNG: a row for each class, `columns` samples of it.
///
/// # Errors
/// When the file cannot be written.
pub fn contact_sheet(path: impl AsRef<Path>, signs: Signs, columns: usize, seed: u64) -> Result<()> {
    let path = path.as_ref();
    ensure!(columns > 0, "a contact sheet needs at least one column");
    let (cell, classes) = (SIDE + 2, signs.classes());
    let mut sheet = image::GrayImage::new((columns * cell) as u32, (classes * cell) as u32);
    for index in 0..(columns * classes) as u64 {
        let glyph = glyph(signs, seed, Split::Train, index);
        let (left, top) = (index as usize / classes * cell + 1, glyph.label as usize * cell + 1);
        for (i, &grey) in glyph.pixels.iter().enumerate() {
            sheet.put_pixel((left + i % SIDE) as u32, (top + i / SIDE) as u32, image::Luma([grey]));
        }
    }
    let mut png = Cursor::new(Vec::new());
    let encoded = sheet.write_to(&mut png, image::ImageFormat::Png);
    encoded.map_err(|e| Error::data(path, format!("cannot be written as a PNG: {e}")))?;
    write_bytes(path, png.get_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_hdf5::{H5File, Values};

    const BOTH: [Signs; 2] = [Signs::Digits, Signs::Letters];

    #[test]
    fn an_image_depends_on_seed_split_and_index_alone() {
        for signs in BOTH {
            let image = glyph(signs, 1, Split::Train, 5);
            assert_eq!(image, glyph(signs, 1, Split::Train, 5));
            for (seed, split, index) in [(2, Split::Train, 5), (1, Split::Test, 5), (1, Split::Train, 39)] {
                assert_ne!(image.pixels, glyph(signs, seed, split, index).pixels);
            }
        }
    }

    #[test]
    fn as_many_images_as_classes_hold_every_class() {
        for (signs, block) in BOTH.into_iter().flat_map(|signs| (0..20u64).map(move |block| (signs, block))) {
            let classes = signs.classes() as u64;
            let mut labels: Vec<u8> = (0..classes).map(|i| label(signs, 3, Split::Test, block * classes + i)).collect();
            labels.sort_unstable();
            assert_eq!(labels, (0..classes as u8).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn images_hold_ink_inside_their_frame() {
        for (signs, index) in BOTH.into_iter().flat_map(|signs| (0..500).map(move |index| (signs, index))) {
            let g = glyph(signs, 9, Split::Train, index);
            let dark = |i: &usize| g.pixels[*i] > 80;
            let ink = (0..SIDE * SIDE).filter(dark).count();
            assert!((12..400).contains(&ink), "image {index} of {signs:?} {} has {ink} dark pixels", g.label);
            let border = |i: &usize| [i / SIDE, i % SIDE].iter().any(|&at| at == 0 || at == SIDE - 1);
            let cut = (0..SIDE * SIDE).filter(border).filter(dark).count();
            assert!(cut < 14, "image {index} of {signs:?} {} has {cut} dark pixels on its border", g.label);
        }
    }

    #[test]
    fn files_hold_the_images_and_lists_name_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/data");
        let files = generate(&folder, Signs::Digits, BLOCK + 7, 13, 4).unwrap();
        assert_eq!(
            std::fs::read_to_string(&files.train_list).unwrap(),
            format!("{}\n", folder.join("train.h5").display())
        );
        for (split, count) in [(Split::Train, BLOCK + 7), (Split::Test, 13)] {
            let file = H5File::open(folder.join(format!("{}.h5", split.name()))).unwrap();
            let (data, labels) = (file.dataset("data").unwrap(), file.dataset("label").unwrap());
            assert_eq!(data.shape(), &Shape::new([count, 1, SIDE, SIDE]));
            assert_eq!(labels.shape(), &Shape::new([count]));
            let last = glyph(Signs::Digits, 4, split, count as u64 - 1);
            assert_eq!(data.read_rows(count - 1..count).unwrap(), Values::U8(last.pixels));
            assert_eq!(labels.read_rows(count - 1..count).unwrap(), Values::U8(vec![last.label]));
        }
        assert!(generate(&folder, Signs::Digits, 0, 1, 4).unwrap_err().to_string().contains("train split"));
        assert!(
            generate(files.train_list.join("x"), Signs::Letters, 1, 1, 4)
                .unwrap_err()
                .to_string()
                .contains("cannot create")
        );
    }

    #[test]
    fn the_contact_sheet_is_a_png_of_all_classes() {
        let dir = tempfile::tempdir().unwrap();
        for signs in BOTH {
            let path = dir.path().join("sheet.png");
            contact_sheet(&path, signs, 3, 1).unwrap();
            let sheet = image::open(&path).unwrap();
            assert_eq!((sheet.width(), sheet.height()), (3 * 30, signs.classes() as u32 * 30));
        }
    }
}
