//! What reads bytes from outside, as functions of bytes: none of them may panic, abort, hang or take more memory than its
//! input is worth, whatever the bytes. One list serves the mutator of `src/bin/mutate.rs` and libFuzzer.
//!
//! A target is a module with `run`, a line in [`TARGETS`] and a folder of small sound inputs, `corpus/NAME`.

mod annotated;
/// What the program, which has no library, reads itself.
#[path = "../../crates/cli/src"]
mod cli {
    pub mod flagfile;
    pub mod training_log;
}
mod data;
mod leveldb;
mod models;
mod scratch;
mod stores;

/// A reader, by name.
pub struct Target {
    /// The name, also of the folder of its sound inputs.
    pub name: &'static str,
    /// Reads bytes; what is wrong with them is an error that it keeps to itself.
    pub run: fn(&[u8]),
}

/// Every reader.
pub const TARGETS: &[Target] = &[
    Target { name: "net", run: models::net },
    Target { name: "solver", run: models::solver },
    Target { name: "weights", run: models::weights },
    Target { name: "state", run: models::state },
    Target { name: "extra", run: models::extra },
    Target { name: "idx_images", run: data::idx_images },
    Target { name: "idx_labels", run: data::idx_labels },
    Target { name: "pickle", run: data::pickle },
    Target { name: "image", run: data::image },
    Target { name: "mean", run: data::mean },
    Target { name: "training_log", run: data::training_log },
    Target { name: "flagfile", run: data::flagfile },
    Target { name: "list", run: data::list },
    Target { name: "image_list", run: data::image_list },
    Target { name: "window_list", run: data::window_list },
    Target { name: "datum", run: stores::datum },
    Target { name: "annotated_datum", run: annotated::datum },
    Target { name: "voc_xml", run: annotated::voc_xml },
    Target { name: "coco_json", run: annotated::coco_json },
    Target { name: "boxes", run: annotated::boxes },
    Target { name: "annotated_list", run: annotated::list },
    Target { name: "label_map", run: annotated::label_map },
    Target { name: "lmdb", run: stores::lmdb },
    Target { name: "leveldb", run: leveldb::leveldb },
    Target { name: "hdf5_data", run: stores::hdf5_data },
    Target { name: "hdf5_weights", run: stores::hdf5_weights },
    Target { name: "hdf5_state", run: stores::hdf5_state },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
