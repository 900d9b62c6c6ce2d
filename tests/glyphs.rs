//! From `make-glyphs` through `train` to `plot-features`.

use lgm_testkit::has_simulator;

use crate::util::{command, fails, prints, run, succeeds};

const NET: &str = r#"
name: "small"
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TRAIN }
        hdf5_data_param { source: "data/train.txt" batch_size: 50 shuffle: true scale: 0.00390625 } }
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TEST }
        hdf5_data_param { source: "data/test.txt" batch_size: 50 scale: 0.00390625 } }
layer { name: "hidden" type: "InnerProduct" bottom: "data" top: "hidden"
        inner_product_param { num_output: 20 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "hidden" top: "hidden" }
layer { name: "features" type: "InnerProduct" bottom: "hidden" top: "features"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "lgm" type: "LGMLoss" bottom: "features" bottom: "label" top: "loss" top: "logits"
        lgm_loss_param { num_output: 10 weight_filler { type: "gaussian" std: 2 } bias_filler { value: 1 } } }
layer { name: "accuracy" type: "Accuracy" bottom: "logits" bottom: "label" top: "accuracy" }
layer { name: "linear" type: "InnerProduct" bottom: "features" top: "linear" inner_product_param { num_output: 10 } }
"#;

const SOLVER: &str = r#"
net: "net.prototxt" type: "Adam" base_lr: 0.005 lr_policy: "fixed" momentum: 0.9 max_iter: 150 snapshot: 75 display: 0
random_seed: 1 snapshot_prefix: "small" solver_mode: CPU
"#;

#[test]
fn glyphs_train_a_net_whose_features_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    std::fs::write(folder.join("net.prototxt"), NET).unwrap();
    std::fs::write(folder.join("solver.prototxt"), SOLVER).unwrap();

    let made = ["make-glyphs", "-out", "data", "-train", "1000", "-test=100", "--sheet", "sheet.png"];
    assert!(prints(folder, &made).contains("1000 training images: data/train.txt"));
    assert_eq!(std::fs::read_to_string(folder.join("data/train.txt")).unwrap(), "data/train.h5\n");
    assert!(image::open(folder.join("sheet.png")).is_ok());

    succeeds(folder, &["train", "-solver", "solver.prototxt"]);
    let base = ["plot-features", "-model", "net.prototxt", "-weights", "small_iter_150.caffemodel", "-iterations", "2"];
    let plot = |more: &[&'static str]| base.iter().chain(more).copied().collect::<Vec<_>>();
    let said = prints(folder, &plot(&["-blob", "features", "-out", "features.png"]));
    assert!(said.contains("100 items of 10 classes: features.png"), "{said}");
    let accuracy: f64 = said.lines().find_map(|l| l.strip_prefix("accuracy = ")).unwrap().parse().unwrap();
    assert!(accuracy > 0.3, "a trained net should beat chance (0.1) by far, found {accuracy}");
    let more = [&plot(&["-blob", "features", "-out", "more.png"])[..], &["-iterations", "5"]].concat();
    assert!(prints(folder, &more).contains("250 items of 10 classes, the data 3 times: more.png"));
    let figure = image::open(folder.join("features.png")).unwrap();
    assert_eq!(figure.height(), 1000);

    // The same on a device, of which the picture tells as little as the numbers do.
    if has_simulator() {
        let args = plot(&["-blob", "features", "-out", "gpu.png", "-gpu", "0"]);
        let output = command(folder, &args).env("LGM_GPU", "sim").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && log.contains("simulated GPU") && !log.contains("Use CPU"), "{log}");
        let on_gpu = String::from_utf8(output.stdout).unwrap();
        let numbers =
            |said: &str| -> Vec<f64> { said.lines().filter_map(|l| l.split_once(" = ")?.1.parse().ok()).collect() };
        let (want, got) = (numbers(&said), numbers(&on_gpu));
        assert!(want.len() == 2 && got.len() == 2, "{said}{on_gpu}");
        want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 1e-3 * w.abs(), "{said}{on_gpu}"));
        assert!(image::open(folder.join("gpu.png")).is_ok());
    }

    for (more, expected) in [
        (["-blob", "feature", "-out", "f.png"].as_slice(), "no blob 'feature'"),
        (&["-blob", "hidden", "-out", "f.png"], "have 2 values, the features of blob 'hidden' have 20"),
        (&["-blob", "features", "-out", "f.png", "-classifier", "lgn"], "did you mean 'lgm'?"),
        (&["-blob", "features", "-out", "f.png", "-classifier", "relu"], "no parameters"),
        (&["-blob", "features", "-out", "f.png", "-label", "data"], "one label an item"),
        (&["-blob", "features", "-out", "none/f.png"], "none/f.png"),
        (&["-blob", "features", "-out", "f.png", "-label", "lable"], "no blob 'lable'"),
        (&["-blob", "features", "-out", "f.pdf"], "ends in .png or .svg"),
        (&["-blob", "data", "-classifier", "hidden", "-map", "-out", "f.png"], "those of blob 'data' have 784"),
        (&["-blob", "features", "-classifier", "linear", "-map", "-out", "f.png"], "'linear' does not model classes"),
    ] {
        fails(folder, &plot(more), &[expected]);
    }
    assert!(!folder.join("f.png").exists());
    let (output, log) = run(folder, &plot(&["-blob", "features", "-movie", "-out", "f.svg"]));
    assert!(output.status.code() == Some(2) && log.concat().contains("animated PNG"), "{log:?}");

    // The likelihood behind the features, as shapes.
    prints(folder, &plot(&["-blob", "features", "-map", "-out", "map.svg"]));
    let map = std::fs::read_to_string(folder.join("map.svg")).unwrap();
    let plain = plot(&["-blob", "features", "-out", "plain.svg"]);
    prints(folder, &plain);
    let without = std::fs::read_to_string(folder.join("plain.svg")).unwrap();
    assert!(map.contains("peak − 2") && !without.contains("peak"));
    assert!(map.matches("<rect").count() > without.matches("<rect").count() + 100);

    // A figure for each of two snapshots, over the training data, of which no test data are a part.
    std::fs::remove_file(folder.join("data/test.txt")).unwrap();
    let both = "small_iter_75.caffemodel,small_iter_150.caffemodel";
    let movie = ["plot-features", "-model", "net.prototxt", "-weights", both, "-iterations", "2", "-phase", "TRAIN"];
    let said = prints(folder, &[&movie[..], &["-blob", "features", "-movie", "-out", "movie.png"]].concat());
    assert!(
        said.contains("2 snapshots: movie.png") && said.contains("small_iter_75.caffemodel: accuracy = "),
        "{said}"
    );
    let file = std::io::BufReader::new(std::fs::File::open(folder.join("movie.png")).unwrap());
    let mut frames = png::Decoder::new(file).read_info().unwrap();
    assert_eq!(frames.info().animation_control().unwrap().num_frames, 2);
    let mut images = [vec![0; frames.output_buffer_size().unwrap()], vec![0; frames.output_buffer_size().unwrap()]];
    for image in &mut images {
        frames.next_frame(image).unwrap();
    }
    assert!(images[0] != images[1], "the movie stands still");
    fails(folder, &plain, &["data/test.txt"]);
}
