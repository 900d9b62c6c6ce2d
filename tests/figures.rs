//! The commands that draw.

use std::fs;
use std::path::Path;

use lgm_testkit::says;

use crate::util::{fails, prints, run};

const NET: &str = r#"
name: "a \"small\" net"
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { source: "a" batch_size: 64 } }
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST } data_param { source: "b" batch_size: 100 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: AVE kernel_h: 3 kernel_w: 2 pad: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool1" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("net.prototxt"), NET).unwrap();
    folder
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn a_net_is_drawn_as_text_for_graphviz() {
    let folder = folder();
    let folder = folder.path();
    assert_eq!(prints(folder, &["draw_net", "net.prototxt", "net.dot"]), "7 layers and 7 blobs: net.dot\n");
    let all = read(folder, "net.dot");
    says(
        &all,
        &[
            "digraph \"a \\\"small\\\" net\" {\nrankdir=LR;\n",
            "\"mnist_Data\" [label=\"mnist\\n(Data)\", shape=box, fillcolor=\"#6495ED\", style=filled];",
            "\"label_blob\" [label=\"label\", shape=octagon, fillcolor=\"#E0E0E0\", style=filled];",
            "\"conv1_Convolution\" [label=\"conv1\\n(Convolution)\\nkernel size: 5\\nstride: 2\\npad: 0\", shape=box, fillcolor=\"#FF5050\"",
            "\"relu1_ReLU\" [label=\"relu1\\n(ReLU)\", shape=box, fillcolor=\"#90EE90\"",
            "\"pool1_Pooling\" [label=\"pool1\\n(AVE Pooling)\\nkernel size: 3×2\\nstride: 1\\npad: 1\", shape=box, fillcolor=\"#FF9900\"",
            "\"ip_InnerProduct\" [label=\"ip\\n(InnerProduct)\", shape=box, fillcolor=\"#CC33FF\"",
            "\"loss_blob\" [label=\"loss\", shape=ellipse];",
            "\"mnist_Data\" -> \"data_blob\" [label=\"Batch 64\"];",
            "\"mnist_Data\" -> \"data_blob\" [label=\"Batch 100\"];",
            "\"data_blob\" -> \"conv1_Convolution\";\n\"conv1_Convolution\" -> \"conv1_blob\" [label=\"20\"];",
            "\"conv1_blob\" -> \"relu1_ReLU\";\n\"relu1_ReLU\" -> \"conv1_blob\";",
        ],
    );
    let args = ["draw_net", "-rankdir=TB", "-phase", "TRAIN", "--display_lrm", "net.prototxt", "train.gv"];
    assert_eq!(prints(folder, &args), "6 layers and 6 blobs: train.gv\n");
    let train = read(folder, "train.gv");
    assert!(!train.contains("Accuracy") && !train.contains("Batch 100"), "{train}");
    says(&train, &["rankdir=TB;", "conv1 (Convolution)\\nkernel size: 5 stride: 2 pad: 0 lr mult: 1, 2\""]);
}

#[test]
fn a_net_is_drawn_in_every_direction_without_graphviz() {
    let folder = folder();
    let folder = folder.path();
    for direction in ["LR", "TB", "BT", "rl"] {
        prints(folder, &["draw-net", "net.prototxt", "net.svg", "-rankdir", direction]);
        prints(folder, &["draw_net", "net.prototxt", "net.png", "-rankdir", direction]);
        let svg = read(folder, "net.svg");
        let count = |what: &str| svg.matches(what).count();
        // Nodes and arrow heads are polygons; there is nothing else of that shape.
        assert_eq!(count("<polygon"), 14 + 18, "{direction}");
        assert_eq!(count("#FF5050"), 1);
        for text in ["\nconv1\n", "\nBatch 64\n", "\naccuracy\n"] {
            assert!(svg.contains(text) || svg.contains(&text.replace('\n', " ")), "{direction}: {text}");
        }
        let png = image::open(folder.join("net.png")).unwrap();
        let wide = png.width() > png.height();
        assert_eq!(wide, direction.to_uppercase() == "LR" || direction == "rl", "{direction}");
        assert!(svg.contains(&format!("width=\"{}\" height=\"{}\"", png.width(), png.height())));
    }
}

#[test]
fn what_cannot_be_drawn_is_told() {
    let folder = folder();
    let folder = folder.path();
    let draw = |parts: &[&str], args: &[&str]| fails(folder, &[&["draw_net"], args].concat(), parts);
    draw(&["net.pdf: expected a name that ends in .svg, .png, .dot or .gv", "dot -Tpdf"], &["net.prototxt", "net.pdf"]);
    draw(&["none.prototxt"], &["none.prototxt", "net.svg"]);
    draw(&["nowhere/net.svg: cannot create"], &["net.prototxt", "nowhere/net.svg"]);
    fs::write(folder.join("empty.prototxt"), "name: 'empty'").unwrap();
    draw(&["empty.prototxt", "no layers to draw"], &["empty.prototxt", "net.svg"]);
    fs::write(folder.join("bad.prototxt"), "layer { name: 'a' typ: 'ReLU' }").unwrap();
    draw(&["bad.prototxt:1:19", "type"], &["bad.prototxt", "net.svg"]);
    let (output, log) = run(folder, &["draw_net", "net.prototxt", "net.svg", "-rankdir", "UP"]);
    assert_eq!(output.status.code(), Some(2));
    says(&log.join("\n"), &["UP", "LR, TB, BT, RL"]);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 3, "a failed run leaves no file");
}
