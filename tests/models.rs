//! The nets of `models/`: each is planned as it is trained, tested and deployed, and has the parameters and multiply-adds
//! that its paper's architecture has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lgm_proto::{InputParameter, NetParameter};
use regex::Regex;

use crate::util::prints;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What an architecture takes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cost {
    /// Weights, biases, BatchNorm's scales and shifts, centers and variances.
    params: u64,
    /// Multiply-adds of convolutions and inner products, for one image.
    products: u64,
}

impl Cost {
    /// A convolution to `outputs` square maps of `side`.
    fn conv(&mut self, inputs: u64, outputs: u64, kernel: u64, side: u64) -> &mut Cost {
        self.grouped(inputs, outputs, kernel, side, 1)
    }

    fn grouped(&mut self, inputs: u64, outputs: u64, kernel: u64, side: u64, groups: u64) -> &mut Cost {
        let weights = inputs / groups * outputs * kernel * kernel;
        self.params += weights;
        self.products += weights * side * side;
        self
    }

    fn full(&mut self, inputs: u64, outputs: u64) -> &mut Cost {
        self.conv(inputs, outputs, 1, 1).bias(outputs)
    }

    fn bias(&mut self, channels: u64) -> &mut Cost {
        self.params += channels;
        self
    }

    /// A scale and a shift a channel.
    fn norm(&mut self, channels: u64) -> &mut Cost {
        self.bias(2 * channels)
    }
}

fn lenet(cost: &mut Cost) {
    cost.conv(1, 20, 5, 24).bias(20).conv(20, 50, 5, 8).bias(50).full(50 * 4 * 4, 500).full(500, 10);
}

fn cifar10(cost: &mut Cost) -> &mut Cost {
    cost.conv(3, 32, 5, 32).bias(32).conv(32, 32, 5, 16).bias(32).conv(32, 64, 5, 8).bias(64)
}

fn cifar100_simple(cost: &mut Cost) {
    let mut inputs = 3;
    for (width, depth, side) in [(96, 5, 32), (192, 4, 16), (384, 4, 8)] {
        for _ in 0..depth {
            cost.conv(inputs, width, 3, side).norm(width);
            inputs = width;
        }
    }
    // A center and a variance a class.
    cost.bias(100 * 384 + 100);
}

fn cifar_resnet(cost: &mut Cost, depth: u64) {
    cost.conv(3, 16, 3, 32).norm(16);
    let mut inputs = 16;
    for (width, side) in [(16, 32), (32, 16), (64, 8)] {
        for _ in 0..(depth - 2) / 6 {
            cost.conv(inputs, width, 3, side).norm(width).conv(width, width, 3, side).norm(width);
            inputs = width;
        }
    }
    cost.full(64, 10);
}

fn alexnet(cost: &mut Cost) {
    cost.conv(3, 96, 11, 55).bias(96).grouped(96, 256, 5, 27, 2).bias(256).conv(256, 384, 3, 13).bias(384);
    cost.grouped(384, 384, 3, 13, 2).bias(384).grouped(384, 256, 3, 13, 2).bias(256);
    cost.full(256 * 6 * 6, 4096).full(4096, 4096).full(4096, 1000);
}

fn vgg16(cost: &mut Cost) {
    let mut inputs = 3;
    for (width, depth, side) in [(64, 2, 224), (128, 2, 112), (256, 3, 56), (512, 3, 28), (512, 3, 14)] {
        for _ in 0..depth {
            cost.conv(inputs, width, 3, side).bias(width);
            inputs = width;
        }
    }
    cost.full(512 * 7 * 7, 4096).full(4096, 4096).full(4096, 1000);
}

/// Table 1 of the paper: for each module 1x1, 3x3 and what it is reduced to, 5x5 and what it is reduced to, the projection.
const INCEPTIONS: [(u64, [u64; 6]); 9] = [
    (28, [64, 96, 128, 16, 32, 32]),
    (28, [128, 128, 192, 32, 96, 64]),
    (14, [192, 96, 208, 16, 48, 64]),
    (14, [160, 112, 224, 24, 64, 64]),
    (14, [128, 128, 256, 24, 64, 64]),
    (14, [112, 144, 288, 32, 64, 64]),
    (14, [256, 160, 320, 32, 128, 128]),
    (7, [256, 160, 320, 32, 128, 128]),
    (7, [384, 192, 384, 48, 128, 128]),
];

fn googlenet(cost: &mut Cost) {
    cost.conv(3, 64, 7, 112).bias(64).conv(64, 64, 1, 56).bias(64).conv(64, 192, 3, 56).bias(192);
    let mut inputs = 192;
    for (side, [one, reduce3, three, reduce5, five, project]) in INCEPTIONS {
        cost.conv(inputs, one, 1, side).conv(inputs, reduce3, 1, side).conv(reduce3, three, 3, side);
        cost.conv(inputs, reduce5, 1, side).conv(reduce5, five, 5, side).conv(inputs, project, 1, side);
        cost.bias(one + reduce3 + three + reduce5 + five + project);
        inputs = one + three + five + project;
    }
    cost.full(1024, 1000);
}

/// The two classifiers that GoogLeNet has beside while it is trained.
fn auxiliary(cost: &mut Cost) {
    for inputs in [512, 528] {
        cost.conv(inputs, 128, 1, 4).bias(128).full(128 * 4 * 4, 1024).full(1024, 1000);
    }
}

fn resnet(cost: &mut Cost, blocks: [u64; 4], bottleneck: bool) {
    cost.conv(3, 64, 7, 112).norm(64);
    let mut inputs = 64;
    for ((width, side), blocks) in [(64, 56), (128, 28), (256, 14), (512, 7)].into_iter().zip(blocks) {
        let outputs = if bottleneck { 4 * width } else { width };
        for block in 0..blocks {
            if bottleneck {
                cost.conv(inputs, width, 1, side).norm(width).conv(width, width, 3, side).norm(width);
                cost.conv(width, outputs, 1, side).norm(outputs);
            } else {
                cost.conv(inputs, width, 3, side).norm(width).conv(width, width, 3, side).norm(width);
            }
            if block == 0 && inputs != outputs {
                cost.conv(inputs, outputs, 1, side).norm(outputs);
            }
            inputs = outputs;
        }
    }
    cost.full(inputs, 1000);
}

fn squeezenet(cost: &mut Cost) {
    cost.conv(3, 64, 3, 113).bias(64);
    let mut inputs = 64;
    for (squeeze, side) in [(16, 56), (16, 56), (32, 28), (32, 28), (48, 14), (48, 14), (64, 14), (64, 14)] {
        let expand = 4 * squeeze;
        cost.conv(inputs, squeeze, 1, side).conv(squeeze, expand, 1, side).conv(squeeze, expand, 3, side);
        cost.bias(squeeze + 2 * expand);
        inputs = 2 * expand;
    }
    cost.conv(512, 1000, 1, 14).bias(1000);
}

fn mobilenet(cost: &mut Cost) {
    cost.conv(3, 32, 3, 112).norm(32);
    let mut inputs = 32;
    let widths = [(64, 112), (128, 56), (128, 56), (256, 28), (256, 28), (512, 14)];
    for (width, side) in widths.into_iter().chain([(512, 14); 5]).chain([(1024, 7); 2]) {
        cost.grouped(inputs, inputs, 3, side, inputs).norm(inputs).conv(inputs, width, 1, side).norm(width);
        inputs = width;
    }
    cost.full(1024, 1000);
}

/// The nets, their architecture and the number of parameters that is known of each.
fn nets() -> Vec<(&'static str, Cost, u64)> {
    fn cost(of: impl FnOnce(&mut Cost)) -> Cost {
        let mut cost = Cost::default();
        of(&mut cost);
        cost
    }
    vec![
        ("lenet", cost(lenet), 431_080),
        (
            "cifar10_quick",
            cost(|c| {
                cifar10(c).full(64 * 4 * 4, 64).full(64, 10);
            }),
            145_578,
        ),
        (
            "cifar10_full",
            cost(|c| {
                cifar10(c).full(64 * 4 * 4, 10);
            }),
            89_578,
        ),
        ("cifar100_simple", cost(cifar100_simple), 6_184_516),
        ("cifar_resnet20", cost(|c| cifar_resnet(c, 20)), 269_722),
        ("cifar_resnet56", cost(|c| cifar_resnet(c, 56)), 853_018),
        ("alexnet", cost(alexnet), 60_965_224),
        ("caffenet", cost(alexnet), 60_965_224),
        ("googlenet", cost(googlenet), 6_998_552),
        ("vgg16", cost(vgg16), 138_357_544),
        ("resnet18", cost(|c| resnet(c, [2; 4], false)), 11_689_512),
        ("resnet50", cost(|c| resnet(c, [3, 4, 6, 3], true)), 25_557_032),
        ("squeezenet", cost(squeezenet), 1_235_496),
        ("mobilenet_v1", cost(mobilenet), 4_231_976),
    ]
}

fn read(name: &str, file: &str) -> NetParameter {
    let net = lgm_proto::read_net(Path::new(ROOT).join(format!("models/{name}/{file}.prototxt"))).unwrap();
    assert!(net.notices.is_empty(), "{name}/{file}: {:?}", net.notices);
    net.message
}

/// Images of a batch in which operations are counted: the table of `summary` has four digits of them.
const BATCH: i64 = 64;

/// The net without its files: data come as an Input of one size in every net of a model, the batch is `BATCH`.
fn without_files(mut net: NetParameter, image: &[i64]) -> NetParameter {
    for layer in &mut net.layer {
        match layer.r#type() {
            "Data" | "HDF5Data" => {
                let shape = |dims: &[i64]| lgm_proto::BlobShape { dim: dims.to_vec() };
                let images = shape(&[&[BATCH], image].concat());
                layer.r#type = Some("Input".into());
                layer.input_param = Some(InputParameter { shape: vec![images, shape(&[BATCH])] });
                (layer.data_param, layer.hdf5_data_param, layer.transform_param) = (None, None, None);
            }
            "Input" => layer.input_param.as_mut().unwrap().shape[0].dim[0] = BATCH,
            "DummyData" => layer.dummy_data_param.as_mut().unwrap().shape[0].dim[0] = BATCH,
            _ => {}
        }
    }
    net
}

/// What `summary` counts of a net in a phase, and the parameters of its layers by name.
fn summary(net: &NetParameter, phase: &str) -> (Cost, BTreeMap<String, u64>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("net.prototxt"), lgm_proto::to_text(net)).unwrap();
    let table = prints(folder.path(), &["summary", "-model", "net.prototxt", "-phase", phase]);
    let row = Regex::new(r"(?m)^(\S+) +(\S+) +(?:\(.*\)|-)(?: +(\d+))?(?: +(\d+\.\d{4}))?\s*$").unwrap();
    let (mut cost, mut gigaflops, mut by_layer) = (Cost::default(), 0.0, BTreeMap::new());
    for row in row.captures_iter(&table) {
        let params: u64 = row.get(3).map_or(0, |n| n.as_str().parse().unwrap());
        match &row[2] {
            // Its statistics are not learned.
            "BatchNorm" => {}
            "Convolution" | "InnerProduct" => {
                gigaflops += row[4].parse::<f64>().unwrap();
                cost.params += params;
            }
            _ => cost.params += params,
        }
        if params > 0 {
            by_layer.insert(row[1].to_string(), params);
        }
    }
    let sums =
        Regex::new(r"(?m)^parameters: (\d+)(?:, (\d+) of them statistics that layers set by themselves)?$").unwrap();
    let sums = sums.captures(&table).unwrap();
    let sum = |i: usize| sums.get(i).map_or(0, |n| n.as_str().parse::<u64>().unwrap());
    assert_eq!(sum(1) - sum(2), cost.params, "{table}");
    cost.products = (gigaflops * 1e9 / 2.0 / BATCH as f64).round() as u64;
    (cost, by_layer)
}

fn same(what: &str, got: &Cost, want: &Cost) {
    assert_eq!(got.params, want.params, "parameters of {what}");
    let apart = got.products.abs_diff(want.products) as f64 / want.products as f64;
    assert!(apart < 2e-3, "{what}: {} multiply-adds, not {}", got.products, want.products);
}

#[test]
fn each_has_the_parameters_and_operations_of_its_architecture() {
    let nets = nets();
    let folders = fs::read_dir(Path::new(ROOT).join("models")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(folders.filter(|path| path.is_dir()).count(), nets.len(), "nets in models/ that are not in this table");
    let readme = fs::read_to_string(Path::new(ROOT).join("models/README.md")).unwrap();
    for (name, cost, known) in nets {
        assert_eq!(cost.params, known, "{name}");
        let deploy = read(name, "deploy");
        let image = deploy.layer[0].input_param.as_ref().unwrap().shape[0].dim[1..].to_vec();
        let (deployed, layers) = summary(&without_files(deploy, &image), "TEST");
        same(&format!("{name}, deployed"), &deployed, &cost);

        let net = without_files(read(name, "train_val"), &image);
        let (tested, tested_layers) = summary(&net, "TEST");
        same(&format!("{name} in TEST"), &tested, &cost);
        assert_eq!(layers, tested_layers, "{name}: layers that are deployed and tested");
        let mut trained = cost.clone();
        if name == "googlenet" {
            auxiliary(&mut trained);
            assert_eq!(trained.params, 13_378_280);
        }
        same(&format!("{name} in TRAIN"), &summary(&net, "TRAIN").0, &trained);

        let digits = |n: u64| n.to_string().len();
        let grouped: String = known.to_string().char_indices().fold(String::new(), |text, (i, digit)| {
            let comma = i > 0 && (digits(known) - i) % 3 == 0;
            text + if comma { "," } else { "" } + &digit.to_string()
        });
        let row = format!("| `{name}` | {grouped} | {} |", rounded(cost.products));
        assert!(readme.contains(&row), "models/README.md has no row that begins {row}");
    }
}

/// Three digits in millions.
fn rounded(products: u64) -> String {
    let millions = products as f64 / 1e6;
    match millions {
        ..10.0 => format!("{millions:.2}"),
        ..100.0 => format!("{millions:.1}"),
        _ => format!("{millions:.0}"),
    }
}

fn prototxts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("out") || path.ends_with("data") {
            continue; // what an example has made
        }
        if path.is_dir() {
            prototxts(&path, found);
        } else if path.extension().is_some_and(|e| e == "prototxt") {
            found.push(path);
        }
    }
}

/// Solvers name nets that are there, from the root of the repository.
#[test]
fn every_prototxt_is_a_net_or_a_solver_of_one() {
    let root = Path::new(ROOT).canonicalize().unwrap();
    let mut found = Vec::new();
    ["examples", "models"].iter().for_each(|folder| prototxts(&root.join(folder), &mut found));
    assert!(found.len() >= 50, "{found:?}");
    for path in found {
        let old = path.parent().is_some_and(|folder| folder.ends_with("old_net"));
        if path.file_name().unwrap().to_string_lossy().contains("solver") {
            let solver = lgm_proto::read_solver(&path).unwrap();
            assert!(solver.notices.is_empty() != old, "{}: {:?}", path.display(), solver.notices);
            let net = solver.message.net().to_string();
            assert!(root.join(&net).exists(), "{}: no {net}", path.display());
        } else {
            let net = lgm_proto::read_net(&path).unwrap();
            assert!(net.notices.is_empty() != old && net.message.layer.len() > 5, "{}", path.display());
        }
    }
}
