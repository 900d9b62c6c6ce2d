//! CIFAR-10 and CIFAR-100 in their binary and Python forms, and folders of images of one size.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod read;

use std::path::{Path, PathBuf};

use lgm_core::fs::{in_folder, write_bytes};
use lgm_core::{Error, Result, Shape, ensure, memory};
use lgm_hdf5::H5Image;

use self::read::{CIFAR, Form, Images, Source, decode_file, detect, read};
use super::datums::Datums;
use super::{BLOCK, Progress};
use crate::db::Backend;
use crate::hdf5_reader::list_of;
use crate::pixels::Extent;
use crate::warnings::Alike;

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
    check_labels(form, options.coarse, input)?;
    let cut = Alike::default();
    let convert = |train: bool, pad: usize, progress: Progress<'_>| {
        let images = read(form, &folder, train, options.coarse)?;
        let out = out.canonicalize().map_err(Error::io(out, "open"))?;
        write(&images, pad, &out, if train { "train" } else { "test" }, &cut, progress)
    };
    in_folder(out, || Ok([convert(true, options.pad, progress)?, convert(false, 0, progress)?]))
}

/// A database that a conversion wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CifarDatabase {
    /// The database's folder.
    pub folder: PathBuf,
    /// Number of images.
    pub images: usize,
}

/// Converts a folder `input` of CIFAR-10's or CIFAR-100's files, in binary or Python form, to two new databases in the
/// folder `out`: `cifar10_train_lmdb` and `cifar10_test_lmdb`, or `cifar100_…` and `…_leveldb`. Returns the two.
///
/// Records lie under the keys `00000`, `00001`, …, in published order, each with the red, green and blue plane of an image
/// as CIFAR has them and its label; of CIFAR-100 the fine one or, if `coarse`, the coarse one. Caffe's `convert_cifar_data`
/// makes the same of CIFAR-10's binary form.
///
/// # Errors
/// When `input` holds none of these, a file is missing or damaged, one of the databases exists, or they cannot be written;
/// neither is there then.
pub fn convert_cifar_data(
    input: impl AsRef<Path>,
    out: impl AsRef<Path>,
    backend: Backend,
    coarse: bool,
    progress: Progress<'_>,
) -> Result<[CifarDatabase; 2]> {
    let (input, out) = (input.as_ref(), out.as_ref());
    let (form, folder) = detect(input)?;
    let dataset = match form {
        Form::Binary10 | Form::Python10 => "cifar10",
        Form::Binary100 | Form::Python100 => "cifar100",
        Form::Folders => {
            return Err(Error::data(input, "holds folders of images, of which convert_imageset makes a database"));
        }
    };
    check_labels(form, coarse, input)?;
    let splits = [read(form, &folder, true, coarse)?, read(form, &folder, false, coarse)?];
    in_folder(out, || write_databases(out, dataset, backend, &splits, progress))
}

/// Writes the images of training and of testing to a database each in a folder that is there.
fn write_databases(
    out: &Path,
    dataset: &str,
    backend: Backend,
    splits: &[Images; 2],
    progress: Progress<'_>,
) -> Result<[CifarDatabase; 2]> {
    let create = |split: &str| -> Result<(PathBuf, Datums)> {
        let path = out.join(format!("{dataset}_{split}_{}", backend.to_string().to_ascii_lowercase()));
        let database = Datums::create(&path, backend, CIFAR, 5)?;
        Ok((path, database))
    };
    let mut databases = [create("train")?, create("test")?];
    for (kind, ((_, database), images)) in ["Training", "Testing"].iter().zip(databases.iter_mut().zip(splits)) {
        tracing::info!("Writing {kind} data");
        let Source::Memory(pixels) = &images.pixels else {
            return Err(Error::internal("CIFAR's images were not read"));
        };
        let planes = pixels.chunks_exact(CIFAR.count()).map(<[u8]>::to_vec);
        database.fill(planes.zip(images.labels.iter().copied()), progress)?;
    }
    let [(train_folder, train), (test_folder, test)] = databases;
    train.finish()?;
    test.finish()?;
    let [train_images, test_images] = splits.each_ref().map(|images| images.labels.len());
    Ok([
        CifarDatabase { folder: train_folder, images: train_images },
        CifarDatabase { folder: test_folder, images: test_images },
    ])
}

/// Refuses coarse labels where there are none.
fn check_labels(form: Form, coarse: bool, input: &Path) -> Result<()> {
    ensure!(
        !coarse || matches!(form, Form::Binary100 | Form::Python100),
        "{}: only CIFAR-100 has coarse labels",
        input.display()
    );
    Ok(())
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
    use std::fs;

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

    #[test]
    fn a_folder_made_for_nothing_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.bin"), [0; 7]).unwrap();
        fs::write(dir.path().join("test.bin"), [0; 7]).unwrap();
        let options = CifarOptions { pad: 0, coarse: false };
        let error = convert_cifar(dir.path(), dir.path().join("new/deep"), options, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("train.bin") && !dir.path().join("new").exists(), "{error}");
    }
}
