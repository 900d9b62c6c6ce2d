//! The binary from its command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod any_bytes;
mod classify;
mod command_line;
mod conformance;
mod databases;
mod detect;
mod device;
mod documents;
mod figures;
mod glyphs;
mod graph_nodes;
mod layer_table;
mod limits;
mod mistakes;
mod models;
mod runs;
mod signals;
mod structure;
mod upgrades;
mod util;
mod variances;
