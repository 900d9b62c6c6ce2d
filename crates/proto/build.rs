//! Compiles `proto/caffe.proto` to Rust types that can be reflected on. No `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost_reflect::prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let schema = folder.join("caffe.proto");
    println!("cargo:rerun-if-changed={}", schema.display());

    let descriptors = protox::compile([&schema], [&folder])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("file_descriptor_set.bin");
    fs::write(&out, descriptors.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config.skip_protoc_run();
    prost_reflect_build::Builder::new()
        .descriptor_pool("crate::DESCRIPTOR_POOL")
        .file_descriptor_set_path(&out)
        .compile_protos_with_config(config, &[&schema], &[&folder])?;
    Ok(())
}
