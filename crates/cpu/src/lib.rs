//! Host numerics: matrix multiplication, convolution, pooling, normalisation and element-wise mathematics over slices.
//!
//! Everything here is generic over [`Float`] (`f32`, which is made fast, and `f64`, which is there for gradient checks),
//! takes row-major slices and allocates nothing once its thread-local scratch has grown to size. Work is split into
//! blocks whose sizes depend on the shapes alone and sums are taken in a fixed order, so a result has the same bits
//! whatever the number of threads.

// Loops over constant bounds by index are what the compiler unrolls and vectorises best.
#![allow(clippy::needless_range_loop)]

pub mod batchnorm;
pub mod conv;
pub mod elementwise;
mod gemm;
mod kernel;
pub mod lrn;
pub mod math;
mod matrix;
mod pack;
mod parallel;
pub mod pool;
pub mod prelu;
pub mod recurrent;
mod scratch;
pub mod softmax;
mod stream;
mod team;
#[cfg(test)]
mod testing;
mod vector;

pub use conv::{Algorithm, ConvGeometry, Epilogue, col2im_nd, im2col_nd};
pub use gemm::{Gemm, PackedFactor};
pub use kernel::Kernel;
pub use lgm_core::Float;
pub use matrix::{MatMut, MatRef};
pub use parallel::{BLOCK, for_each_block, for_each_part, for_each_part_of, for_each_row, for_each_row_of};
pub use scratch::with_scratch;
pub use team::{num_threads, with_threads};
