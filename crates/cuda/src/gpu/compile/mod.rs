//! From CUDA C++ to kernels that can be launched: NVRTC, the cache of compiled code, and modules.

mod cache;
mod module;
pub(super) mod nvrtc;
pub mod ptxas;

pub use cache::KernelCache;
pub(super) use module::Kernels;
pub use module::compile_all;
pub use nvrtc::{Compiled, Nvrtc, Unit};
