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

/// The log of a training with a test net, a display of 100 iterations and a test each 200.
fn log(scale: f64) -> String {
    let mut log = "Log file created at: 2026/11/27 10:00:00\n".to_string();
    let mut line = |second: i64, text: &str| {
        log += &format!("I1127 10:00:{second:02}.000000  77 solver.cpp:1] {text}\n");
    };
    line(0, "Solving net");
    for i in 0..6 {
        let value = scale / f64::from(i + 1);
        let second = i64::from(i) * 2;
        if i % 2 == 0 {
            line(second, &format!("Iteration {}, Testing net (#0)", 100 * i));
            line(second, &format!("    Test net output #0: accuracy = {}", 1.0 - value / 10.0));
            line(second, &format!("    Test net output #1: loss = {value} (* 1 = {value} loss)"));
        }
        line(second, &format!("Iteration {}, loss = {value}", 100 * i));
        line(second, &format!("    Train net output #0: main = {} (* 1 = {value} loss)", value * 2.0));
        line(second, &format!("Iteration {}, lr = {}", 100 * i, 0.1 * value));
    }
    log
}

#[test]
fn every_chart_type_draws_a_curve_for_each_log() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("first.log"), log(2.0)).unwrap();
    fs::write(folder.join("second"), log(1.0)).unwrap();
    let titles = [
        ("Test accuracy vs. Iters", 6),
        ("Test accuracy vs. Seconds", 6),
        ("Test loss vs. Iters", 6),
        ("Test loss vs. Seconds", 6),
        ("Train learning rate vs. Iters", 12),
        ("Train learning rate vs. Seconds", 12),
        ("Train loss vs. Iters", 12),
        ("Train loss vs. Seconds", 12),
    ];
    for (i, (title, points)) in titles.iter().enumerate() {
        let number = i.to_string();
        let told = prints(folder, &["plot_training_log", &number, "chart.svg", "first.log", "second"]);
        assert_eq!(told, format!("{title}: 2 curves of {points} points: chart.svg\n"));
        let svg = read(folder, "chart.svg");
        for text in [*title, "first", "second", title.rsplit(' ').next().unwrap()] {
            assert!(svg.contains(&format!("\n{text}\n")), "{title}: {text}");
        }
    }
    prints(folder, &["plot-training-log", "6", "chart.png", "first.log"]);
    let png = image::open(folder.join("chart.png")).unwrap().to_rgb8();
    let blue = png.pixels().filter(|p| p.0 == [0, 114, 178]).count();
    assert!(blue > 500, "{blue} pixels of the first curve");
    let smooth = ["plot_training_log", "6", "smooth.svg", "first.log", "-smooth", "3", "-output=main"];
    assert_eq!(prints(folder, &smooth), "Train loss vs. Iters: 1 curve of 6 points: smooth.svg\n");
}

#[test]
fn logs_that_cannot_be_drawn_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("a.log"), log(1.0)).unwrap();
    fs::write(folder.join("other.log"), "no training\n").unwrap();
    let plot = |args: &[&str], parts: &[&str]| fails(folder, &[&["plot_training_log"], args].concat(), parts);
    plot(&["6", "chart.pdf", "a.log"], &["chart.pdf", "ends in .png or .svg"]);
    plot(&["6", "chart.svg", "none.log"], &["none.log"]);
    plot(&["6", "chart.svg", "other.log"], &["other.log", "expected the log of a training"]);
    plot(
        &["0", "chart.svg", "a.log", "-output", "top5"],
        &["a.log: the test net logged no output 'top5'", "accuracy, loss"],
    );
    plot(&["4", "chart.svg", "a.log", "-output", "loss"], &["a.log: the learning rate is no output"]);
    let (output, log) = run(folder, &["plot_training_log", "8", "chart.svg", "a.log"]);
    assert_eq!(output.status.code(), Some(2));
    says(&log.join("\n"), &["0: Test accuracy vs. Iters", "7: Train loss vs. Seconds"]);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
}
