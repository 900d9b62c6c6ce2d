//! How blobs are stored, and what is converted for it.

use lgm_core::{ChannelsLast, Element, Phase, Storage};
use lgm_cuda::sim::Order;
use lgm_net::{Keep, Options};
use lgm_testkit::device;

use crate::common::{self, gaussian, options, step};
use crate::nets::*;

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
        let Some(forward) = device(Order::Forward, None, storage) else { return };
        let Some(reversed) = device(Order::Reversed, None, storage) else { return };
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
    let Some(gpu) = device(Order::Forward, None, storage) else { return };
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
    let gpu = device(Order::Forward, None, storage)?;
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

    let Some(gpu) = device(Order::Forward, None, narrow) else { return };
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
    let Some(gpu) = device(Order::Forward, None, storage) else { return };
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
    let Some(gpu) = device(Order::Reversed, None, STORAGES[3].0) else { return };
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
