//! Data for lgm-caffe: the layers that bring data in and take it out (Data, HDF5Data, HDF5Output, ImageData, MemoryData,
//! WindowData), the file formats behind them, and converters of datasets.

mod ahead;
mod annotated;
mod batch;
pub mod convert;
mod data;
mod datum;
pub mod db;
pub mod glyphs;
mod hdf5_data;
mod hdf5_output;
mod hdf5_reader;
mod image;
mod image_data;
mod image_list;
mod mean;
mod memory_data;
mod net_input;
mod order;
mod parallel;
mod pixels;
mod prefetch;
mod transform;
mod warnings;
mod window_data;
mod window_file;

pub use lgm_hdf5 as hdf5;

pub use annotated::AnnotatedData;
pub use data::Data;
pub use hdf5_data::Hdf5Data;
pub use hdf5_output::Hdf5Output;
pub use hdf5_reader::list_of;
pub use image::{IMAGE_ENDS, is_image_name};
pub use image_data::ImageData;
pub use mean::ImageMean;
pub use memory_data::{MemoryData, MemoryFeed};
pub use net_input::{Crops, ImageInput, InputMean, TEN as TEN_CROPS};
pub use prefetch::Prefetch;
pub use window_data::WindowData;

use lgm_core::Registry;

/// Makes the data layers known to a registry.
pub fn register(registry: &mut Registry) {
    registry.add("HDF5Data", hdf5_data::build);
    registry.add("Data", data::build);
    registry.add("AnnotatedData", annotated::build);
    registry.add("HDF5Output", hdf5_output::build);
    registry.add("ImageData", image_data::build);
    registry.add("MemoryData", memory_data::build);
    registry.add("WindowData", window_data::build);
}
