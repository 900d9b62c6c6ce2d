//! Converters of published datasets to the formats nets read. Everything is written under temporary names and renamed
//! when it is whole.

mod annoset;
mod cifar;
mod datums;
mod folder;
mod imageset;
mod mnist;
mod pickle;
mod siamese;
mod sizes;

pub use crate::image::ImageFile;
pub use annoset::{AnnosetOptions, AnnotationFile, Annotations, ClassNames, convert_annoset};
pub use cifar::{CifarDatabase, CifarOptions, CifarSplit, convert_cifar, convert_cifar_data};
pub use imageset::{Encoding, ImageSet, ImageSetOptions, convert_imageset};
pub use mnist::{Format, convert_mnist};
pub use siamese::convert_mnist_siamese;
pub use sizes::get_image_size;

/// Called while a conversion goes on, with the number of images done and their total.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Images between two calls of [`Progress`], and in one storage chunk of an HDF5 file.
const BLOCK: usize = 256;
