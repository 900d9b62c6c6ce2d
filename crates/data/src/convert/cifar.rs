//! CIFAR-10 and CIFAR-100 in their binary and Python forms, and folders of images of one size.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fs;
use std::path::{Path, PathBuf};

use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result, Shape, ensure, memory};
use lgm_proto::FileKind;

use super::{BLOCK, Progress, folder, pickle};
use crate::hdf5_reader::list_of;
use crate::image::{self, Color, Pixels};
use crate::pixels::Extent;
use crate::warnings::{Alike, Flaw};
use lgm_hdf5::H5Image;

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CifarOptions {
    /// Zeros put around the training images, in pixels; the paper trains on random crops of images padded by 4.
    pub pad: usize,
    /// CIFAR-100: label with the 20 coarse classes instead of the 100 fine ones.
    pub coarse: bool,
}

/// A file that a conversion wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CifarSplit {
    /// The HDF5 file.
    pub file: PathBuf,
    /// The list that names it, for `hdf5_data_param`.
    pub list: PathBuf,
    /// Number of images.
    pub images: usize,
    /// Number of classes: one more than the largest label.
    pub classes: usize,
}

/// Converts a folder `input` to `train.h5` and `test.h5` in the folder `out`, with lists `train.txt` and `test.txt` that
/// name them by absolute path. Returns the two.
///
/// `input` holds the files of CIFAR-10's or CIFAR-100's binary or Python version (or the folder that their archive
/// unpacks to), or folders `train` and `test` (or `val`) with one folder of images for each class, numbered in
/// alphabetical order.
///
/// Each file has `data`, images × 3 × height × width, 8-bit, red, green and blue planes, as CIFAR is published (image
/// files too), and `label`, images, in single precision. Images of all the forms are in their published or alphabetical
/// order: train with `shuffle: true`.
///
/// # Errors
/// When `input` is none of these forms, a file is missing or damaged, images differ in size, or `out` cannot be
/// written.
pub fn convert_cifar(
    input: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: CifarOptions,
    progress: Progress<'_>,
) -> Result<[CifarSplit; 2]> {
    let (input, out) = (input.as_ref(), out.as_ref());
    let (form, folder) = detect(input)?;
    ensure!(
        !options.coarse || matches!(form, Form::Binary100 | Form::Python100),
        "{}: only CIFAR-100 has coarse labels",
        input.display()
    );
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let out = out.canonicalize().map_err(Error::io(out, "open"))?;
    let cut = Alike::default();
    let convert = |train: bool, pad: usize, progress: Progress<'_>| {
        let images = read(form, &folder, train, options.coarse)?;
        write(&images, pad, &out, if train { "train" } else { "test" }, &cut, progress)
    };
    Ok([convert(true, options.pad, progress)?, convert(false, 0, progress)?])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Binary10,
    Binary100,
    Python10,
    Python100,
    Folders,
}

/// Finds out what a folder holds: the form, and the folder its files are in.
fn detect(input: &Path) -> Result<(Form, PathBuf)> {
    FileKind::of(input)?.expect(FileKind::Folder, input)?;
    fs::read_dir(input).map_err(Error::io(input, "list"))?;
    let unpacked = ["cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"];
    for folder in std::iter::once(input.to_path_buf()).chain(unpacked.iter().map(|n| input.join(n))) {
        let file = |name: &str| folder.join(name).is_file();
        let form = if file("data_batch_1.bin") {
            Form::Binary10
        } else if file("train.bin") {
            Form::Binary100
        } else if file("data_batch_1") {
            Form::Python10
        } else if file("train") {
            Form::Python100
        } else if folder.join("train").is_dir() {
            Form::Folders
        } else {
            continue;
        };
        return Ok((form, folder));
    }
    let what = "holds no dataset: expected CIFAR-10 or CIFAR-100 in binary form (data_batch_1.bin or train.bin) or \
                Python form (data_batch_1 or train), or a folder train/ with a folder of images for each class";
    Err(Error::data(input, what))
}

/// The images of a split and their labels.
struct Images {
    extent: Extent,
    labels: Vec<usize>,
    pixels: Source,
}

enum Source {
    Memory(Vec<u8>),
    Files(Vec<PathBuf>),
}

const CIFAR: Extent = Extent { channels: 3, height: 32, width: 32 };

fn read(form: Form, folder: &Path, train: bool, coarse: bool) -> Result<Images> {
    let batches = |suffix: &str| -> Vec<PathBuf> {
        if train {
            (1..=5).map(|i| folder.join(format!("data_batch_{i}{suffix}"))).collect()
        } else {
            vec![folder.join(format!("test_batch{suffix}"))]
        }
    };
    let whole = |suffix: &str| vec![folder.join(format!("{}{suffix}", if train { "train" } else { "test" }))];
    let (mut labels, mut pixels) = (Vec::new(), Vec::new());
    match form {
        Form::Binary10 => {
            batches(".bin").iter().try_for_each(|f| read_binary(f, 1, 0, &mut labels, &mut pixels))?;
        }
        Form::Binary100 => {
            let which = usize::from(!coarse);
            whole(".bin").iter().try_for_each(|f| read_binary(f, 2, which, &mut labels, &mut pixels))?;
        }
        Form::Python10 | Form::Python100 => {
            let (files, key) = match (form, coarse) {
                (Form::Python10, _) => (batches(""), "labels"),
                (_, true) => (whole(""), "coarse_labels"),
                (_, false) => (whole(""), "fine_labels"),
            };
            for file in files {
                let (mut p, mut l) = pickle::read_batch(&file, key, CIFAR.count())?;
                pixels.append(&mut p);
                labels.append(&mut l);
            }
        }
        Form::Folders => return read_folders(folder, train),
    }
    Ok(Images { extent: CIFAR, labels, pixels: Source::Memory(pixels) })
}

/// Reads a binary file: records of `heads` label bytes, of which number `which` is used, and an image.
fn read_binary(path: &Path, heads: usize, which: usize, labels: &mut Vec<usize>, pixels: &mut Vec<u8>) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let record = CIFAR.count().saturating_add(heads);
    let records = bytes.chunks_exact(record);
    if bytes.is_empty() || !records.remainder().is_empty() {
        return Err(Error::data(
            path,
            match FileKind::of_head(&bytes) {
                FileKind::Unknown => {
                    format!("is damaged: {} bytes are not a number of records of {record} bytes", bytes.len())
                }
                other => format!("expected a batch of CIFAR's binary version, found {}", other.described()),
            },
        ));
    }
    for record in records {
        labels.push(usize::from(record[which]));
        pixels.extend_from_slice(&record[heads..]);
    }
    Ok(())
}

fn read_folders(input: &Path, train: bool) -> Result<Images> {
    let train_folder = input.join("train");
    let trained = folder::list(&train_folder)?;
    let listing = if train {
        trained
    } else {
        let folder = ["test", "val"].iter().map(|n| input.join(n)).find(|p| p.is_dir());
        let folder = folder.ok_or_else(|| Error::data(input, "holds train/ but neither test/ nor val/"))?;
        let listing = folder::list(&folder)?;
        // Class numbers come from the names: they must be the same names.
        if listing.classes != trained.classes {
            let what = format!("has the classes {:?}, but train/ has {:?}", listing.classes, trained.classes);
            return Err(Error::data(&folder, what));
        }
        listing
    };
    let extent = decode_file(&listing.files[0])?.0;
    Ok(Images { extent, labels: listing.labels, pixels: Source::Files(listing.files) })
}

/// Decodes an image file to red, green and blue planes; with what is amiss with it.
fn decode_file(path: &Path) -> Result<(Extent, Vec<u8>, Option<Flaw>)> {
    let (raster, flaw) = image::read_file(path, Color::Force)?;
    let image = raster.planes().map_err(|e| Error::data(path, e.to_string()))?;
    let Pixels::U8(bgr) = image.pixels else {
        return Err(Error::internal("an image file decoded to floating-point pixels"));
    };
    let plane = lgm_core::count(&[image.extent.height, image.extent.width]);
    Ok((image.extent, bgr.chunks(plane.max(1)).rev().collect::<Vec<_>>().concat(), flaw))
}

/// Writes a split; `cut` is told of images that were cut short.
fn write(
    images: &Images,
    pad: usize,
    out: &Path,
    name: &str,
    cut: &Alike,
    progress: Progress<'_>,
) -> Result<CifarSplit> {
    let (file, list) = (out.join(format!("{name}.h5")), out.join(format!("{name}.txt")));
    let (of, count) = (images.extent, images.labels.len());
    let with = |extent: usize| extent.saturating_add(pad.saturating_mul(2));
    let padded = Extent { height: with(of.height), width: with(of.width), ..of };
    let shape = Shape::from([count, padded.channels, padded.height, padded.width]);
    let h5 = H5Image::new(&file)?;
    let mut data = h5.dataset::<u8>("data", &shape, Some(BLOCK))?;
    for start in (0..count).step_by(BLOCK) {
        let end = start.saturating_add(BLOCK).min(count);
        let mut block = Vec::new();
        let bytes = padded.count().saturating_mul(end.saturating_sub(start));
        memory::reserve(&mut block, bytes, format!("{}: a block of padded images", file.display()))?;
        block.resize(bytes, 0u8);
        for (i, image) in (start..end).zip(block.chunks_exact_mut(padded.count())) {
            match &images.pixels {
                Source::Memory(pixels) => {
                    let after = &pixels[i.saturating_mul(of.count())..];
                    put(&after[..of.count()], of, pad, image);
                }
                Source::Files(files) => {
                    let (extent, pixels, flaw) = decode_file(&files[i])?;
                    flaw.iter().for_each(|flaw| cut.add(|| Error::data(&files[i], flaw.to_string()).to_string()));
                    if extent != of {
                        let what = format!(
                            "is {} x {} pixels, but the first image is {} x {}; all must have one size",
                            extent.height, extent.width, of.height, of.width
                        );
                        return Err(Error::data(&files[i], what));
                    }
                    put(&pixels, of, pad, image);
                }
            }
        }
        data.append(&block)?;
        progress(end, count);
    }
    let labels: Vec<f32> = images.labels.iter().map(|&l| l as f32).collect();
    h5.dataset::<f32>("label", &Shape::from([count]), None)?.write(&labels)?;
    h5.write_atomic()?;
    write_bytes(&list, &list_of(&file))?;
    let classes = images.labels.iter().max().map_or(0, |&l| l.saturating_add(1));
    Ok(CifarSplit { file, list, images: count, classes })
}

/// Copies an image to the middle of a zeroed one that is `pad` pixels larger on every side.
fn put(image: &[u8], of: Extent, pad: usize, out: &mut [u8]) {
    let with = |extent: usize| extent.saturating_add(pad.saturating_mul(2));
    let plane = lgm_core::count(&[with(of.height), with(of.width)]);
    let channels = image.chunks_exact(lgm_core::count(&[of.height, of.width]));
    for (channel, out) in channels.zip(out.chunks_exact_mut(plane)) {
        for (row, out) in channel.chunks_exact(of.width).zip(out.chunks_exact_mut(with(of.width)).skip(pad)) {
            out[pad..].iter_mut().zip(row).for_each(|(out, &value)| *out = value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pickle::tests::python2_batch;
    use super::*;
    use lgm_hdf5::H5File;

    #[test]
    fn the_python_forms() {
        let dir = tempfile::tempdir().unwrap();
        let image = |n: u8| (0..3072).map(|p| (p / 9) as u8 ^ n).collect::<Vec<u8>>();
        let batch = |key: &str, images: &[u8]| {
            let pixels: Vec<u8> = images.iter().flat_map(|&n| image(n)).collect();
            python2_batch(key, &pixels, 3072, images, false)
        };
        let check = |input: &Path, coarse: bool, train: &[u8], test: &[u8]| {
            let out = input.join("out");
            let splits = convert_cifar(input, &out, CifarOptions { pad: 0, coarse }, &mut |_, _| ()).unwrap();
            for (split, want) in splits.iter().zip([train, test]) {
                let file = H5File::open(&split.file).unwrap();
                let data = file.dataset("data").unwrap().read().unwrap();
                assert_eq!(data, crate::hdf5::Values::U8(want.iter().flat_map(|&n| image(n)).collect()));
                let labels = file.dataset("label").unwrap().read().unwrap().into_f32();
                assert_eq!(labels, want.iter().map(|&n| f32::from(n)).collect::<Vec<_>>());
            }
        };
        let ten = dir.path().join("cifar-10-batches-py");
        fs::create_dir(&ten).unwrap();
        for b in 1..=5 {
            fs::write(ten.join(format!("data_batch_{b}")), batch("labels", &[b, 2 * b])).unwrap();
        }
        fs::write(ten.join("test_batch"), batch("labels", &[3])).unwrap();
        check(&ten, false, &[1, 2, 2, 4, 3, 6, 4, 8, 5, 10], &[3]);

        for (coarse, key) in [(false, "fine_labels"), (true, "coarse_labels")] {
            let hundred = dir.path().join(key);
            fs::create_dir(&hundred).unwrap();
            fs::write(hundred.join("train"), batch(key, &[7, 9])).unwrap();
            fs::write(hundred.join("test"), batch(key, &[11])).unwrap();
            check(&hundred, coarse, &[7, 9], &[11]);
        }
    }
}
