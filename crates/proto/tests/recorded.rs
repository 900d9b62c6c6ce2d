//! Files that Caffe wrote or read, in `tests/golden`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use lgm_proto::{
    NetParameter, SolverParameter, SolverState, Weights, decode_net, encode, parse, read_binary, read_net,
    read_net_binary, read_solver, to_text,
};

/// The files below a folder of recorded values whose names end so.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} in {folder}");
    found
}

#[test]
fn recorded_prototxt_survives_writing_and_reading() {
    for path in files("train", ".prototxt") {
        if path.ends_with("solver.prototxt") {
            let solver = read_solver(&path).unwrap();
            let text = to_text(&solver.message);
            assert_eq!(
                parse::<SolverParameter>(text.as_bytes(), &path).unwrap().message,
                solver.message,
                "{}",
                path.display()
            );
        } else {
            let net = read_net(&path).unwrap();
            assert!((0..net.message.layer.len()).all(|i| net.positions.layer(i).is_some()), "{}", path.display());
            let text = to_text(&net.message);
            assert_eq!(parse::<NetParameter>(text.as_bytes(), &path).unwrap().message, net.message);
        }
    }
}

#[test]
fn recorded_weights_are_whole() {
    for folder in ["train", "resume"] {
        for path in files(folder, ".caffemodel") {
            let bytes = fs::read(&path).unwrap();
            let weights = Weights::decode(&bytes, &path).unwrap();
            let blobs: Vec<_> = weights.layers.iter().flat_map(|layer| &layer.blobs).collect();
            assert!(!blobs.is_empty(), "{}", path.display());
            for blob in blobs {
                assert!(!blob.values_f32().unwrap().is_empty(), "{}", path.display());
            }
            let net = read_net_binary(&path).unwrap().message;
            assert_eq!(net.name(), weights.name);
            for (layer, weights) in net.layer.iter().zip(&weights.layers) {
                assert_eq!((layer.name(), layer.r#type()), (weights.name.as_str(), weights.kind.as_str()));
                assert_eq!(layer.blobs, weights.blobs);
            }
            assert_eq!(net.layer.len(), weights.layers.len());
            assert!(encode(&decode_net(&bytes, &path).unwrap()) == bytes, "{} is written differently", path.display());
        }
    }
}

#[test]
fn recorded_solver_states_are_whole() {
    for path in files("resume", ".solverstate") {
        let state: SolverState = read_binary(&path).unwrap();
        assert!(encode(&state) == fs::read(&path).unwrap(), "{} is written differently", path.display());
        assert!(state.iter() > 0 && !state.history.is_empty(), "{}", path.display());
        for blob in &state.history {
            blob.values_f32().unwrap();
        }
    }
}
