//! `classify`: the classes a net finds in images.

use std::fs;
use std::path::Path;

use lgm_core::Phase;
use lgm_net::{Net, Options};
use lgm_proto::prost::Message;
use lgm_proto::{BlobProto, BlobShape};
use lgm_testkit::says;

use crate::util::{fails, prints, registry, run};

/// Scores are the softmax of the channels' means.
const DEPLOY: &str = "
layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 4 dim: 3 dim: 4 dim: 4 } } }
layer { name: 'pool' type: 'Pooling' bottom: 'data' top: 'pool' pooling_param { pool: AVE kernel_size: 4 } }
layer { name: 'prob' type: 'Softmax' bottom: 'pool' top: 'prob' }
";

/// A folder with a net, weights, labels, and an image of 8 x 8 pixels: red 11, green 12, blue 10, on the right 2, 0, 6 more.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("deploy.prototxt"), DEPLOY).unwrap();
    let parsed = lgm_proto::read_net(at("deploy.prototxt")).unwrap();
    let net = Net::new(&parsed.message, &parsed.positions, &registry(), &Options::new(Phase::Test, 1)).unwrap();
    net.write_weights(&at("net.caffemodel"), false).unwrap();
    fs::write(at("labels.txt"), "n1 blue\nn2 green\nn3 red, or so\n").unwrap();
    let pixel = |x: usize| if x < 4 { [11, 12, 10] } else { [13, 12, 16] };
    let pixels: Vec<u8> = (0..64).flat_map(|i| pixel(i % 8)).collect();
    fs::create_dir(at("images")).unwrap();
    image::save_buffer(at("images/b.png"), &pixels, 8, 8, image::ColorType::Rgb8).unwrap();
    let plain: Vec<u8> = (0..64).flat_map(|_| pixel(0)).collect();
    image::save_buffer(at("images/a.png"), &plain, 8, 8, image::ColorType::Rgb8).unwrap();
    folder
}

fn mean(path: &Path, shape: [i64; 4], values: impl Fn(usize) -> f32) {
    let count = shape.iter().product::<i64>() as usize;
    let blob = BlobProto {
        shape: Some(BlobShape { dim: shape.to_vec() }),
        data: (0..count).map(values).collect(),
        ..Default::default()
    };
    fs::write(path, blob.encode_to_vec()).unwrap();
}

fn softmax(logits: [f64; 3]) -> [f64; 3] {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.map(|x| x.exp() / sum)
}

const NET: [&str; 4] = ["-model", "deploy.prototxt", "-weights", "net.caffemodel"];

#[test]
fn five_words_print_what_caffes_program_prints() {
    let folder = folder();
    let folder = folder.path();
    // Each channel's mean counts, whatever the size and however it is spread.
    mean(&folder.join("mean.binaryproto"), [1, 3, 1, 2], |i| [10.0, 11.0, 11.5][i / 2] + [-1.0, 1.0][i % 2]);
    let words = ["classify", "deploy.prototxt", "net.caffemodel", "mean.binaryproto", "labels.txt", "images/a.png"];
    let [blue, green, red] = softmax([0.0, 1.0, -0.5]);
    let text = format!(
        "---------- Prediction for images/a.png ----------\n{green:.4} - \"n2 green\"\n{blue:.4} - \"n1 blue\"\n\
         {red:.4} - \"n3 red, or so\"\n"
    );
    assert_eq!(prints(folder, &words), text);
}

#[test]
fn folders_patterns_and_flags() {
    let folder = folder();
    let folder = folder.path();
    let classify = |more: &[&str]| prints(folder, &[&["classify"], &NET[..], more].concat());
    let [blue, green, red] = softmax([0.0, 2.0, 1.0]);
    let csv = classify(&["-mean_value", "10", "-format", "csv", "-top", "2", "images"]);
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("image,rank,class,label,score"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(
        rows.iter().map(|row| row[0]).collect::<Vec<_>>(),
        ["images/a.png", "images/a.png", "images/b.png", "images/b.png"]
    );
    assert_eq!(rows[0][1..4], ["1", "1", "1"]);
    assert!(
        (rows[0][4].parse::<f64>().unwrap() - green).abs() < 1e-6
            && (rows[1][4].parse::<f64>().unwrap() - red).abs() < 1e-6
    );

    let json = classify(&["-mean_value=10,11,10", "-scale=-1", "-labels", "labels.txt", "-format=json", "images/[a]*"]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1);
    let best = &found[0]["predictions"][0];
    let [want, ..] = softmax([0.0, -1.0, -1.0]);
    assert_eq!((best["label"].as_str(), best["class"].as_u64()), (Some("n1 blue"), Some(0)));
    assert!((best["score"].as_f64().unwrap() - want).abs() < 1e-6, "{json}");
    assert!(blue < green);
}

#[test]
fn ten_crops_are_averaged() {
    let folder = folder();
    let folder = folder.path();
    let args = ["-mean_value", "10", "-oversample", "-images_dim", "8,8", "-format", "json", "images/b.png"];
    let json = prints(folder, &[&["classify"], &NET[..], &args].concat());
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    // Of corners two lie on the left and two on the right; the middle has as much of both.
    let (left, right, middle) = (softmax([0.0, 2.0, 1.0]), softmax([6.0, 2.0, 3.0]), softmax([3.0, 2.0, 2.0]));
    for prediction in found[0]["predictions"].as_array().unwrap() {
        let class = prediction["class"].as_u64().unwrap() as usize;
        let want = (4.0 * left[class] + 4.0 * right[class] + 2.0 * middle[class]) / 10.0;
        assert!((prediction["score"].as_f64().unwrap() - want).abs() < 1e-6, "{class}: {json}");
    }
}

#[test]
fn a_mean_image_is_taken_off_pixel_by_pixel() {
    let folder = folder();
    let folder = folder.path();
    // The mean of each half is the half's own blue.
    mean(&folder.join("mean.binaryproto"), [1, 3, 4, 4], |i| if i % 4 < 2 { 10.0 } else { 16.0 });
    let half = [0.0, (2.0 - 4.0) / 2.0, (1.0 - 3.0) / 2.0];
    let args = ["-mean", "mean.binaryproto", "-mean_image", "-top", "1", "images/b.png"];
    let text = prints(folder, &[&["classify"], &NET[..], &args].concat());
    says(&text, &[&format!("{:.4} - \"0\"", softmax(half)[0])]);
    mean(&folder.join("mean.binaryproto"), [1, 3, 8, 8], |_| 0.0);
    let args = [&["classify"], &NET[..], &args].concat();
    fails(folder, &args, &["mean.binaryproto", "the mean image is 3 x 8 x 8, expected 3 x 4 x 4"]);
}

#[test]
fn one_bad_image_does_not_keep_the_others_from_being_classified() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("images/aa.jpg"), "no image").unwrap();
    let (output, log) = run(folder, &[&["classify"], &NET[..], &["images"]].concat());
    assert_eq!(output.status.code(), Some(1));
    says(&log.join("\n"), &["images/aa.jpg: the image cannot be decoded"]);
    says(&String::from_utf8(output.stdout).unwrap(), &["images/a.png -", "images/b.png -"]);
    let (output, _) = run(folder, &[&["classify"], &NET[..], &["-format=json", "images"]].concat());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let erring: Vec<_> = found.as_array().unwrap().iter().filter(|image| image.get("error").is_some()).collect();
    assert_eq!((found.as_array().unwrap().len(), erring.len()), (3, 1));
}

#[test]
fn what_does_not_fit_together_is_told() {
    let folder = folder();
    let folder = folder.path();
    let errs = |more: &[&str], parts: &[&str]| {
        fails(folder, &[&["classify"], &NET[..], more].concat(), parts);
    };
    fs::write(folder.join("two.txt"), "a\nb\n").unwrap();
    errs(&["-labels", "two.txt", "images/a.png"], &["two.txt: has 2 labels", "scores of 3 classes"]);
    mean(&folder.join("gray.binaryproto"), [1, 1, 4, 4], |_| 0.0);
    errs(
        &["-mean", "gray.binaryproto", "images/a.png"],
        &["gray.binaryproto", "the mean image is 1 x 4 x 4, expected 3 channels"],
    );
    errs(&["-mean_value", "1,2", "images/a.png"], &["expected 1 mean value, or 3", "found 2"]);
    errs(&["-oversample", "-images_dim", "3,9", "images/a.png"], &["crops of 4 x 4", "images of 3 x 9"]);
    errs(&["-blob", "probs", "images/a.png"], &["probs", "prob"]);
    errs(&["images/*.bmp"], &["no file is named like 'images/*.bmp'"]);
    fs::create_dir(folder.join("empty")).unwrap();
    errs(&["empty"], &["empty: has no files that end in .jpg"]);
    fails(folder, &["classify", "images/a.png"], &["expected -model and -weights", "deploy.prototxt net.caffemodel"]);
    fs::write(folder.join("train.prototxt"), crate::util::NET).unwrap();
    let train = ["classify", "-model", "train.prototxt", "-weights", "net.caffemodel", "images/a.png"];
    fails(folder, &train, &["train.prototxt: expected one Input layer with one top, found none", "net to deploy"]);
    fs::write(folder.join("flat.prototxt"), DEPLOY.replace("dim: 4 dim: 4 }", "}")).unwrap();
    let flat = ["classify", "-model", "flat.prototxt", "-weights", "net.caffemodel", "images/a.png"];
    fails(folder, &flat, &["input 'data' has shape [4, 3], expected images × channels × height × width"]);
}
