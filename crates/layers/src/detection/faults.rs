//! What kernels of detection report is what the host says.

use lgm_core::{DType, Phase, Shape};
use lgm_cuda::sim::Order;
use lgm_testkit::{DeviceHarness, Harness, says};

use crate::tests::registry;

/// Bottoms, by shape and values.
type Bottoms = Vec<(Vec<usize>, Vec<f64>)>;

/// The host's error and a device's, which is the same under both orders of threads.
fn errors(kind: &str, tops: usize, fields: &str, bottoms: &Bottoms) -> Option<[String; 2]> {
    let blobs = |what: &str, n: usize| (0..n).map(|i| format!("{what}: '{what}{i}' ")).collect::<String>();
    let (from, to) = (blobs("bottom", bottoms.len()), blobs("top", tops));
    let text = format!("layer {{ name: 'l' type: '{kind}' {from}{to}{fields} }}");
    let shapes: Vec<Shape> = bottoms.iter().map(|(shape, _)| shape.as_slice().into()).collect();
    let values: Vec<&[f64]> = bottoms.iter().map(|(_, values)| values.as_slice()).collect();
    let host = Harness::new(&registry(), &text, Phase::Test, DType::F32, &shapes).unwrap();
    let inputs = host.forward_inputs(&values).unwrap();
    let on = |order| {
        let device = DeviceHarness::new(&registry(), &text, Phase::Test, &shapes, order).unwrap()?;
        Some(device.run(&inputs).unwrap_err().to_string())
    };
    let (forward, reversed) = (on(Order::Forward)?, on(Order::Reversed)?);
    assert_eq!(forward, reversed, "{kind}");
    Some([host.run(&inputs).unwrap_err().to_string(), forward])
}

fn same(kind: &str, tops: usize, fields: &str, bottoms: &Bottoms, needles: &[&str]) {
    let Some([host, device]) = errors(kind, tops, fields, bottoms) else { return };
    says(&device, needles);
    assert_eq!(host, device, "{kind}");
}

#[test]
fn of_ground_truth() {
    let bottoms = |rows: [[f64; 8]; 3], variance: f64| -> Bottoms {
        let priors = [[0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 1.0, 1.0], [0.1, 0.1, 0.2, 0.2, 0.1, variance, 0.2, 0.2]];
        vec![
            (vec![2, 8], vec![0.0; 16]),
            (vec![2, 4], vec![0.0; 8]),
            (vec![1, 2, 8], priors.concat()),
            (vec![1, 1, 3, 8], rows.concat()),
        ]
    };
    let row = |image: f64, class: f64| [image, class, 0.0, 0.0, 0.0, 0.5, 1.0, 0.0];
    let fields = "multibox_loss_param { num_classes: 2 }";
    for (second, third, variance, needles) in [
        (row(0.0, 2.0), row(0.0, f64::NAN), 0.1, &["row 1", "class 2", "2 classes"][..]),
        (row(1.0, 1.0), row(0.0, 0.0), 0.1, &["row 2", "class 0", "the background"]),
        (row(2.0, 1.0), row(1.0, 1.0), 0.1, &["row 1", "image 2", "the batch has 2"]),
        (row(-2.0, 1.0), row(5.0, 1.0), 0.1, &["row 1", "image -2"]),
        (row(0.0, 2.0), row(0.0, 1.0), 0.0, &["variances", "found 0"]),
    ] {
        same("MultiBoxLoss", 1, fields, &bottoms([[-1.0; 8], second, third], variance), needles);
    }
    let fields = "detection_evaluate_param { num_classes: 3 overlap_threshold: 0.5 }";
    let found = |image: f64, class: f64| vec![image, class, 0.5, 0.0, 0.0, 0.5, 1.0];
    for (detection, truth, needles) in [
        (found(0.0, 3.0), row(0.0, 7.0), &["row 1 of the detections", "image 0 and class 3"][..]),
        (found(-3.0, 1.0), row(0.0, 1.0), &["row 1 of the detections", "image -3 and class 1"]),
        (found(0.0, 1.0), row(0.0, 7.0), &["row 0 of the ground truth", "class 7"]),
        (found(0.0, 1.0), row(-5.0, 1.0), &["row 0 of the ground truth", "image -5"]),
    ] {
        let detections = [found(0.0, 1.0), detection].concat();
        let bottoms = vec![(vec![1, 1, 2, 7], detections), (vec![1, 1, 1, 8], truth.to_vec())];
        same("DetectionEvaluate", 1, fields, &bottoms, needles);
    }
}

#[test]
fn of_objects() {
    let fields = "region_loss_param { num: 1 num_class: 3 biases: 1 biases: 1 }";
    let labels = |second: [f64; 5]| -> Bottoms {
        vec![(vec![1, 8, 2, 2], vec![0.0; 32]), (vec![1, 10], [[1.0, 0.5, 0.5, 0.2, 0.2], second].concat())]
    };
    same("RegionLoss", 1, fields, &labels([3.0, 0.5, 0.5, 0.2, 0.2]), &["object 1 of image 0", "class 3", "0 to 2"]);
    if let Some(both) = errors("RegionLoss", 1, fields, &labels([0.0, 1.5, 0.5, 0.2, 0.2])) {
        both.iter().for_each(|error| says(error, &["object 1 of image 0", "shares of the image, from 0 to 1"]));
    }
    let anchors = "anchor_target_param { feat_stride: 8 ratio: 1 scale: 1 }";
    let given = |width: usize, rows: Vec<f64>| -> Bottoms {
        vec![
            (vec![1, 2, 2, 2], vec![0.0; 8]),
            (vec![rows.len() / width, width], rows),
            (vec![3], vec![24.0, 40.0, 1.0]),
        ]
    };
    let shares = |image: f64| [[0.0, 1.0, 0.0, 0.1, 0.1, 0.5, 0.5, 0.0], [image, 1.0, 0.0, 0.1, 0.1, 0.5, 0.5, 0.0]];
    same("AnchorTarget", 4, anchors, &given(8, shares(1.0).concat()), &["row 1 of the objects", "image 1"]);
    if let Some(both) = errors("AnchorTarget", 4, anchors, &given(5, vec![9.0, 9.0, 5.0, 12.0, 1.0])) {
        both.iter().for_each(|error| says(error, &["row 0 of the objects is no box"]));
    }
    let regions = "proposal_target_param { cls_num: 3 batch_size: 4 }";
    for (image, class, needles) in
        [(1.0, 1.0, &["region 1 is of image 1"][..]), (0.0, 3.0, &["row 0 of the objects", "class 3", "3 classes"])]
    {
        let boxes = [[0.0, 0.0, 0.0, 9.0, 9.0], [image, 5.0, 5.0, 9.0, 9.0]].concat();
        let bottoms = vec![(vec![2, 5], boxes), (vec![1, 5], vec![0.0, 0.0, 9.0, 9.0, class])];
        same("ProposalTarget", 5, regions, &bottoms, needles);
    }
    let labels = vec![(vec![1, 3, 2, 2], vec![0.0; 12]), (vec![1, 2, 2], vec![0.0, 3.0, 5.0, 0.0])];
    same("SegAccuracy", 1, "", &labels, &["label 3 of item 1"]);
}
