//! `fold`, `likelihood` and `adversarial`, over nets trained on glyphs.

use std::fs;
use std::path::Path;

use lgm_core::{Phase, Step};
use lgm_data::hdf5::H5File;
use lgm_net::{Keep, Net, Options};

use crate::util::{fails, prints, registry, run, succeeds};

const DATA: &str = r#"
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TRAIN }
        hdf5_data_param { source: "data/train.txt" batch_size: 50 shuffle: true scale: 0.00390625 } }
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TEST }
        hdf5_data_param { source: "data/test.txt" batch_size: 50 scale: 0.00390625 } }
"#;

/// Two numbers an image.
const PLAIN: &str = r#"
layer { name: "hidden" type: "InnerProduct" bottom: "data" top: "hidden"
        inner_product_param { num_output: 20 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "hidden" top: "hidden" }
layer { name: "features" type: "InnerProduct" bottom: "hidden" top: "features"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"#;

const LGM: &str = r#"
layer { name: "lgm" type: "LGMLoss" bottom: "features" bottom: "label" top: "loss" top: "logits"
        lgm_loss_param { num_output: 10 weight_filler { type: "gaussian" std: 2 } bias_filler { value: 1 } center_coef: 0.1 } }
layer { name: "accuracy" type: "Accuracy" bottom: "logits" bottom: "label" top: "accuracy" }
"#;

const DISTANCE: &str = r#"
layer { name: "distance" type: "ClassDistance" bottom: "features" bottom: "label" top: "logits"
        class_distance_param { num_output: 10 weight_filler { type: "gaussian" std: 2 } bias_filler { value: 1 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "logits" bottom: "label" top: "loss" }
"#;

const SOFTMAX: &str = r#"
layer { name: "logits" type: "InnerProduct" bottom: "features" top: "logits"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "logits" bottom: "label" top: "loss" }
"#;

const SOLVER: &str = r#"
net: "net.prototxt" type: "Adam" base_lr: 0.005 lr_policy: "fixed" momentum: 0.9 max_iter: 100 display: 0
random_seed: 1 snapshot_prefix: "net" solver_mode: CPU
"#;

const WEIGHTS: &str = "net_iter_100.caffemodel";

/// A folder with digits and a net trained on them.
fn trained(head: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    prints(folder, &["make-glyphs", "-out", "data", "-train", "1000", "-test", "200"]);
    fs::write(folder.join("net.prototxt"), format!("name: 'small' {DATA}{PLAIN}{head}")).unwrap();
    fs::write(folder.join("solver.prototxt"), SOLVER).unwrap();
    succeeds(folder, &["train", "-solver", "solver.prototxt"]);
    dir
}

fn args<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command, "-model", "net.prototxt", "-weights", WEIGHTS, "-iterations", "4"][..], more].concat()
}

/// The number after a text in what was printed.
fn number(said: &str, before: &str) -> f64 {
    let rest = said.split(before).nth(1).unwrap_or_else(|| panic!("no {before:?} in {said}"));
    rest.split([' ', '\n', ';']).next().unwrap().parse().unwrap()
}

/// A net built in this process, with its weights.
fn net(folder: &Path, prototxt: &str, weights: &str, extra: &str) -> Net {
    let text =
        fs::read_to_string(folder.join(prototxt)).unwrap().replace("data/t", &format!("{}/data/t", folder.display()));
    let path = folder.join("absolute.prototxt");
    fs::write(&path, text + extra).unwrap();
    for list in ["train", "test"] {
        fs::write(folder.join(format!("data/{list}.txt")), format!("{}/data/{list}.h5\n", folder.display())).unwrap();
    }
    let parsed = lgm_proto::read_net(&path).unwrap();
    let options = Options { keep: Keep::All, ..Options::new(Phase::Test, 1) };
    let mut net = Net::new(&parsed.message, &parsed.positions, &registry(), &options).unwrap();
    net.load_weights(folder.join(weights)).unwrap();
    net
}

#[test]
fn a_folded_net_gives_the_same_probabilities() {
    for head in [LGM, DISTANCE] {
        let dir = trained(head);
        let folder = dir.path();
        let fold = ["fold", "-model", "net.prototxt", "-weights", WEIGHTS, "-out", "deploy"];
        let said = prints(folder, &fold);
        assert!(said.contains("data: (1, 1, 28, 28), prepared as in training: times 0.00390625"), "{said}");
        let text = fs::read_to_string(folder.join("deploy.prototxt")).unwrap();
        assert!(!text.contains("LGM") && !text.contains("ClassDistance") && !text.contains("HDF5Data"), "{text}");

        let softmax = "layer { name: 'p' type: 'Softmax' bottom: 'logits' top: 'p' }";
        let mut original = net(folder, "net.prototxt", WEIGHTS, softmax);
        original.forward(&Step { seed: 0, iter: 0, batch: 0 }).unwrap();
        let (data, wanted) = (original.blob("data").unwrap().1, original.blob("p").unwrap().1);
        let mut deployed = net(folder, "deploy.prototxt", "deploy.caffemodel", "");
        for (image, wanted) in data.chunks(28 * 28).zip(wanted.chunks(10)) {
            deployed.set_blob("data", image).unwrap();
            deployed.forward(&Step { seed: 0, iter: 0, batch: 0 }).unwrap();
            let found = deployed.blob("prob").unwrap().1;
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-5, "{found} for {wanted}");
            }
        }
    }
}

#[test]
fn what_cannot_be_folded_is_refused() {
    let dir = trained(&LGM.replace("center_coef: 0.1", "update_sigma: true"));
    let fold = ["fold", "-model", "net.prototxt", "-weights", WEIGHTS, "-out", "deploy"];
    fails(dir.path(), &fold, &["layer 'lgm': classes 0 and 1 have different variances", "update_sigma: false"]);
    fails(dir.path(), &[&fold[..], &["-classifier", "hidden"]].concat(), &["layer 'hidden'", "not linear"]);
    assert!(!dir.path().join("deploy.prototxt").exists());
}

#[test]
fn likelihoods_are_calibrated_on_clean_data_and_tell_others() {
    let dir = trained(LGM);
    let folder = dir.path();
    prints(folder, &["make-glyphs", "-out", "other", "-train", "1", "-test", "200", "--letters"]);
    let calibrated =
        prints(folder, &args("likelihood", &["-calibrate", "0.05", "-threshold-file", "t", "-out", "c.csv"]));
    assert_eq!(number(&calibrated, "200 items\naccuracy = "), number(&calibrated, "accuracy = "));
    let abnormal =
        |said: &str| said.lines().find_map(|l| l.split_once(" abnormal items")?.0.parse::<u32>().ok()).unwrap();
    assert_eq!(abnormal(&calibrated), 10);
    let csv = fs::read_to_string(folder.join("c.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let header =
        ["item", "label", "class", "probability", "log_likelihood_class", "log_likelihood_mixture", "abnormal"];
    assert_eq!((rows.len(), &rows[0][..]), (201, &header[..]));
    assert_eq!(rows.iter().filter(|row| row[6] == "1").count(), 10);

    // The label of a letter may be no class of the net.
    let other = args("likelihood", &["-threshold_file=t", "-source", "other/test.txt", "--out", "o.h5"]);
    let said = prints(folder, &other);
    let file = H5File::open(folder.join("o.h5")).unwrap();
    let column = |name: &str| file.dataset(name).unwrap().read().unwrap().into_f32();
    assert_eq!(column("abnormal").iter().sum::<f32>() as u32, abnormal(&said));
    let threshold = number(&fs::read_to_string(folder.join("t")).unwrap(), "\nthreshold: ") as f32;
    let likelihoods = column("log_likelihood_mixture");
    assert_eq!(likelihoods.len(), 200);
    for (likelihood, verdict) in likelihoods.iter().zip(column("abnormal")) {
        assert_eq!(verdict == 1.0, *likelihood < threshold, "{likelihood} against {threshold}");
    }

    let likelihood = |more: &[&str], expected: &[&str]| {
        fails(folder, &args("likelihood", more), expected);
    };
    likelihood(&["-threshold_file", "none"], &["none", "-calibrate RATE"]);
    likelihood(&["-threshold_file", "t2", "-calibrate", "0.001"], &["at least 1000 items to calibrate, found 200"]);
    likelihood(&["-classifier", "hidden"], &["layer 'hidden'", "does not model classes as Gaussians"]);
    likelihood(&["-classifier", "lgn"], &["did you mean 'lgm'?"]);
    likelihood(&["-source", "nowhere.txt"], &["nowhere.txt"]);
    fs::write(folder.join("bad"), "threshold: x\n").unwrap();
    likelihood(&["-threshold_file", "bad"], &["bad", "line 1", "expected a number, found 'x'"]);
    let three = "threshold: 1\nfalse_positive_rate: 0.1\nitems: 9\nclasses: 10\nfeatures: 3\n";
    fs::write(folder.join("three"), three).unwrap();
    likelihood(&["-threshold_file", "three"], &["10 classes and 3 features, the net's has 10 and 2"]);
    assert!(!folder.join("t2").exists());
    for more in [&["-out", "x.txt"][..], &["-calibrate", "0.1"], &["-calibrate", "1", "-threshold_file", "t3"]] {
        let (output, log) = run(folder, &args("likelihood", more));
        assert_eq!(output.status.code(), Some(2), "{more:?}: {log:?}");
    }
}

#[test]
fn attacks_are_written_and_lower_the_accuracy() {
    for head in [LGM, SOFTMAX] {
        let dir = trained(head);
        let folder = dir.path();
        let out = ["-epsilon", "0.05,0.2", "-out", "attacked", "-range", "0,1"];
        let said = prints(folder, &args("adversarial", &out));
        let accuracy = |name: &str| number(&said, &format!("{name}: accuracy = "));
        assert!(accuracy("fgsm_0.05") < accuracy("clean") && accuracy("fgsm_0.2") < 0.2, "{said}");
        let stronger = prints(folder, &args("adversarial", &["-epsilon", "0.05", "-steps", "5"]));
        assert!(number(&stronger, "pgd5_0.05: accuracy = ") <= accuracy("fgsm_0.05"), "{stronger}{said}");
        assert_eq!(said.contains("AUC by likelihood = "), head == LGM, "{said}");
        assert!(said.contains("AUC by largest probability = ") && said.contains("AUC by kernel density = "), "{said}");

        // What was written lies within epsilon of the clean inputs, and is read back to the same accuracy.
        let read =
            |path: &str| H5File::open(folder.join(path)).unwrap().dataset("data").unwrap().read().unwrap().into_f32();
        let (clean, attacked) = (read("data/test.h5"), read("attacked/fgsm_0.05.h5"));
        assert_eq!(clean.len(), attacked.len());
        for (x, y) in clean.iter().zip(&attacked) {
            assert!((x / 256.0 - y).abs() < 0.05 + 1e-6 && (0.0..=1.0).contains(y), "{x} became {y}");
        }
        let model = fs::read_to_string(folder.join("net.prototxt")).unwrap();
        let model = model.replace("data/test.txt", "attacked/fgsm_0.05.txt").replace("scale: 0.00390625", "");
        fs::write(folder.join("net.prototxt"), model).unwrap();
        let again = prints(folder, &args("adversarial", &["-against", "attacked/fgsm_0.2.txt"]));
        assert_eq!(number(&again, "clean: accuracy = "), accuracy("fgsm_0.05"), "{again}{said}");
        let points = fs::read_to_string(folder.join("attacked/roc.csv")).unwrap();
        assert!(points.contains("\"fgsm_0.2\",largest probability,"), "{points}");
        assert_eq!(image::open(folder.join("attacked/roc.png")).unwrap().height(), 900);

        let adversarial = |more: &[&str], expected: &[&str]| {
            fails(folder, &args("adversarial", more), expected);
        };
        adversarial(&["-epsilon", "0.1", "-input", "dat"], &["did you mean 'data'?"]);
        adversarial(&["-against", "none.txt"], &["none.txt"]);
        for more in [&[][..], &["-epsilon", "2"], &["-epsilon", "0.1", "-range", "1,0"]] {
            let (output, log) = run(folder, &args("adversarial", more));
            assert_eq!(output.status.code(), Some(2), "{more:?}: {log:?}");
        }
        if head == SOFTMAX {
            let likelihood = ["likelihood", "-model", "net.prototxt", "-weights", WEIGHTS];
            fails(folder, &likelihood, &["no LGMLoss or ClassDistance layer", "models no likelihood"]);
        }
    }
}

/// Three small convolutions, and 32 numbers an image.
const DEEP: &str = r#"
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 8 kernel_size: 5 pad: 2 bias_term: false weight_filler { type: "msra" } } }
layer { name: "n1" type: "BatchNorm" bottom: "c1" top: "c1" batch_norm_param { moving_average_fraction: 0.97 } }
layer { name: "s1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2" convolution_param { num_output: 16 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "msra" } } }
layer { name: "n2" type: "BatchNorm" bottom: "c2" top: "c2" batch_norm_param { moving_average_fraction: 0.97 } }
layer { name: "s2" type: "Scale" bottom: "c2" top: "c2" scale_param { bias_term: true } }
layer { name: "r2" type: "ReLU" bottom: "c2" top: "c2" }
layer { name: "p2" type: "Pooling" bottom: "c2" top: "p2" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "c3" type: "Convolution" bottom: "p2" top: "c3" convolution_param { num_output: 32 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "msra" } } }
layer { name: "n3" type: "BatchNorm" bottom: "c3" top: "c3" batch_norm_param { moving_average_fraction: 0.97 } }
layer { name: "s3" type: "Scale" bottom: "c3" top: "c3" scale_param { bias_term: true } }
layer { name: "r3" type: "ReLU" bottom: "c3" top: "c3" }
layer { name: "p3" type: "Pooling" bottom: "c3" top: "p3" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "digest" type: "InnerProduct" bottom: "p3" top: "digest" inner_product_param { num_output: 128 bias_term: false weight_filler { type: "msra" } } }
layer { name: "n4" type: "BatchNorm" bottom: "digest" top: "digest" batch_norm_param { moving_average_fraction: 0.97 } }
layer { name: "s4" type: "Scale" bottom: "digest" top: "digest" scale_param { bias_term: true } }
layer { name: "r4" type: "ReLU" bottom: "digest" top: "digest" }
layer { name: "features" type: "InnerProduct" bottom: "digest" top: "features" inner_product_param { num_output: 32 weight_filler { type: "xavier" } } }
"#;

const DEEP_LGM: &str = r#"
layer { name: "lgm" type: "LGMLoss" bottom: "features" bottom: "label" top: "loss" top: "logits"
        param { lr_mult: 5 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }
        lgm_loss_param { num_output: 10 weight_filler { type: "gaussian" std: 1 } bias_filler { value: 1 }
                         margin_mul { policy: CONSTANT value: 0.3 } center_coef: 0.2 } }
"#;

const DEEP_SOLVER: &str = r#"
net: "net.prototxt" type: "Nesterov" base_lr: 0.02 lr_policy: "multistep" gamma: 0.1 stepvalue: 175 stepvalue: 225
momentum: 0.9 weight_decay: 0.0005 max_iter: 250 display: 0 random_seed: 41 snapshot_prefix: "net" solver_mode: CPU
"#;

/// The claim of the L-GM paper, in small: on data drawn with seeds that its settings were not chosen with (those were 11 to 13
/// and 21 to 23). With 2 features instead of 32, as in the quickstart, so short a training does not reach it: letters were told
/// with an area of 0.62.
#[test]
fn a_mixtures_likelihood_tells_what_a_softmax_does_not() {
    const IMAGES: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let images = IMAGES.to_string();
    prints(folder, &["make-glyphs", "-out", "data", "-train", "6000", "-test", &images, "-seed", "101"]);
    prints(folder, &["make-glyphs", "-out", "letters", "-train", "1", "-test", &images, "-seed", "102", "-letters"]);
    let mut random = lgm_core::rng::Philox::new(103, 7).from(0);
    let noise: Vec<f32> = (0..IMAGES * 28 * 28).map(|_| random.uniform(0.0, 256.0).floor() as f32).collect();
    let (shape, labels) = (lgm_core::Shape::from([IMAGES, 1, 28, 28]), lgm_core::Shape::from([IMAGES]));
    let all = [("data", &shape, &noise[..]), ("label", &labels, &[0.0; IMAGES])];
    lgm_data::hdf5::write_f32(folder.join("noise.h5"), &all).unwrap();
    fs::write(folder.join("noise.txt"), "noise.h5\n").unwrap();
    fs::write(folder.join("solver.prototxt"), DEEP_SOLVER).unwrap();

    let data = DATA.replace("batch_size: 50", "batch_size: 100");
    let areas = |head: &str, score: &str| {
        fs::write(folder.join("net.prototxt"), format!("name: 'deep' {data}{DEEP}{head}")).unwrap();
        succeeds(folder, &["train", "-solver", "solver.prototxt"]);
        ["letters/test.txt", "noise.txt"].map(|source| {
            let net = ["-model", "net.prototxt", "-weights", "net_iter_250.caffemodel", "-iterations", "6"];
            let said = prints(folder, &[&["adversarial"][..], &net, &["-against", source]].concat());
            assert!(number(&said, "clean: accuracy = ") > 0.9, "{said}");
            number(&said, &format!("AUC by {score} = "))
        })
    };
    let likelihood = areas(DEEP_LGM, "likelihood");
    let probability = areas(SOFTMAX, "largest probability");
    for (likelihood, probability) in likelihood.into_iter().zip(probability) {
        assert!(likelihood > 0.95 && likelihood > probability, "{likelihood} by likelihood, {probability} by softmax");
    }
}
