//! How many nodes the recorded iteration of each benchmark net has, counted on the fake GPU, which computes nothing for it:
//! `scripts/fake-gpu cargo test -p lgm-caffe --test integration -- graph_nodes::`. BENCHMARKS.md has the numbers; a change that launches more
//! or fewer kernels changes its table.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lgm_core::Shape;
use lgm_testkit::skipped;

use crate::util::command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Nets of `models/` as `scripts/bench` takes them, what they are called in the table, their batches and images.
const NETS: [(&str, &str, usize, [usize; 3]); 4] = [
    ("lenet", "LeNet", 64, [1, 28, 28]),
    ("cifar100_simple", "the paper's CIFAR-100 net", 128, [3, 32, 32]),
    ("resnet18", "ResNet-18, 224×224", 64, [3, 224, 224]),
    ("resnet50", "ResNet-50, 224×224", 64, [3, 224, 224]),
];

fn from_python(expression: &str) -> String {
    let program = format!("import models; print({expression})");
    let mut python = Command::new("python3");
    let output =
        python.args(["-B", "-c", &program]).current_dir(format!("{ROOT}/scripts/benchmarks")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A solver for a net, and a batch for it.
fn prepare(folder: &Path, net: &str, batch: usize, [channels, height, width]: [usize; 3]) {
    let images = Shape::from([batch, channels, height, width]);
    let (pixels, labels) = (vec![0.0; images.count()], vec![0.0; batch]);
    let blobs = [("data", &images, &pixels[..]), ("label", &Shape::from([batch]), &labels[..])];
    lgm_data::hdf5::write_f32(folder.join("data.h5"), &blobs).unwrap();
    fs::write(folder.join("list.txt"), "data.h5\n").unwrap();
    fs::write(folder.join("net.prototxt"), from_python(&format!("models.train('{net}', {batch})"))).unwrap();
    fs::write(folder.join("solver.prototxt"), from_python(&format!("models.solver('{net}')"))).unwrap();
}

/// The nodes of an iteration's graph.
fn nodes(folder: &Path, precision: &str) -> u64 {
    let args = ["time", "-solver", "solver.prototxt", "-iterations", "1", "-gpu", "0", "-precision", precision];
    let output = command(folder, &args).envs([("FAKE_GPU_DRY", "1"), ("FAKE_GPU_STATS", "1")]).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let graphs = said.lines().filter_map(|line| line.strip_prefix("fake GPU: a graph of ")?.strip_suffix(" nodes"));
    graphs.map(|nodes| nodes.parse().unwrap()).max().unwrap_or_else(|| panic!("nothing was recorded: {said}"))
}

#[test]
fn nodes_are_those_of_the_table() {
    if std::env::var_os("LGM_FAKE_GPU").is_none() {
        skipped("fake-gpu", "scripts/fake-gpu runs this test on a fake GPU");
        return;
    }
    let rows = NETS.map(|(net, name, batch, image)| {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path(), net, batch, image);
        let [tf32, bf16] = ["tf32", "bf16"].map(|precision| nodes(folder.path(), precision));
        format!("| {name} | {batch} | {tf32} | {bf16} |")
    });
    let table = fs::read_to_string(PathBuf::from(ROOT).join("BENCHMARKS.md")).unwrap();
    let rows = rows.join("\n");
    assert!(table.contains(&rows), "BENCHMARKS.md has other numbers of nodes than are counted now:\n{rows}");
}
