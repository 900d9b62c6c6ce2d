//! Nets whose blobs have as many rows as the data says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_core::{ChannelsLast, Element, Phase, Storage};
use lgm_cuda::sim::Order;
use lgm_net::{Keep, Net, Options, Pass, Placement};
use lgm_testkit::{assert_close, device, says};

const ITEMS: usize = 6;

/// Layers from `x` and `label` to a loss, of many kinds.
const BODY: &str = "
layer { name: 'conv' type: 'Convolution' bottom: 'x' top: 'c'
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } } }
layer { name: 'bn' type: 'BatchNorm' bottom: 'c' top: 'bn' }
layer { name: 'scale' type: 'Scale' bottom: 'bn' top: 'bn' scale_param { bias_term: true } }
layer { name: 'relu' type: 'ReLU' bottom: 'bn' top: 'bn' }
layer { name: 'pool' type: 'Pooling' bottom: 'bn' top: 'pool' pooling_param { kernel_size: 2 stride: 2 } }
layer { name: 'spp' type: 'SPP' bottom: 'pool' top: 'spp' spp_param { pyramid_height: 2 } }
layer { name: 'ip' type: 'InnerProduct' bottom: 'spp' top: 'ip'
  inner_product_param { num_output: 5 weight_filler { type: 'xavier' } } }
layer { name: 'relu2' type: 'ReLU' bottom: 'ip' top: 'act' }
layer { name: 'drop' type: 'Dropout' bottom: 'act' top: 'act' phase: TEST }
layer { name: 'out' type: 'InnerProduct' bottom: 'act' top: 'out'
  inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'out' bottom: 'label' top: 'loss' }
layer { name: 'accuracy' type: 'Accuracy' bottom: 'out' bottom: 'label' top: 'accuracy' }
";

fn filtered() -> String {
    let inputs = input("all", &[ITEMS, 2, 8, 8]) + &input("labels", &[ITEMS]) + &input("selector", &[ITEMS]);
    let filter = "layer { name: 'filter' type: 'Filter' bottom: 'all' bottom: 'labels' bottom: 'selector' top: 'x' \
                  top: 'label' }";
    inputs + filter + BODY
}

fn image(item: usize) -> impl Iterator<Item = f64> {
    (0..128).map(move |i| ((i * 37 + item * 101) % 29) as f64 / 10.0 - 1.4)
}

fn label(item: usize) -> f64 {
    (item % 3) as f64
}

/// Sets what a pass over the items that `selector` picks of all reads.
fn set(net: &mut Net, selector: [f64; ITEMS]) {
    net.set_blob("all", &(0..ITEMS).flat_map(image).collect::<Vec<_>>()).unwrap();
    net.set_blob("labels", &(0..ITEMS).map(label).collect::<Vec<_>>()).unwrap();
    net.set_blob("selector", &selector).unwrap();
}

/// A pass over the items that `selector` picks of all.
fn select(net: &mut Net, selector: [f64; ITEMS], batch: u64) -> f64 {
    set(net, selector);
    pass(net, batch)
}

/// All, some, none, and others.
const SELECTORS: [[f64; ITEMS]; 4] =
    [[1.0; ITEMS], [0.0, 1.0, 1.0, 0.0, 0.0, 2.0], [0.0; ITEMS], [1.0, 0.0, 1.0, 0.0, -1.0, 1.0]];

/// A pass with some of the items is one of a net that has these alone; passes with more, fewer and none may follow one
/// another.
#[test]
fn a_filtered_net_computes_as_one_of_the_items_picked() {
    for keep in [Keep::Outputs, Keep::All, Keep::Apart] {
        let options = Options { keep: keep.clone(), poison: true, ..Options::new(Phase::Train, 1) };
        let mut net = try_net(&filtered(), &options).unwrap();
        for (batch, selector) in SELECTORS.into_iter().enumerate() {
            let loss = select(&mut net, selector, batch as u64);
            let items: Vec<usize> = (0..ITEMS).filter(|&item| selector[item] != 0.0).collect();
            if items.is_empty() {
                assert_eq!(loss, 0.0);
                assert!(gradients(&mut net).iter().all(|&g| g == 0.0));
                assert_eq!(data(&net, "accuracy"), [0.0]);
                continue;
            }
            let inputs = input("x", &[items.len(), 2, 8, 8]) + &input("label", &[items.len()]);
            let mut alone = try_net(&(inputs + BODY), &options).unwrap();
            alone.set_blob("x", &items.iter().copied().flat_map(image).collect::<Vec<_>>()).unwrap();
            alone.set_blob("label", &items.iter().copied().map(label).collect::<Vec<_>>()).unwrap();
            assert_eq!(loss, pass(&mut alone, batch as u64), "{keep:?}, {items:?}");
            assert_eq!(gradients(&mut net), gradients(&mut alone), "{keep:?}, {items:?}");
            assert_eq!(data(&net, "accuracy"), data(&alone, "accuracy"));
        }
    }
}

/// Parameters and gradients, one after another.
fn parameters(net: &Net) -> [Vec<f64>; 2] {
    let saved = net.to_proto(true).unwrap();
    let blobs = || saved.layer.iter().flat_map(|layer| &layer.blobs);
    let each = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    [blobs().flat_map(|b| each(&b.data)).collect(), blobs().flat_map(|b| each(&b.diff)).collect()]
}

#[test]
fn a_filtered_net_computes_on_a_device_what_it_does_on_the_host() {
    let bf16 = Storage { element: Element::Bf16, channels_last: ChannelsLast::Always };
    for (order, storage, tolerance) in [
        (Order::Forward, Storage::default(), 2e-4),
        (Order::Reversed, Storage::default(), 2e-4),
        (Order::Forward, bf16, 0.1),
    ] {
        let Some(gpu) = device(order, None, storage) else { return };
        let host = Options { keep: Keep::Outputs, ..Options::new(Phase::Train, 1) };
        let there = Options { device: Some(Placement { gpu, histories: 1 }), ..host.clone() };
        let (mut here, mut there) = (net_of(&host), net_of(&there));
        for (batch, selector) in SELECTORS.into_iter().chain(SELECTORS).enumerate() {
            let want = select(&mut here, selector, batch as u64);
            set(&mut there, selector);
            let pass = Pass { clear: true, forward: true, backward: true, ..Default::default() };
            there.pass(pass, &step(batch as u64), None).unwrap();
            let what = |what: &str| format!("{order:?} {storage:?}, pass {batch}: {what}");
            assert_close(&what("loss"), &[there.loss().unwrap()], &[want], tolerance);
            for (i, (found, want)) in parameters(&there).iter().zip(&parameters(&here)).enumerate() {
                assert_close(&what(["parameters", "gradients"][i]), found, want, tolerance);
            }
            let picked = selector.iter().filter(|&&s| s != 0.0).count();
            assert!(picked > 0 || want == 0.0 && parameters(&there)[1].iter().all(|d| *d == 0.0));
        }
    }
}

fn net_of(options: &Options) -> Net {
    try_net(&filtered(), options).unwrap()
}

#[test]
fn a_layer_that_cannot_follow_is_named_with_the_one_that_has_other_rows() {
    let text = input("all", &[ITEMS, 3])
        + &input("selector", &[ITEMS])
        + "layer { name: 'filter' type: 'Filter' bottom: 'all' bottom: 'selector' top: 'x' }
           layer { name: 'sum' type: 'Eltwise' bottom: 'x' bottom: 'all' top: 'y' }";
    let mut net = net(&text);
    let run = |net: &mut Net, picked: usize| {
        let selector: Vec<f64> = (0..ITEMS).map(|item| if item < picked { 1.0 } else { 0.0 }).collect();
        net.set_blob("selector", &selector).unwrap();
        net.forward(&step(0))
    };
    run(&mut net, ITEMS).unwrap();
    for (picked, why) in [(4, "(4, 3)"), (0, "some of its bottoms are empty ((0, 3), (6, 3))")] {
        let error = run(&mut net, picked).unwrap_err().to_string();
        says(&error, &["layer 'sum' (Eltwise)", "cannot follow layer 'filter' (Filter)", why]);
    }
    run(&mut net, ITEMS).unwrap();
}

#[test]
fn rows_may_be_picked_twice() {
    let text = input("all", &[4, 2])
        + &input("first", &[4])
        + &input("second", &[4])
        + "layer { name: 'f' type: 'Filter' bottom: 'all' bottom: 'second' bottom: 'first' top: 'x' top: 's' }
           layer { name: 'g' type: 'Filter' bottom: 'x' bottom: 's' top: 'y' }
           layer { name: 'h' type: 'Filter' bottom: 'all' bottom: 'first' top: 'z' }";
    let mut net = net(&text);
    net.set_blob("all", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
    net.set_blob("first", &[1.0, 0.0, 1.0, 1.0]).unwrap();
    net.set_blob("second", &[1.0, 1.0, 0.0, 1.0]).unwrap();
    net.forward(&step(0)).unwrap();
    assert_eq!(data(&net, "y"), [1.0, 2.0, 7.0, 8.0]);
    assert_eq!(data(&net, "z"), [1.0, 2.0, 5.0, 6.0, 7.0, 8.0]);
    net.set_blob("first", &[0.0; 4]).unwrap();
    net.forward(&step(1)).unwrap();
    assert!(data(&net, "y").is_empty() && data(&net, "z").is_empty());
}
