//! What CIFAR's files and folders of images hold.

use std::fs;
use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};
use lgm_proto::FileKind;

use crate::convert::{folder, pickle};
use crate::image::{self, Color, Pixels};
use crate::pixels::Extent;
use crate::warnings::Flaw;

/// The forms of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Binary10,
    Binary100,
    Python10,
    Python100,
    Folders,
}

/// Finds out what a folder holds: the form, and the folder its files are in.
pub(super) fn detect(input: &Path) -> Result<(Form, PathBuf)> {
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
pub(super) struct Images {
    pub extent: Extent,
    pub labels: Vec<usize>,
    pub pixels: Source,
}

/// Where their pixels are: red, green and blue planes one after another, or image files.
pub(super) enum Source {
    Memory(Vec<u8>),
    Files(Vec<PathBuf>),
}

/// An image of CIFAR.
pub(super) const CIFAR: Extent = Extent { channels: 3, height: 32, width: 32 };

/// The images of one split.
pub(super) fn read(form: Form, folder: &Path, train: bool, coarse: bool) -> Result<Images> {
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
pub(super) fn decode_file(path: &Path) -> Result<(Extent, Vec<u8>, Option<Flaw>)> {
    let (raster, flaw) = image::read_file(path, Color::Force)?;
    let image = raster.planes().map_err(|e| Error::data(path, e.to_string()))?;
    let Pixels::U8(bgr) = image.pixels else {
        return Err(Error::internal("an image file decoded to floating-point pixels"));
    };
    let plane = lgm_core::count(&[image.extent.height, image.extent.width]);
    Ok((image.extent, bgr.chunks(plane.max(1)).rev().collect::<Vec<_>>().concat(), flaw))
}
