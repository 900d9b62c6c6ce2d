//! LAYERS.md lists every layer type that the binary knows: the test makes its table again, but for what a layer is in words.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::{env, fs};

use lgm_core::{BuildCx, Compute, DType, Node, Phase, Registry};
use lgm_testkit::parse_layer;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LAYERS.md");
const HEAD: &str = "| layer | what | runs on | from |\n| --- | --- | --- | --- |\n";
/// Words for a type that nobody has described yet.
const MISSING: &str = "…";

/// What layers cannot be built without.
const NEEDS: &[(&str, &str)] = &[
    ("AnchorTarget", "anchor_target_param { feat_stride: 1 }"),
    ("AnnotatedData", "data_param { source: 'x' batch_size: 1 }"),
    ("BoxAnnotatorOHEM", "box_annotator_ohem_param { roi_per_img: 1 }"),
    ("CenterLoss", "center_loss_param { num_output: 2 }"),
    ("ClassDistance", "class_distance_param { num_output: 2 }"),
    ("Clip", "clip_param { min: 0 max: 1 }"),
    ("Convolution", "convolution_param { num_output: 2 }"),
    ("ConvolutionDepthwise", "convolution_param { num_output: 2 }"),
    ("Data", "data_param { source: 'x' batch_size: 1 }"),
    ("Deconvolution", "convolution_param { num_output: 2 }"),
    ("DepthwiseConvolution", "convolution_param { num_output: 2 }"),
    ("DetectionEvaluate", "detection_evaluate_param { num_classes: 2 overlap_threshold: 0.5 }"),
    ("DetectionOutput", "detection_output_param { num_classes: 2 }"),
    ("DummyData", "dummy_data_param { shape { dim: 1 } }"),
    ("Embed", "embed_param { num_output: 2 input_dim: 2 }"),
    ("HDF5Data", "hdf5_data_param { source: 'x' batch_size: 1 }"),
    ("HDF5Output", "hdf5_output_param { file_name: 'x' }"),
    ("ImageData", "image_data_param { source: 'x' batch_size: 1 }"),
    ("InnerProduct", "inner_product_param { num_output: 2 }"),
    ("LGMLoss", "lgm_loss_param { num_output: 2 }"),
    ("LSTM", "recurrent_param { num_output: 2 }"),
    ("MarginInnerProduct", "margin_inner_product_param { num_output: 2 }"),
    ("MarginSoftmaxLoss", "margin_softmax_loss_param { num_output: 2 }"),
    ("Mean", "reduction_param { axis: 1 }"),
    ("MemoryData", "memory_data_param { batch_size: 1 channels: 1 height: 1 width: 1 }"),
    ("MultiBoxLoss", "multibox_loss_param { num_classes: 2 }"),
    ("Parameter", "parameter_param { shape { dim: 1 } }"),
    ("PriorBox", "prior_box_param { min_size: 2 }"),
    ("PriorBoxClustered", "prior_box_param { width: 2 height: 2 }"),
    ("Proposal", "proposal_param { feat_stride: 1 }"),
    ("ProposalTarget", "proposal_target_param { cls_num: 2 }"),
    ("PSROIPooling", "psroi_pooling_param { spatial_scale: 1 output_dim: 1 group_size: 1 }"),
    ("Reorg", "reorg_param { stride: 2 }"),
    ("RNN", "recurrent_param { num_output: 2 }"),
    ("ROIAlign", "roi_pooling_param { pooled_h: 1 pooled_w: 1 }"),
    ("ROIPooling", "roi_pooling_param { pooled_h: 1 pooled_w: 1 }"),
    ("SPP", "spp_param { pyramid_height: 1 }"),
    ("Tile", "tile_param { tiles: 2 }"),
    ("WindowData", "window_data_param { source: 'x' batch_size: 1 } transform_param { crop_size: 2 }"),
];

fn registry() -> Registry {
    let mut registry = Registry::default();
    lgm_layers::register(&mut registry);
    lgm_data::register(&mut registry);
    registry
}

/// Where a type runs.
fn runs_on(registry: &Registry, kind: &str) -> &'static str {
    let needs = NEEDS.iter().find(|(of, _)| *of == kind).map_or("", |(_, needs)| needs);
    let text = format!("layer {{ name: 'x' type: '{kind}' bottom: 'a' top: 'b' {needs} }}");
    let cx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 1 };
    match registry.build(&parse_layer(&text).unwrap(), &cx) {
        Ok(Node::Compute(Compute::Everywhere(_))) => "CPU, GPU",
        Ok(Node::Compute(Compute::HostOnly(layer))) if *layer.arity().bottoms.end() == 0 => "CPU, ahead of the net",
        Ok(Node::Compute(Compute::HostOnly(_))) => "CPU",
        Ok(Node::Source(_)) => "CPU, ahead of the net",
        Ok(Node::Sink(_)) => "CPU, after the net",
        Err(error) => panic!("{kind} is not built of '{needs}': add to NEEDS what it cannot do without: {error}"),
    }
}

/// The table, with the words of the one there is.
fn table(registry: &Registry, words: &BTreeMap<&str, &str>) -> String {
    let mut kinds: Vec<&str> = registry.kinds().collect();
    kinds.sort_by_key(|kind| kind.to_lowercase());
    let mut table = HEAD.to_string();
    for kind in kinds {
        let what = words.get(kind).unwrap_or(&MISSING);
        let from = match (kind, lgm_proto::forks_of_layer(kind)) {
            ("AnchorTarget" | "LGMLoss", _) => "lgm-caffe",
            (_, forks) => forks.unwrap_or("Caffe"),
        };
        writeln!(table, "| {kind} | {what} | {} | {from} |", runs_on(registry, kind)).unwrap();
    }
    table
}

#[test]
fn the_table_of_layers_is_that_of_the_registry() {
    let text = fs::read_to_string(FILE).unwrap();
    let (before, rest) = text.split_once(HEAD).expect("LAYERS.md has the table");
    let end = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
    let (rows, after) = rest.split_at(end);
    let cells = rows.lines().filter_map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        Some((cells.next()?, cells.next()?))
    });
    let words: BTreeMap<&str, &str> = cells.collect();
    let want = table(&registry(), &words);
    if env::var_os("LGM_UPDATE").is_some() {
        fs::write(FILE, format!("{before}{want}{after}")).unwrap();
    } else {
        let found = format!("{HEAD}{rows}");
        let only = |a: &str, b: &str, sign: &str| {
            let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
            lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
        };
        let diff = only(&found, &want, "-") + &only(&want, &found, "+");
        assert!(
            found == want,
            "LAYERS.md is not what the registry has; `LGM_UPDATE=1 cargo test -p lgm-caffe --test integration layer_table` \
             writes it again, in alphabetical order:\n{diff}"
        );
    }
    let missing: Vec<&str> = want.lines().filter(|row| row.contains(&format!("| {MISSING} |"))).collect();
    assert!(missing.is_empty(), "say in LAYERS.md, in about five words, what these are:\n{}", missing.join("\n"));
}
