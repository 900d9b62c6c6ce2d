//! MNIST and its like: idx files of 8-bit images and labels.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use lgm_core::{Error, Result, Shape, memory};
use lgm_hdf5::H5Image;
use lgm_proto::FileKind;

use super::datums::Datums;
use super::{BLOCK, Progress};
use crate::db::Backend;
use crate::pixels::Extent;

/// What a converter writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder with an LMDB database of `Datum` records under the keys `00000000`, `00000001`, …, as Caffe's
    /// `convert_mnist_data` writes it.
    Lmdb,
    /// The same in a folder with a LevelDB database.
    Leveldb,
    /// An HDF5 file with `data`, images × 1 × height × width, 0 to 255, and `label`, images; both single precision.
    Hdf5,
}

/// Converts idx files of images and labels, compressed with gzip or not, to a database or file `out`. Returns the
/// number of images.
///
/// # Errors
/// When a file is missing, not an idx file of the right kind or shorter than its header requires, when there are not as
/// many labels as images, when `out` exists (LMDB, LevelDB) or cannot be written.
pub fn convert_mnist(
    images: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    out: impl AsRef<Path>,
    format: Format,
    progress: Progress<'_>,
) -> Result<usize> {
    let (Mnist { extent, pixels, labels }, out) = (read(images.as_ref(), labels.as_ref())?, out.as_ref());
    let count = labels.len();
    match format {
        Format::Lmdb | Format::Leveldb => {
            let backend = if format == Format::Lmdb { Backend::Lmdb } else { Backend::Leveldb };
            let mut database = Datums::create(out, backend, extent, 8)?;
            let images = pixels.chunks_exact(extent.count()).map(<[u8]>::to_vec);
            database.fill(images.zip(labels.iter().map(|&label| label.into())), progress)?;
            database.finish()?;
        }
        Format::Hdf5 => {
            let file = H5Image::new(out)?;
            let mut data =
                file.dataset::<f32>("data", &Shape::from([count, 1, extent.height, extent.width]), Some(BLOCK))?;
            let mut done = 0;
            for block in pixels.chunks(extent.count().saturating_mul(BLOCK)) {
                let values: Vec<f32> = block.iter().map(|&v| f32::from(v)).collect();
                data.append(&values)?;
                done = BLOCK.saturating_add(done).min(count);
                progress(done, count);
            }
            let labels: Vec<f32> = labels.iter().map(|&v| f32::from(v)).collect();
            file.dataset::<f32>("label", &Shape::from([count]), None)?.write(&labels)?;
            file.write_atomic()?;
        }
    }
    Ok(count)
}

/// Images of one size and their labels, at least one.
pub(super) struct Mnist {
    pub extent: Extent,
    /// One image after another.
    pub pixels: Vec<u8>,
    pub labels: Vec<u8>,
}

/// Reads idx files of images and labels, compressed with gzip or not.
///
/// # Errors
/// When a file is missing, not an idx file of the right kind or shorter than its header requires, when there are not as
/// many labels as images, or no pixels.
pub(super) fn read(images: &Path, labels: &Path) -> Result<Mnist> {
    let ([count, height, width], pixels) = read_idx(images, IMAGES)?;
    let ([label_count], values) = read_idx(labels, LABELS)?;
    if count != label_count {
        let what = format!("holds {label_count} labels for the {count} images of {}", images.display());
        return Err(Error::data(labels, what));
    }
    let extent = Extent { channels: 1, height, width };
    if count == 0 || extent.count() == 0 {
        return Err(Error::data(images, format!("holds {count} images of {height} x {width} pixels")));
    }
    Ok(Mnist { extent, pixels, labels: values })
}

/// The idx files wanted: the magic number (two zero bytes, 8 for unsigned bytes, the number of axes) and the kind.
const IMAGES: (u32, FileKind) = (0x0803, FileKind::IdxImages);
const LABELS: (u32, FileKind) = (0x0801, FileKind::IdxLabels);
/// Bytes by which a kind is recognised.
const HEAD: u64 = 1 << 16;

/// Reads an idx file of `N` axes: its extents and values.
fn read_idx<const N: usize>(path: &Path, (magic, kind): (u32, FileKind)) -> Result<([usize; N], Vec<u8>)> {
    if path.is_dir() {
        FileKind::Folder.expect(kind, path)?;
    }
    let (mut reader, mut bytes) = (maybe_gzip(path)?, Vec::new());
    reader.by_ref().take(HEAD).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    FileKind::of_head(&bytes).expect(kind, path)?;
    let mut rest = &bytes[..];
    let mut word = || {
        let (word, after) = rest.split_first_chunk()?;
        rest = after;
        Some(u32::from_be_bytes(*word))
    };
    match word() {
        Some(found) if found == magic => {}
        Some(found) => {
            let what = format!("expected {kind}, which begin with the number {magic}, found {found}");
            return Err(Error::data(path, what));
        }
        None => return Err(Error::data(path, format!("expected {kind}, found only {} bytes", bytes.len()))),
    }
    let mut extents = [0; N];
    for extent in &mut extents {
        *extent = word().ok_or_else(|| Error::data(path, "is cut short: the header is not whole"))? as usize;
    }
    let count = lgm_core::count(&extents);
    let mut values = rest.get(..count).unwrap_or(rest).to_vec();
    let more = count.saturating_sub(values.len());
    memory::check(more, format!("{}: the values that its header {extents:?} announces", path.display()))?;
    reader.take(more as u64).read_to_end(&mut values).map_err(Error::io(path, "read"))?;
    if values.len() < count {
        let what = format!("is cut short: its header {extents:?} needs {count} bytes, found {}", values.len());
        return Err(Error::data(path, what));
    }
    Ok((extents, values))
}

/// Opens a file that is decompressed if it starts as gzip does.
fn maybe_gzip(path: &Path) -> Result<Box<dyn Read>> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
    let gzip = reader.fill_buf().map_err(Error::io(path, "read"))?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzip { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) })
}
