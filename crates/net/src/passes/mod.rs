//! Passes over the graph, between a prototxt and its execution: layers computed together, how a device stores blobs, and
//! where everything lies in memory.

pub(crate) mod formats;
pub(crate) mod fuse;
pub(crate) mod memory;
pub(crate) mod pack;
