//! A GPU that is not there: NVIDIA's driver, cuBLAS, cuDNN and, where wanted, NVRTC as one library on host memory.
//!
//! The simulated device of `lgm_cuda` stands in for a queue; this stands in for the libraries below it, so that what talks
//! to a GPU (`crates/cuda/src/gpu`: contexts, streams, events, pinned memory, recorded graphs, cuDNN's choices) runs where
//! there is none. It is written in Rust, with the types of NVIDIA's headers, so that the compiler checks it against them,
//! and is one library under several names (`libcuda.so.1`, `libcublas.so.13`, …), since the loader takes those for the same
//! file and they share their state. `scripts/fake-gpu` builds it and says how it is used.
//!
//! - Kernels are the simulator's, by name. Products and convolutions are made by their definition.
//! - Nothing runs when it is put on a stream, but when something waits for it: what does not wait where it must reads old
//!   or poisoned memory.
//! - What a driver forbids, or allows and is a mistake, is a *violation*: what may not be done while a stream is recorded,
//!   calls without a context, streams that block others, copies from memory that is not pinned, work outside memory, grids
//!   and pointers that a GPU does not take, objects that are left when their context goes. Each is told on standard error,
//!   and a process that had any fails when it ends.
//! - On demand calls fail, memory runs out or the device is lost: see `settings.rs`.

#![allow(non_snake_case)]

mod blas;
mod control;
mod counts;
mod dnn;
mod driver;
mod enter;
mod gpu;
mod memory;
mod nvrtc;
mod objects;
mod process;
mod settings;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod work;
