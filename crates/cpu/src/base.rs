#[path = "../../core/src/dtype.rs"]
mod dtype;
pub use dtype::*;
