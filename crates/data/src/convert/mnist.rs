//! MNIST and its like: idx files of 8-bit images and labels.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use lgm_core::fs::create_dir_atomic;
use lgm_core::{Error, Result, Shape};

use super::{BLOCK, Progress};
use crate::datum::encode;
use crate::lmdb;
use crate::pixels::Extent;
use lgm_hdf5::H5Image;

/// What a converter writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder with an LMDB database of `Datum` records under the keys `00000000`, `00000001`, …, as Caffe's
    /// `convert_mnist_data` writes it.
    Lmdb,
    /// An HDF5 file with `data`, images × 1 × height × width, 0 to 255, and `label`, images; both single precision.
    Hdf5,
}

/// Converts idx files of images and labels, compressed with gzip or not, to a database or file `out`. Returns the
/// number of images.
///
/// # Errors
/// When a file is missing, not an idx file of the right kind or shorter than it says, when there are not as many labels
/// as images, when `out` exists (LMDB) or cannot be written.
pub fn convert_mnist(
    images: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    out: impl AsRef<Path>,
    format: Format,
    progress: Progress<'_>,
) -> Result<usize> {
    let (images_path, labels_path, out) = (images.as_ref(), labels.as_ref(), out.as_ref());
    let ([count, height, width], pixels) = read_idx(images_path, IMAGES)?;
    let ([label_count], labels) = read_idx(labels_path, LABELS)?;
    if count != label_count {
        let what = format!("holds {label_count} labels for the {count} images of {}", images_path.display());
        return Err(Error::data(labels_path, what));
    }
    let extent = Extent { channels: 1, height, width };
    if count == 0 || extent.count() == 0 {
        return Err(Error::data(images_path, format!("holds {count} images of {height} x {width} pixels")));
    }
    match format {
        Format::Lmdb => create_dir_atomic(out, |folder| {
            lmdb::write(folder, pixels.len() + count * 64, |put| {
                for (i, (image, &label)) in pixels.chunks_exact(extent.count()).zip(&labels).enumerate() {
                    put(format!("{i:08}").as_bytes(), &encode(extent, image, label)?)?;
                    if (i + 1) % BLOCK == 0 || i + 1 == count {
                        progress(i + 1, count);
                    }
                }
                Ok(())
            })
        })?,
        Format::Hdf5 => {
            let file = H5Image::new(out)?;
            let mut data = file.dataset::<f32>("data", &Shape::from([count, 1, height, width]), Some(BLOCK))?;
            let mut done = 0;
            for block in pixels.chunks(BLOCK * extent.count()) {
                let values: Vec<f32> = block.iter().map(|&v| f32::from(v)).collect();
                data.append(&values)?;
                done += block.len() / extent.count();
                progress(done, count);
            }
            let labels: Vec<f32> = labels.iter().map(|&v| f32::from(v)).collect();
            file.dataset::<f32>("label", &Shape::from([count]), None)?.write(&labels)?;
            file.write_atomic()?;
        }
    }
    Ok(count)
}

/// The kinds of idx file: the magic number (two zero bytes, 8 for unsigned bytes, the number of axes) and its name.
const IMAGES: (u32, &str) = (0x0803, "images");
const LABELS: (u32, &str) = (0x0801, "labels");

/// Reads an idx file of `N` axes: its extents and values.
fn read_idx<const N: usize>(path: &Path, (magic, name): (u32, &str)) -> Result<([usize; N], Vec<u8>)> {
    let bytes = read_maybe_gzip(path)?;
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    match word(0) {
        Some(found) if found == magic => {}
        Some(found) => {
            let what = format!("is not an idx file of {name}: expected the magic number {magic}, found {found}");
            return Err(Error::data(path, what));
        }
        None => return Err(Error::data(path, format!("is not an idx file: it holds only {} bytes", bytes.len()))),
    }
    let mut extents = [0; N];
    for (i, extent) in extents.iter_mut().enumerate() {
        *extent = word(1 + i).ok_or_else(|| Error::data(path, "is cut short: the header is not whole"))? as usize;
    }
    let count = extents.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).unwrap_or(usize::MAX);
    let values = &bytes[4 + 4 * N..];
    if values.len() < count {
        let what = format!("is cut short: its header {extents:?} needs {count} bytes, found {}", values.len());
        return Err(Error::data(path, what));
    }
    Ok((extents, values[..count].to_vec()))
}

/// Reads a file whole, decompressing it if it starts as gzip does.
fn read_maybe_gzip(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut start = [0u8; 2];
    let mut reader = BufReader::new(file);
    let got = reader.by_ref().take(2).read(&mut start).map_err(Error::io(path, "read"))?;
    let mut rest = start[..got].chain(reader);
    let mut bytes = Vec::new();
    if start == [0x1f, 0x8b] {
        MultiGzDecoder::new(rest).read_to_end(&mut bytes).map_err(Error::io(path, "decompress"))?;
    } else {
        rest.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    }
    Ok(bytes)
}
