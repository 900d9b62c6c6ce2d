//! HDF5 files: weights, solver states and data, read and written in one place.
//!
//! A file may be damaged or malicious, so nothing in it is trusted: extents are compared and held against the
//! memory there is before a value is read, groups that contain each other are walked once, and the walk has an end. Files
//! are written as an image in memory first, which the caller then puts on disk: the library itself does not survive a disk
//! that is full. What may be larger than memory ([`H5Stream`]) has its frame made so, and its numbers written into that.
//!
//! The C library is not thread-safe; `hdf5-metno` takes one lock around every call, so any number of threads may use this
//! and take turns.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod dataset;
mod file;
mod filters;
mod handle;
mod header;
mod image;
mod stream;
mod walk;

pub use dataset::{H5Dataset, H5Number, Values};
pub use handle::{H5File, is_hdf5};
pub use image::{H5Image, H5RowWriter, write_f32};
pub use stream::H5Stream;
pub use walk::H5Group;

/// The library's error text on one line: what it was asked for, and the innermost reason.
fn reason(e: &hdf5_metno::Error) -> String {
    e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
