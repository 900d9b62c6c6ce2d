//! Compiles `proto/caffe.proto` twice: whole, and cut down to what is supported (`proto/forks/fields.txt`), that as Rust
//! types too. No `protoc` is needed.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost_reflect::prost::Message;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The messages that files are made of. Of the others, those become Rust types that one of these leads to.
const ROOTS: [&str; 8] = [
    "NetParameter",
    "SolverParameter",
    "SolverState",
    "BlobProto",
    "BlobProtoVector",
    "Datum",
    "AnnotatedDatum",
    "LabelMap",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let (schema, fields) = (folder.join("caffe.proto"), folder.join("forks/fields.txt"));
    println!("cargo:rerun-if-changed={}", schema.display());
    println!("cargo:rerun-if-changed={}", fields.display());

    let mut descriptors = protox::compile([&schema], [&folder])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("whole.bin"), without_comments(&descriptors))?;

    let table = fs::read_to_string(fields)?;
    let lines = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let left_out = lines.filter_map(|line| {
        let (fate, rest) = line.split_once(' ')?;
        (fate != "carried").then(|| rest.split(' ').next().unwrap_or_default())
    });
    cut_down(&mut descriptors, &left_out.collect());
    fs::write(out.join("supported.bin"), without_comments(&descriptors))?;
    let commented = out.join("commented.bin");
    fs::write(&commented, descriptors.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config.skip_protoc_run();
    for path in boxed(&descriptors) {
        config.boxed(path);
    }
    prost_reflect_build::Builder::new()
        .descriptor_pool("crate::DESCRIPTOR_POOL")
        .file_descriptor_set_path(&commented)
        .compile_protos_with_config(config, &[&schema], &[&folder])?;
    Ok(())
}

fn without_comments(descriptors: &FileDescriptorSet) -> Vec<u8> {
    let mut bare = descriptors.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    bare.encode_to_vec()
}

/// Takes fields and enum values out of the schema, and then the messages that no root leads to any more.
fn cut_down(descriptors: &mut FileDescriptorSet, left_out: &HashSet<&str>) {
    let kept = |path: String| !left_out.contains(path.as_str());
    for file in &mut descriptors.file {
        // Where things stood and stand now, for the comments, which go by such paths.
        let mut moved = HashMap::new();
        for (m, message) in file.message_type.iter_mut().enumerate() {
            let name = message.name().to_owned();
            let old = name == "V1LayerParameter";
            retain(&mut message.field, &[4, m as i32, 2], &mut moved, |field| {
                let in_layers = !old || kept(format!("LayerParameter.{}", field.name()));
                in_layers && kept(format!("{name}.{}", field.name()))
            });
            for (e, known) in message.enum_type.iter_mut().enumerate() {
                let path = format!("{name}.{}", known.name());
                retain(&mut known.value, &[4, m as i32, 4, e as i32, 2], &mut moved, |value| {
                    kept(format!("{path}.{}", value.name()))
                });
            }
        }
        for (e, known) in file.enum_type.iter_mut().enumerate() {
            let name = known.name().to_owned();
            retain(&mut known.value, &[5, e as i32, 2], &mut moved, |value| kept(format!("{name}.{}", value.name())));
        }
        let reached = reached(&file.message_type);
        retain(&mut file.message_type, &[4], &mut moved, |message| reached.contains(message.name()));
        retain(&mut file.enum_type, &[5], &mut moved, |known| reached.contains(known.name()));
        if let Some(comments) = &mut file.source_code_info {
            comments.location.retain_mut(|location| {
                let old = location.path.clone();
                for end in (2..=old.len()).step_by(2) {
                    match moved.get(&old[..end]) {
                        Some(Some(now)) => location.path[end - 1] = *now,
                        Some(None) => return false,
                        None => {}
                    }
                }
                true
            });
        }
    }
}

/// Keeps some elements of a list, and notes for each, by the path it had, where it is now.
fn retain<T>(list: &mut Vec<T>, path: &[i32], moved: &mut HashMap<Vec<i32>, Option<i32>>, keep: impl Fn(&T) -> bool) {
    let (mut old, mut now) = (0, 0);
    list.retain(|element| {
        let kept = keep(element);
        moved.insert([path, &[old]].concat(), kept.then_some(now));
        old += 1;
        now += i32::from(kept);
        kept
    });
}

/// The names of all types that the roots lead to.
fn reached(messages: &[DescriptorProto]) -> HashSet<String> {
    let by_name: HashMap<&str, &DescriptorProto> = messages.iter().map(|message| (message.name(), message)).collect();
    let mut reached: HashSet<String> = HashSet::new();
    let mut todo: Vec<String> = ROOTS.map(String::from).to_vec();
    while let Some(name) = todo.pop() {
        if reached.insert(name.clone()) {
            todo.extend(by_name.get(name.as_str()).into_iter().flat_map(|message| types(message)));
        }
    }
    reached
}

/// The outermost types that the fields of a message name.
fn types(message: &DescriptorProto) -> Vec<String> {
    let own = message.field.iter().filter_map(|field| field.type_name().strip_prefix(".caffe."));
    let outermost = own.map(|name| name.split('.').next().unwrap_or(name).to_owned());
    outermost.chain(message.nested_type.iter().flat_map(types)).collect()
}

/// The messages of forks' layers, by path: a layer has one or two of them, and would otherwise be as large as all
/// together.
fn boxed(descriptors: &FileDescriptorSet) -> Vec<String> {
    let messages = descriptors.file.iter().flat_map(|file| &file.message_type);
    let layers = messages.filter(|message| matches!(message.name(), "LayerParameter" | "V1LayerParameter"));
    let of_forks = |number: i32| !(0..=152).contains(&number) && !(5000..5100).contains(&number);
    let path = |message: &DescriptorProto, field: &FieldDescriptorProto| {
        let boxed = field.r#type() == Type::Message && field.label() == Label::Optional && of_forks(field.number());
        boxed.then(|| format!(".caffe.{}.{}", message.name(), field.name()))
    };
    layers.flat_map(|message| message.field.iter().filter_map(move |field| path(message, field))).collect()
}
