//! Nets on a simulated device, or on a GPU where `LGM_TEST_DEVICE` is `cuda`, against the same nets on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::rc::Rc;

use common::{gaussian, options, step};
use lgm_core::{ChannelsLast, Element, Node, Phase, Result, Storage};
use lgm_cuda::Gpu;
use lgm_cuda::sim::{Order, Simulated};
use lgm_net::{DeviceUpdate, Keep, Net, Options, Pass, Placement, SOLVER_WORDS};
use lgm_testkit::{HostOnly, says, skip};

const PASSES: u64 = 4;

/// A net from text, with [`HostOnly`] among the types known.
fn try_net(text: &str, options: &Options) -> Result<Net> {
    let mut registry = common::registry();
    registry.add("HostOnly", |_, _| Node::host_only(HostOnly));
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new(common::FILE))?;
    Net::new(&parsed.message, &parsed.positions, &registry, options)
}

/// As [`try_net`], with the parameters of another net.
fn sharing(train: &Net, text: &str, options: &Options) -> Result<Net> {
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new(common::FILE))?;
    train.sharing(&parsed.message, &parsed.positions, &common::registry(), options)
}

/// The device, or nothing where there is no C++ compiler.
fn gpu(order: Order, capacity: Option<u64>) -> Option<Rc<dyn Gpu>> {
    storing(order, capacity, Storage::default())
}

/// The same, one that would have blobs stored so. A GPU takes its place unless it is to be small.
fn storing(order: Order, capacity: Option<u64>, storage: Storage) -> Option<Rc<dyn Gpu>> {
    if let (None, Some(gpu)) = (capacity, lgm_testkit::gpu(storage).unwrap()) {
        return Some(Rc::new(gpu));
    }
    match Simulated::new(order, capacity) {
        Ok(gpu) => Some(Rc::new(gpu.storing(storage))),
        Err(error) => skip("simulator", error),
    }
}

fn on(gpu: &Rc<dyn Gpu>, options: Options) -> Options {
    Options { device: Some(Placement { gpu: gpu.clone(), histories: 1 }), ..options }
}

fn labels(rows: usize) -> String {
    format!("layer {{ name: 'label' type: 'Input' top: 'label' input_param {{ shape {{ dim: {rows} }} }} }} ")
}

fn conv(name: &str, bottom: &str, outputs: usize, more: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'Convolution' bottom: '{bottom}' top: '{name}' convolution_param {{ \
         num_output: {outputs} kernel_size: 3 pad: 1 weight_filler {{ type: 'msra' }} {more} }} }} "
    )
}

fn product(name: &str, bottom: &str, outputs: usize, more: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'InnerProduct' bottom: '{bottom}' top: '{name}' {more} inner_product_param {{ \
         num_output: {outputs} weight_filler {{ type: 'xavier' }} }} }} "
    )
}

fn layer(name: &str, kind: &str, bottoms: &[&str], tops: &[&str], more: &str) -> String {
    let list = |what: &str, blobs: &[&str]| blobs.iter().map(|b| format!("{what}: '{b}' ")).collect::<String>();
    format!("layer {{ name: '{name}' type: '{kind}' {}{}{more} }} ", list("bottom", bottoms), list("top", tops))
}

/// Nets of every shape that matters here: LeNet's, normalisation in place, classes by distance, indices, blobs read
/// twice, layers that rectify what they make, and parameters and layers shared.
fn nets() -> Vec<(&'static str, String)> {
    let pool = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }";
    let lenet = gaussian("x", &[3, 1, 8, 8])
        + &labels(3)
        + &conv("c1", "x", 4, "")
        + &layer("p1", "Pooling", &["c1"], &["p1"], pool)
        + &conv("c2", "p1", 5, "stride: 2")
        + &product("ip1", "c2", 7, "")
        + &layer("relu", "ReLU", &["ip1"], &["ip1"], "")
        + &layer("drop", "Dropout", &["ip1"], &["ip1"], "")
        + &product("ip2", "ip1", 4, "")
        + &layer("acc", "Accuracy", &["ip2", "label"], &["acc"], "")
        + &layer("loss", "SoftmaxWithLoss", &["ip2", "label"], &["loss"], "loss_weight: 0.5");
    let norm = gaussian("x", &[4, 2, 5, 5])
        + &conv("c", "x", 6, "bias_term: false")
        + &layer("bn", "BatchNorm", &["c"], &["c"], "")
        + &layer("scale", "Scale", &["c"], &["c"], "scale_param { bias_term: true }")
        + &layer("relu", "ReLU", &["c"], &["c"], "")
        + &conv("d", "c", 6, "")
        + &layer("sum", "Eltwise", &["c", "d"], &["sum"], "")
        + &layer(
            "mean",
            "Reduction",
            &["sum"],
            &["loss"],
            "reduction_param { operation: SUMSQ coeff: 0.01 } loss_weight: 2",
        );
    let distance = gaussian("x", &[5, 6])
        + &labels(5)
        + &product("ip", "x", 4, "")
        + &layer(
            "dist",
            "ClassDistance",
            &["ip", "label"],
            &["logits"],
            "class_distance_param { num_output: 3 weight_filler { type: 'gaussian' } bias_filler { value: 1 } center_coef: 0.1 margin_mul { policy: ADDUP value: 0.1 gamma: 0.1 step: 1 } }",
        )
        + &layer("loss", "SoftmaxWithLoss", &["logits", "label"], &["loss"], "");
    let shared = gaussian("x", &[3, 4])
        + &gaussian("y", &[3, 4])
        + &product("one", "x", 4, "param { name: 'w' } param { name: 'b' }")
        + &product("two", "y", 4, "param { name: 'w' } param { name: 'b' }")
        + &layer("cat", "Concat", &["one", "two"], &["cat"], "concat_param { axis: 0 }")
        + &layer("flat", "Flatten", &["cat"], &["flat"], "")
        + &layer("cut", "Slice", &["flat"], &["low", "high"], "slice_param { axis: 0 }")
        + &layer("loss", "EuclideanLoss", &["low", "high"], &["loss"], "");
    let between = gaussian("x", &[3, 4])
        + &product("ip", "x", 4, "")
        + &layer("in place", "HostOnly", &["ip"], &["ip"], "")
        + &layer("relu", "ReLU", &["ip"], &["ip"], "")
        + &layer("apart", "HostOnly", &["ip"], &["y"], "")
        + &layer("sum", "Eltwise", &["ip", "y"], &["sum"], "")
        + &layer("last", "HostOnly", &["sum"], &["sum"], "")
        + &layer("loss", "Reduction", &["sum"], &["loss"], "reduction_param { operation: SUMSQ } loss_weight: 0.1");
    let volume = "convolution_param { num_output: 3 kernel_size: 2 pad: 1 weight_filler { type: 'msra' } }";
    let rectified = gaussian("x", &[3, 8, 6, 6])
        + &conv("c", "x", 8, "group: 8")
        + &layer("cr", "ReLU", &["c"], &["c"], "")
        + &conv("d", "c", 16, "bias_term: false")
        + &layer("dr", "ReLU", &["d"], &["dr"], "")
        + &conv("e", "dr", 8, "bias_filler { type: 'gaussian' }")
        + &layer("sum", "Eltwise", &["e", "c"], &["sum"], "eltwise_param { coeff: [1, -1] }")
        + &layer("sr", "ReLU", &["sum"], &["sum"], "")
        + &layer("cube", "Reshape", &["sum"], &["cube"], "reshape_param { shape { dim: 3 dim: 8 dim: 4 dim: 3 dim: 3 } }")
        + &layer("v", "Convolution", &["cube"], &["v"], volume)
        + &layer("vr", "ReLU", &["v"], &["v"], "")
        + &layer("more", "Reshape", &["v"], &["more"], "reshape_param { shape { dim: 3 dim: 3 dim: 5 dim: 4 dim: 2 dim: 2 } }")
        // More axes than a device has kernels for.
        + &layer("w", "Convolution", &["more"], &["w"], volume)
        + &layer("wr", "ReLU", &["w"], &["w"], "")
        + &product("ip", "w", 4, "")
        + &layer("ipr", "ReLU", &["ip"], &["ipr"], "")
        + &layer("loss", "Reduction", &["ipr"], &["loss"], "reduction_param { operation: SUMSQ } loss_weight: 0.1");
    let embed = "embed_param { input_dim: 3 num_output: 9 weight_filler { type: 'gaussian' } }";
    let words = labels(5)
        + &layer("words", "Embed", &["label"], &["words"], embed)
        + &product("ip", "words", 3, "")
        + &layer("loss", "SoftmaxWithLoss", &["ip", "label"], &["loss"], "");
    vec![
        ("rectified", rectified),
        ("between", between),
        ("words", words),
        ("lenet", lenet),
        ("norm", norm),
        ("distance", distance),
        ("shared", shared),
    ]
}

struct Found {
    losses: Vec<f64>,
    blobs: Vec<f64>,
    params: Vec<f64>,
    gradients: Vec<f64>,
}

impl Found {
    fn all(&self) -> [&Vec<f64>; 4] {
        [&self.losses, &self.blobs, &self.params, &self.gradients]
    }
}

/// Several passes, each from zeroed gradients: what can be seen after them.
fn run(text: &str, options: &Options) -> Option<Found> {
    let mut net = match try_net(text, options) {
        Ok(net) => net,
        Err(error) => panic!("{error}\n{text}"),
    };
    let rows = net.blob("label").map_or(0, |(shape, _)| shape.count());
    let mut losses = Vec::new();
    for batch in 0..PASSES {
        if rows > 0 {
            let labels: Vec<f64> = (0..rows).map(|i| ((i as u64 + batch) % 3) as f64).collect();
            net.set_blob("label", &labels).unwrap();
        }
        let step = step(batch);
        net.begin_iteration(batch);
        if options.device.is_some() {
            let pass = Pass { clear: true, forward: true, backward: true, ..Default::default() };
            net.pass(pass, &step, None).unwrap();
            losses.push(net.loss().unwrap());
        } else {
            net.clear_param_diffs().unwrap();
            losses.push(net.forward(&step).unwrap());
            net.backward(&step).unwrap();
        }
    }
    let blobs = net.output_values().unwrap().into_iter().flat_map(|(_, values)| values).collect();
    let saved = net.to_proto(true).unwrap();
    let each = |diff: bool| -> Vec<f64> {
        let blobs = saved.layer.iter().flat_map(|l| &l.blobs);
        blobs.flat_map(|b| if diff { b.diff.clone() } else { b.data.clone() }).map(f64::from).collect()
    };
    Some(Found { losses, blobs, params: each(false), gradients: each(true) })
}

fn near(name: &str, found: &[f64], want: &[f64]) {
    within(2e-4, name, found, want);
}

fn within(tolerance: f64, name: &str, found: &[f64], want: &[f64]) {
    assert_eq!(found.len(), want.len(), "{name}");
    let scale = want.iter().fold(1e-3, |m: f64, w| m.max(w.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= tolerance * scale, "{name} {i}: {f} against {w}, of at most {scale}");
    }
}

#[test]
fn a_device_computes_what_the_host_does_and_the_same_bits_each_time() {
    let Some(forward) = gpu(Order::Forward, None) else { return };
    let Some(reversed) = gpu(Order::Reversed, None) else { return };
    for (name, text) in nets() {
        for keep in [Keep::Outputs, Keep::All] {
            let options = Options { keep: keep.clone(), ..Options::new(Phase::Train, 1) };
            let want = run(&text, &options).unwrap();
            assert!(want.gradients.iter().any(|g| *g != 0.0), "{name}");
            let a = run(&text, &on(&forward, options.clone())).unwrap();
            let b = run(&text, &on(&reversed, options)).unwrap();
            for (what, ((a, b), want)) in ["losses", "outputs", "parameters", "gradients"]
                .iter()
                .zip(a.all().into_iter().zip(b.all()).zip(want.all()))
            {
                near(&format!("{name} {keep:?}: {what}"), a, want);
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(a) == bits(b), "{name}: {what} depend on the order of threads");
            }
        }
    }
}

/// Storages other than the plain one, and how far results may be from the host's: bf16 has eight bits, and gradients that
/// it rounds are sums of what it has rounded before.
const STORAGES: [(Storage, f64); 4] = [
    (Storage { element: Element::F32, channels_last: ChannelsLast::Always }, 2e-4),
    (Storage { element: Element::Bf16, channels_last: ChannelsLast::Never }, 8e-2),
    (Storage { element: Element::Bf16, channels_last: ChannelsLast::WhereItPays }, 8e-2),
    (Storage { element: Element::Bf16, channels_last: ChannelsLast::Always }, 8e-2),
];

#[test]
fn nets_compute_the_same_however_blobs_are_stored() {
    for (storage, tolerance) in STORAGES {
        let Some(forward) = storing(Order::Forward, None, storage) else { return };
        let Some(reversed) = storing(Order::Reversed, None, storage) else { return };
        for (name, text) in nets() {
            for keep in [Keep::Outputs, Keep::All] {
                let options = Options { keep: keep.clone(), ..Options::new(Phase::Train, 1) };
                let want = run(&text, &options).unwrap();
                let a = run(&text, &on(&forward, options.clone())).unwrap();
                let b = run(&text, &on(&reversed, options)).unwrap();
                for (what, ((a, b), want)) in ["losses", "outputs", "parameters", "gradients"]
                    .iter()
                    .zip(a.all().into_iter().zip(b.all()).zip(want.all()))
                {
                    within(tolerance, &format!("{name} {storage:?} {keep:?}: {what}"), a, want);
                    let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(bits(a) == bits(b), "{name}: {what} depend on the order of threads");
                }
            }
        }
    }
}

/// Every blob that can be read has the host's order, and a blob that is written arrives as it was given.
#[test]
fn blobs_are_read_and_written_in_the_hosts_order() {
    let storage = Storage { element: Element::F32, channels_last: ChannelsLast::Always };
    let Some(gpu) = storing(Order::Forward, None, storage) else { return };
    let text = gaussian("x", &[2, 3, 5, 4])
        + &conv("c", "x", 4, "")
        + &layer("relu", "ReLU", &["c"], &["r"], "")
        + &layer("pool", "Pooling", &["r"], &["p"], "pooling_param { kernel_size: 2 stride: 2 }")
        + &layer("mean", "Reduction", &["p"], &["loss"], "loss_weight: 1");
    let (mut device, mut host) = (try_net(&text, &on(&gpu, options())).unwrap(), try_net(&text, &options()).unwrap());
    for net in [&mut device, &mut host] {
        net.clear_param_diffs().unwrap();
        net.forward(&step(0)).unwrap();
        net.backward(&step(0)).unwrap();
    }
    for blob in ["x", "c", "r", "p", "loss"] {
        near(blob, &common::data(&device, blob), &common::data(&host, blob));
    }
    for blob in ["c", "r", "p"] {
        near(blob, &common::diff(&device, blob), &common::diff(&host, blob));
    }
    let values: Vec<f64> = (0..160).map(f64::from).collect();
    device.set_blob("c", &values).unwrap();
    assert_eq!(common::data(&device, "c"), values);
    let saved = device.to_proto(false).unwrap();
    assert!(saved.layer.iter().all(|l| l.r#type() != "Conversion"), "files hold the layers of the prototxt alone");
    assert!(device.layers().any(|(_, kind)| kind == "Conversion"), "reports name conversions");
}

/// How many conversions a net's passes make.
fn conversions(text: &str, storage: Storage) -> Option<(usize, usize)> {
    let gpu = storing(Order::Forward, None, storage)?;
    let net = try_net(text, &on(&gpu, Options::new(Phase::Train, 1))).unwrap();
    let made = net.conversions();
    assert_eq!(made.bytes > 0, made.forward > 0);
    Some((made.forward, made.backward))
}

#[test]
fn conversions_are_as_few_as_they_can_be() {
    let nets: std::collections::HashMap<_, _> = nets().into_iter().collect();
    let of = |element, channels_last| Storage { element, channels_last };
    let (narrow, pays) = (of(Element::Bf16, ChannelsLast::Never), of(Element::Bf16, ChannelsLast::WhereItPays));
    let always = of(Element::Bf16, ChannelsLast::Always);
    let Some(plain) = conversions(&nets["lenet"], Storage::default()) else { return };
    assert_eq!(plain, (0, 0));
    // The images come in single precision, and the scores go to the loss and the accuracy through one split.
    assert_eq!(conversions(&nets["lenet"], narrow), Some((2, 1)));
    assert_eq!(conversions(&nets["lenet"], pays), Some((2, 1)), "no layer has eight channels");
    // The product of all features wants them axis by axis.
    assert_eq!(conversions(&nets["lenet"], always), Some((3, 2)));
    // From the first convolution to the loss everything follows.
    assert_eq!(conversions(&nets["norm"], always), Some((2, 1)));
    // Six channels stay first, eight and sixteen go last, and one conversion before a split does for all its readers.
    let branches = gaussian("x", &[2, 6, 6, 6])
        + &conv("a", "x", 8, "")
        + &layer("s", "ReLU", &["a"], &["a"], "")
        + &conv("b", "a", 16, "")
        + &conv("c", "a", 16, "")
        + &layer("sum", "Eltwise", &["b", "c"], &["sum"], "")
        + &layer("mean", "Reduction", &["sum"], &["loss"], "loss_weight: 1");
    assert_eq!(conversions(&branches, pays), Some((3, 2)));
    // Of an image, which has fewer, the channels go last too: it is smaller than what a convolution makes of it.
    assert_eq!(conversions(&branches.replace("dim: 2 dim: 6", "dim: 2 dim: 3"), pays), Some((2, 1)));
    // A shortcut takes what the convolution beside it wants.
    let shortcut = gaussian("x", &[2, 6, 6, 6])
        + &conv("a", "x", 8, "")
        + &conv("b", "a", 8, "")
        + &layer("sum", "Eltwise", &["a", "b"], &["sum"], "")
        + &layer("mean", "Reduction", &["sum"], &["loss"], "loss_weight: 1");
    assert_eq!(conversions(&shortcut, pays), Some((3, 2)));
}

/// A block of MobileNet's: nothing is converted between its layers, whose channels are all last.
#[test]
fn depthwise_convolutions_take_channels_as_those_around_them() {
    let norm = |name: &str, bottom: &str| {
        layer(&format!("{name}_bn"), "BatchNorm", &[bottom], &[bottom], "")
            + &layer(&format!("{name}_scale"), "Scale", &[bottom], &[bottom], "scale_param { bias_term: true }")
            + &layer(&format!("{name}_relu"), "ReLU", &[bottom], &[bottom], "")
    };
    let point = |name: &str, bottom: &str, outputs: usize| {
        let param = format!(
            "convolution_param {{ num_output: {outputs} kernel_size: 1 bias_term: false weight_filler {{ type: 'msra' }} }}"
        );
        layer(name, "Convolution", &[bottom], &[name], &param)
    };
    let block = |first: &str| {
        gaussian("x", &[2, 16, 6, 6])
            + first
            + &norm("a", "a")
            + &conv("b", "a", 32, "group: 32 bias_term: false")
            + &norm("b", "b")
            + &point("c", "b", 16)
            + &norm("c", "c")
            + &layer("mean", "Reduction", &["c"], &["loss"], "loss_weight: 1")
    };
    let of = |element, channels_last| Storage { element, channels_last };
    let narrow = of(Element::Bf16, ChannelsLast::WhereItPays);
    let text = block(&point("a", "x", 32));
    // What is read, which needs no gradient, and what is averaged.
    let Some(made) = conversions(&text, narrow) else { return };
    assert_eq!(made, (2, 1));
    // Small convolutions in single precision have their channels first.
    assert_eq!(conversions(&text, of(Element::F32, ChannelsLast::WhereItPays)), Some((0, 0)));
    // Groups of eight channels; and of four, which stay first between layers whose channels go last.
    assert_eq!(conversions(&text.replace("group: 32", "group: 4"), narrow), Some((2, 1)));
    assert_eq!(conversions(&text.replace("group: 32", "group: 8"), narrow), Some((4, 3)));

    let Some(gpu) = storing(Order::Forward, None, narrow) else { return };
    let host = run(&text, &Options::new(Phase::Train, 1)).unwrap();
    let device = run(&text, &on(&gpu, Options::new(Phase::Train, 1))).unwrap();
    for (what, (found, want)) in
        ["losses", "outputs", "parameters", "gradients"].iter().zip(device.all().into_iter().zip(host.all()))
    {
        within(8e-2, what, found, want);
    }
}

/// In single precision channels are last where a product is large enough for tensor cores, and they are multiples of four.
#[test]
fn large_convolutions_in_single_precision_have_their_channels_last() {
    let storage = Storage { element: Element::F32, channels_last: ChannelsLast::WhereItPays };
    let net = |outputs: usize, size: usize| {
        gaussian("x", &[2, 128, size, size])
            + &conv("c", "x", outputs, "bias_term: false")
            + &layer("r", "ReLU", &["c"], &["c"], "")
            + &layer("p", "Convolution", &["c"], &["p"], "convolution_param { num_output: 4 kernel_size: 1 }")
            + &layer("mean", "Reduction", &["p"], &["loss"], "loss_weight: 1")
    };
    let Some(few) = conversions(&net(128, 20), storage) else { return };
    assert_eq!(few, (0, 0), "2 · 20² · 128 · 128 · 9 is less than 2²⁷");
    assert_eq!(conversions(&net(130, 24), storage), Some((0, 0)), "no multiple of four");
    // The small one after it takes its channels first.
    assert_eq!(conversions(&net(128, 24), storage), Some((2, 1)));
    let Some(gpu) = storing(Order::Forward, None, storage) else { return };
    let text = net(128, 24);
    let host = run(&text, &Options::new(Phase::Train, 1)).unwrap();
    let device = run(&text, &on(&gpu, Options::new(Phase::Train, 1))).unwrap();
    for (what, (found, want)) in
        ["losses", "outputs", "parameters", "gradients"].iter().zip(device.all().into_iter().zip(host.all()))
    {
        within(2e-4, what, found, want);
    }
}

/// An output that is stored otherwise, and one that weighs in the loss, are plain to all who look.
#[test]
fn outputs_and_losses_are_plain() {
    let Some(gpu) = storing(Order::Reversed, None, STORAGES[3].0) else { return };
    let text = gaussian("x", &[2, 3, 4, 4])
        + &conv("c", "x", 4, "")
        + &layer("relu", "ReLU", &["c"], &["y"], "loss_weight: 0.5")
        + &conv("d", "x", 2, "");
    let host = run(&text, &Options::new(Phase::Train, 1)).unwrap();
    let device = run(&text, &on(&gpu, Options::new(Phase::Train, 1))).unwrap();
    for (what, (found, want)) in
        ["losses", "outputs", "parameters", "gradients"].iter().zip(device.all().into_iter().zip(host.all()))
    {
        within(3e-2, what, found, want);
    }
}

#[test]
fn test_nets_use_the_training_nets_memory_on_the_device() {
    let Some(gpu) = gpu(Order::Forward, None) else { return };
    let text = gaussian("x", &[3, 4]) + &product("ip", "x", 2, "");
    let mut train = try_net(&text, &on(&gpu, options())).unwrap();
    let more = text.clone() + &layer("own", "Scale", &["ip"], &["own"], "scale_param { filler { value: 3 } }");
    let in_test = on(&gpu, Options { seed: 9, ..Options::new(Phase::Test, 9) });
    let mut test = sharing(&train, &more, &in_test).unwrap();
    assert_eq!(test.layer_params("ip").unwrap(), train.layer_params("ip").unwrap(), "neither copied nor filled anew");
    assert_eq!(test.layer_params("own").unwrap()[0].1, [3.0; 2]);
    assert!(train.param_bytes() >= 2 * 40 && test.param_bytes() == 64, "{} bytes of its own", test.param_bytes());
    assert!(test.on_device().unwrap().params().is_none());
    let mut score = |train: &mut Net| {
        train
            .lend_params(&mut test, |net| {
                for batch in 0..3 {
                    let pass = Pass { clear: batch == 0, forward: true, accumulate: true, ..Default::default() };
                    net.pass(pass, &step(batch), None)?;
                }
                net.sums()
            })
            .unwrap()
            .1
    };
    let before = score(&mut train);
    assert_eq!((before[0].0.as_str(), before[0].1.len()), ("own", 6));
    let mut plain = try_net(&text, &Options::new(Phase::Test, 1)).unwrap();
    let mut want = vec![0.0; 6];
    for batch in 0..3 {
        plain.forward(&step(batch)).unwrap();
        want.iter_mut().zip(common::data(&plain, "ip")).for_each(|(sum, x)| *sum += 3.0 * x);
    }
    near("sums", &before[0].1, &want);
    // The recorded pass reads what training has changed, in place.
    let params = train.on_device().unwrap().params().unwrap();
    gpu.zero(params.data, params.bytes).unwrap();
    assert_eq!(score(&mut train)[0].1, [0.0; 6]);
    assert_eq!(test.layer_params("ip").unwrap()[0].1, [0.0; 8]);
    // The memory outlives the net that took it.
    drop(train);
    assert_eq!(test.layer_params("ip").unwrap()[0].1, [0.0; 8]);
    let stranger = try_net(&more, &in_test).unwrap();
    let mut train = try_net(&text, &on(&gpu, options())).unwrap();
    let mut lends = |net: &mut Net| train.lend_params(net, |_| Ok(()));
    assert!(lends(&mut test).is_err() && lends(&mut { stranger }).is_err());
}

#[test]
fn a_test_net_whose_layers_disagree_is_refused() {
    let Some(gpu) = gpu(Order::Forward, None) else { return };
    let text = |outputs: usize| gaussian("x", &[3, 4]) + &product("ip", "x", outputs, "");
    let train = try_net(&text(2), &on(&gpu, options())).unwrap();
    let Err(error) = sharing(&train, &text(3), &on(&gpu, Options::new(Phase::Test, 1))) else {
        panic!("another shape was accepted")
    };
    says(&error.to_string(), &["layer 'ip' (InnerProduct)", "the training net's", "(2, 4)", "(3, 4)"]);
    assert!(sharing(&train, &text(2), &Options::new(Phase::Test, 1)).is_err(), "on the host");
}

#[test]
fn a_net_that_does_not_fit_says_what_would() {
    let Some(gpu) = gpu(Order::Forward, Some(100_000)) else { return };
    let text = |batch: usize| {
        gaussian("x", &[batch, 100])
            + &product("ip", "x", 100, "")
            + "layer { name: 'l' type: 'Reduction' bottom: 'ip' top: 'l' loss_weight: 1 }"
    };
    // 3 times 40 448 bytes for parameters, gradients and a history are too many as it is.
    let error = |batch: usize, gpu: &Rc<dyn Gpu>| match try_net(&text(batch), &on(gpu, options())) {
        Ok(_) => panic!("{batch} was accepted"),
        Err(error) => error.to_string(),
    };
    says(
        &error(100, &gpu),
        &["does not fit on the simulated GPU", "it needs ", "for parameters", "not even one image"],
    );
    let Some(gpu) = self::gpu(Order::Forward, Some(200_000)) else { return };
    let text = error(1000, &gpu);
    says(&text, &["does not fit", "KiB are free", "a batch of about ", " would fit, where it is 1000 now"]);
    let about: usize = text.split("about ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((20..200).contains(&about), "{about}");
    assert!(
        try_net(&(self::gaussian("x", &[about / 2, 100]) + &product("ip", "x", 100, "")), &on(&gpu, options())).is_ok()
    );
}

#[test]
fn a_label_outside_the_classes_names_the_layer() {
    let Some(gpu) = gpu(Order::Reversed, None) else { return };
    let text = gaussian("x", &[4, 3])
        + "layer { name: 'label' type: 'Input' top: 'label' input_param { shape { dim: 4 } } }"
        + &layer("loss", "SoftmaxWithLoss", &["x", "label"], &["loss"], "");
    let mut net = try_net(&text, &on(&gpu, options())).unwrap();
    net.set_blob("label", &[0.0, 1.0, 2.0, 0.0]).unwrap();
    net.forward(&step(0)).unwrap();
    net.set_blob("label", &[0.0, 7.0, 2.0, 9.0]).unwrap();
    let error = net.forward(&step(1)).unwrap_err().to_string();
    says(&error, &["layer 'loss' (SoftmaxWithLoss)", "7"]);
}

#[test]
fn nets_of_other_types_and_mixed_memory_are_refused() {
    let Some(gpu) = gpu(Order::Forward, None) else { return };
    let text = gaussian("x", &[3, 4]) + &product("ip", "x", 2, "");
    let double = Options { dtype: lgm_core::DType::F64, ..options() };
    let Err(error) = try_net(&text, &on(&gpu, double)) else { panic!("double precision was accepted") };
    says(&error.to_string(), &["run on the CPU only"]);
    let mut host = try_net(&text, &options()).unwrap();
    let mut device = try_net(&text, &on(&gpu, options())).unwrap();
    assert!(host.lend_params(&mut device, |_| Ok(())).is_err());
    assert!(device.learnable::<f32>(0).is_err());
    let update = DeviceUpdate { launches: &[], words: [0; SOLVER_WORDS] };
    assert!(host.pass(Pass::NOTHING, &step(0), Some(&update)).is_err(), "an update for a device");
    assert!(host.on_device().is_none() && host.loss().unwrap() == 0.0);
}
