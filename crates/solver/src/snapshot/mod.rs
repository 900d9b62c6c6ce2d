//! Snapshots and resuming from them.
//!
//! A snapshot is Caffe's two files, the weights (`.caffemodel`, `.caffemodel.h5`) and the solver's state
//! (`.solverstate`, `.solverstate.h5`), and a third beside the state, with `.lgm` added to its name: JSON with what
//! Caffe's file has no place for (the random seed, data positions, margin schedules, the loss average). Caffe reads the
//! first two; we resume from them alone too, only then data starts from its beginning, as in Caffe.
//!
//! All three are written under temporary names, synced and then renamed, weights first and state last, so a state file
//! never appears before what it needs; see [`Writer`]. Where there is no room for the state, the weights are kept.

mod extra;
mod newest;
mod writer;

pub(crate) use extra::{EXTRA_VERSION, Exact, Extra, TestExtra, exact, extra_path, plain, read_extra};
pub(crate) use newest::resume_from;
pub(crate) use writer::{SnapshotData, Writer};
