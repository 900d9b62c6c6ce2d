//! Parameters in and out: Caffe's files, copies of them, and nets that compute with another's.

mod kind;
mod load;
mod share;
pub(crate) mod snapshot;
mod stored;

pub use kind::{expect_kind, kind_of};
pub use load::Loaded;
pub use snapshot::Weights;
