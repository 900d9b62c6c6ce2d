use super::device::Access;
use super::{Method, Pooling};
use crate::tests::registry;
use lgm_core::{ChannelsLast, DType, DevicePtr, Element, Format, Layout, Phase, Shape, Step, Storage, Window};
use lgm_cpu::pool::PoolGeometry;
use lgm_cuda::sim::Order;
use lgm_testkit::{Case, DeviceHarness, Fill, Harness, Inputs, check, config_error};

fn layer(param: &str) -> String {
    format!("layer {{ name: 'p' type: 'Pooling' bottom: 'x' top: 'y' pooling_param {{ {param} }} }}")
}

#[test]
fn cases() {
    let golden = |i: usize| Case::golden(&format!("layers/pool_{i}"));
    let positive = || Fill::Uniform(0.1, 2.0);
    let stochastic = |param: &str| Case::new(layer(&format!("pool: STOCHASTIC {param}")));
    let two_tops =
        "layer { name: 'p' type: 'Pooling' bottom: 'x' top: 'y' top: 'm' pooling_param { kernel_size: 2 pad: 1 } }";
    check(
        &registry(),
        &[
            golden(0),
            golden(1),
            golden(2),
            golden(3),
            golden(4),
            golden(5),
            Case::golden("layers/pool_mask").without_gradients(),
            Case::new(two_tops).flat_top(1).bottom([2, 2, 3, 3]),
            Case::new(layer("kernel_size: 3 stride: 2")).bottom([2, 1, 2, 4]),
            Case::new(layer("pool: AVE kernel_size: 3 stride: 2")).bottom([2, 1, 2, 6]),
            Case::new(layer("pool: AVE kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 2 round_mode: FLOOR"))
                .bottom([1, 2, 4, 3]),
            Case::new(layer("global_pooling: true")).bottom([2, 3, 3, 2]),
            Case::new(layer("pool: AVE kernel_size: 3 stride: 2 pad_t: 1 pad_l: 2 pad_r: 1")).bottom([2, 1, 4, 5]),
            Case::new(layer("kernel_size: 2 stride: 2 pad_b: 1 pad_r: 1")).bottom([2, 3, 4, 5]),
            Case::new(layer("pool: AVE_EXC_PAD kernel_size: 3 stride: 2 pad: 1")).bottom([2, 2, 4, 5]),
            Case::new(layer("pool: AVE_EXC_PAD kernel_size: 2 pad_r: 1 round_mode: FLOOR")).bottom([1, 2, 3, 3]),
            // Which elements are drawn depends on the values, so only the forward and the plan are checked here.
            stochastic("kernel_size: 2 stride: 2").without_gradients().bottom_of([2, 2, 5, 4], positive()),
            stochastic("kernel_size: 3 stride: 2").test_phase().bottom_of([2, 2, 5, 6], positive()),
        ],
    );
}

/// Windows of every kind that kernels distinguish, of planes and channels that fill 16-byte vectors and that do not.
fn geometries() -> Vec<(&'static str, [usize; 4])> {
    vec![
        // Neither overlapping nor leaving gaps.
        ("kernel_size: 2 stride: 2", [2, 8, 8, 16]),
        ("kernel_size: 2 stride: 2", [1, 12, 6, 12]),
        ("kernel_size: 2 stride: 2", [3, 3, 4, 6]),
        ("kernel_size: 2 stride: 2", [1, 8, 5, 4]),
        ("kernel_size: 2 stride: 2 round_mode: FLOOR", [1, 8, 5, 4]),
        ("kernel_size: 2 stride: 2", [1, 5, 4, 3]),
        ("kernel_size: 2 stride: 2 round_mode: FLOOR", [1, 8, 4, 7]),
        ("kernel_size: 2 stride: 2 pad: 1", [1, 16, 5, 6]),
        ("kernel_size: 2 stride: 2", [1, 2056, 2, 2]),
        ("kernel_size: 2 stride: 2", [1, 1029, 2, 3]),
        ("kernel_size: 4 stride: 4", [1, 8, 9, 13]),
        ("kernel_size: 3 stride: 3", [2, 8, 6, 7]),
        // Overlapping.
        ("kernel_size: 3 stride: 2", [2, 16, 9, 11]),
        ("kernel_size: 3 stride: 2", [1, 8, 8, 6]),
        ("kernel_size: 3 stride: 2 pad: 1", [1, 8, 8, 9]),
        ("kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR", [1, 8, 9, 8]),
        ("kernel_size: 3 stride: 2 pad: 2", [1, 3, 5, 7]),
        ("kernel_size: 3 stride: 2", [1, 2056, 3, 4]),
        ("kernel_size: 3 stride: 1 pad: 1", [1, 8, 5, 6]),
        ("kernel_size: 3 stride: 1", [1, 7, 3, 9]),
        ("kernel_size: 2 stride: 1", [1, 8, 4, 5]),
        ("kernel_size: 5 stride: 2 pad: 2", [1, 8, 9, 8]),
        ("kernel_size: 6", [1, 8, 7, 9]),
        ("kernel_h: 3 kernel_w: 2 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0", [1, 8, 5, 7]),
        ("kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2", [1, 4, 3, 6]),
        ("kernel_size: 3 stride_h: 2 stride_w: 3", [1, 8, 8, 9]),
        // Padded otherwise at each side.
        ("kernel_size: 3 stride: 2 pad_t: 1 pad_r: 1", [1, 8, 6, 5]),
        ("kernel_size: 2 stride: 2 pad_b: 1 pad_r: 1", [1, 8, 5, 7]),
        ("kernel_size: 3 pad_l: 2 pad_b: 1 round_mode: FLOOR", [2, 3, 5, 4]),
        // Leaving gaps, and elements after the last window.
        ("kernel_size: 2 stride: 3 pad: 1", [1, 8, 7, 5]),
        ("kernel_size: 1 stride: 2", [1, 8, 5, 7]),
        ("kernel_size: 2 stride: 5 round_mode: FLOOR", [1, 16, 11, 9]),
        ("kernel_size: 3 stride: 4 round_mode: FLOOR", [2, 3, 10, 13]),
        // As many elements as a byte can count, and more.
        ("kernel_h: 15 kernel_w: 17", [1, 8, 17, 20]),
        ("kernel_size: 16 stride: 3", [1, 8, 20, 18]),
        // Whole planes.
        ("global_pooling: true", [2, 8, 1, 1]),
        ("global_pooling: true", [3, 8, 7, 7]),
        ("global_pooling: true", [5, 33, 7, 7]),
        ("global_pooling: true", [1, 264, 2, 3]),
        ("global_pooling: true", [2, 9, 1, 3]),
        ("global_pooling: true", [2, 16, 25, 40]),
        ("kernel_h: 7 kernel_w: 6 stride: 2", [2, 8, 7, 6]),
    ]
}

#[test]
fn windows_of_every_kind() {
    let of = |method: &str| -> Vec<Case> {
        let case = |(param, bottom): (&str, [usize; 4])| {
            Case::new(layer(&format!("{method} {param}"))).without_gradients().bottom(bottom)
        };
        geometries().into_iter().map(case).collect()
    };
    check(&registry(), &of("pool: MAX"));
    check(&registry(), &of("pool: AVE"));
    check(&registry(), &of("pool: AVE_EXC_PAD"));
    let two_tops = |param: &str| {
        Case::new(format!(
            "layer {{ name: 'p' type: 'Pooling' bottom: 'x' top: 'y' top: 'm' pooling_param {{ {param} }} }}"
        ))
    };
    let draws = |param: &str| Case::new(layer(&format!("pool: STOCHASTIC {param}"))).without_gradients();
    check(
        &registry(),
        &[
            two_tops("kernel_size: 2 stride: 2").without_gradients().flat_top(1).bottom([1, 8, 6, 8]),
            two_tops("kernel_size: 3 stride: 2 pad: 1").without_gradients().flat_top(1).bottom([1, 8, 7, 6]),
            draws("kernel_size: 2 stride: 2").bottom_of([1, 8, 6, 8], Fill::Uniform(0.1, 2.0)),
            draws("kernel_size: 3 stride: 1").bottom_of([1, 8, 6, 8], Fill::Uniform(0.1, 2.0)),
            draws("kernel_size: 16 stride: 2").bottom_of([1, 8, 18, 17], Fill::Uniform(0.1, 2.0)),
        ],
    );
}

/// What is not a number, or below all that are, is never the largest, and of equal values the first is.
#[test]
fn maxima_of_what_is_not_a_number_and_of_equals() {
    let stored = |element, channels_last| Storage { element, channels_last };
    let storages = [Element::F32, Element::Bf16]
        .map(|e| [ChannelsLast::Never, ChannelsLast::Always].map(|last| stored(e, last)))
        .concat();
    for (param, bottom) in geometries() {
        let (text, shape) = (layer(param), Shape::from(bottom));
        let values =
            [f64::NAN, -0.0, 1.0, f64::NAN, f64::NEG_INFINITY, 0.0, f64::NAN, 1.0, -2.0, f64::NAN, f64::INFINITY];
        // Now and then a whole region of what has no largest.
        let value = |i: usize| if (i / 40).is_multiple_of(3) { values[i % 2 * 4] } else { values[i * i % 127 % 11] };
        let x: Vec<f64> = (0..shape.count()).map(value).collect();
        let host = Harness::new(&registry(), &text, Phase::Train, DType::F32, std::slice::from_ref(&shape)).unwrap();
        let dy = (0..host.plan.tops[0].shape.count()).map(|i| (i % 7) as f64 - 3.0).collect();
        let inputs = Inputs { top_diffs: vec![dy], ..host.forward_inputs(&[&x]).unwrap() };
        let want = host.run(&inputs).unwrap();
        for (storage, order) in storages.iter().flat_map(|s| [(s, Order::Forward), (s, Order::Reversed)]) {
            let shapes = std::slice::from_ref(&shape);
            let harness = DeviceHarness::stored(&registry(), &text, Phase::Train, shapes, order, *storage).unwrap();
            let Some(harness) = harness else { return };
            let found = harness.run(&inputs).unwrap();
            let lowest = if storage.element == Element::F32 { f32::MIN } else { f32::from_bits(0xff7f_0000) };
            for (y, want) in found.tops[0].iter().zip(&want.tops[0]) {
                let want = if *want == f64::from(f32::MIN) { f64::from(lowest) } else { *want };
                assert_eq!(y.to_bits(), want.to_bits(), "{y} and {want}: {param} of {bottom:?}, {storage:?}");
            }
            assert_eq!(found.bottom_diffs, want.bottom_diffs, "{param} of {bottom:?}, {storage:?}");
        }
    }
}

#[test]
fn kernels_take_what_the_blobs_allow() {
    let format = |element, layout| Format { element, layout };
    let (wide, narrow) = (Element::F32, Element::Bf16);
    let (first, last) = (Layout::ChannelsFirst, Layout::ChannelsLast);
    let access = |param: &str, bottom: [usize; 4], format: Format, at: u64| {
        let parsed = lgm_testkit::parse_layer(&layer(param)).unwrap();
        let param = parsed.pooling_param.unwrap();
        let mut pooling = Pooling {
            param,
            method: Method::Max,
            stream: 0,
            geometry: PoolGeometry { windows: [Window::UNIT; 2], padding_counts: true },
            planes: bottom[0] * bottom[1],
            channels: bottom[1],
            index_top: false,
        };
        pooling.geometry = pooling.geometry([bottom[2], bottom[3]]).unwrap();
        pooling.access(format, &[DevicePtr(256), DevicePtr(at)])
    };
    let two = "kernel_size: 2 stride: 2";
    for (param, bottom, format, at, want) in [
        (two, [1, 8, 4, 4], format(narrow, last), 512, Access::Vectors(8)),
        (two, [1, 8, 4, 4], format(narrow, last), 520, Access::Single),
        (two, [1, 4, 4, 4], format(narrow, last), 512, Access::Single),
        (two, [1, 4, 4, 4], format(wide, last), 512, Access::Vectors(4)),
        (two, [1, 3, 4, 16], format(narrow, first), 512, Access::Pairs(4)),
        (two, [1, 3, 4, 16], format(wide, first), 512, Access::Pairs(2)),
        (two, [1, 3, 4, 12], format(narrow, first), 512, Access::Pairs(2)),
        (two, [1, 3, 4, 6], format(wide, first), 512, Access::Pairs(1)),
        (two, [1, 3, 4, 6], format(wide, first), 516, Access::Single),
        (two, [1, 3, 4, 5], format(wide, first), 512, Access::Single),
        ("kernel_size: 2", [1, 3, 4, 6], format(wide, first), 512, Access::Single),
        ("kernel_size: 2 stride: 2 pad: 1", [1, 3, 4, 6], format(wide, first), 512, Access::Single),
    ] {
        assert_eq!(access(param, bottom, format, at), want, "{param} of {bottom:?} in {format} at {at}");
    }
}

fn top_shape(param: &str, bottom: [usize; 4]) -> Shape {
    let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F32, &[bottom.into()]).unwrap();
    harness.plan.tops[0].shape.clone()
}

#[test]
fn numbers_of_windows() {
    for (param, bottom, want) in [
        ("kernel_size: 2 stride: 2", [1, 1, 7, 8], [4, 4]),
        ("kernel_size: 2 stride: 2 round_mode: FLOOR", [1, 1, 7, 8], [3, 4]),
        ("kernel_size: 2 stride: 2 ceil_mode: false", [1, 1, 7, 8], [3, 4]),
        ("kernel_size: 2 stride: 2 ceil_mode: true round_mode: CEIL", [1, 1, 7, 8], [4, 4]),
        ("kernel_size: 3 stride: 2 pad: 1", [1, 1, 8, 7], [5, 4]),
        ("kernel_size: 2 stride: 2 pad: 1", [1, 1, 3, 4], [2, 3]),
        ("kernel_size: 3 stride: 2", [1, 1, 2, 4], [1, 2]),
        ("global_pooling: true", [1, 1, 5, 6], [1, 1]),
    ] {
        assert_eq!(top_shape(param, bottom)[2..], want, "{param} of {bottom:?}");
    }
}

#[test]
fn draws_follow_the_values_and_the_pass() {
    let shape = Shape::from([50, 20, 1, 4]);
    let text = layer("pool: STOCHASTIC kernel_h: 1 kernel_w: 4");
    let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[shape]).unwrap();
    let x: Vec<f64> = [1.0, 0.0, 3.0, 4.0].repeat(1000);
    let inputs = harness.forward_inputs(&[&x]).unwrap();
    let first = harness.run(&inputs).unwrap();
    for (value, share) in [(0.0, 0.0), (1.0, 0.125), (3.0, 0.375), (4.0, 0.5)] {
        let found = first.tops[0].iter().filter(|&&y| y == value).count() as f64 / 1000.0;
        assert!((found - share).abs() < 0.04, "{value} was drawn in {found}, expected {share}");
    }
    let later = harness.run(&Inputs { step: Step { batch: 1, ..inputs.step }, ..inputs.clone() }).unwrap();
    assert_ne!(first.tops, later.tops);

    let dy: Vec<f64> = (1..=1000).map(|v| v as f64).collect();
    let out = harness.run(&Inputs { top_diffs: vec![dy.clone()], ..inputs }).unwrap();
    for (i, dx) in out.bottom_diffs[0].as_ref().unwrap().chunks(4).enumerate() {
        let drawn: Vec<usize> = (0..4).filter(|&k| dx[k] != 0.0).collect();
        assert_eq!((drawn.len(), dx[drawn[0]], x[4 * i + drawn[0]]), (1, dy[i], first.tops[0][i]));
    }
}

#[test]
fn windows_of_zeros_give_zeros() {
    for phase in [Phase::Train, Phase::Test] {
        let text = layer("pool: STOCHASTIC kernel_size: 2");
        let harness = Harness::new(&registry(), &text, phase, DType::F32, &[[1, 1, 2, 2].into()]).unwrap();
        assert_eq!(harness.run(&harness.forward_inputs(&[&[0.0; 4]]).unwrap()).unwrap().tops[0], [0.0]);
    }
}

#[test]
fn mistakes_are_named() {
    let x = [Shape::from([1, 1, 4, 4])];
    for (param, needles) in [
        ("", &["kernel_size is missing"][..]),
        ("kernel_size: 0", &["positive"]),
        ("kernel_size: 2 stride: 0", &["positive"]),
        ("kernel_size: 2 round_mode: CEIL ceil_mode: false", &["round_mode and ceil_mode contradict"]),
        ("kernel_h: 2", &["kernel_h and kernel_w go together"]),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", &["both kernel_size and kernel_h"]),
        ("kernel_size: 2 stride_h: 2", &["stride_h and stride_w go together"]),
        ("kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1", &["both pad and pad_h"]),
        ("kernel_size: 2 pad: 2", &["padding (2)", "kernel (2)"]),
        ("kernel_size: 5", &["reaches over 5", "has 4"]),
        ("kernel_size: 6 stride: 2", &["reaches over 6", "has 4"]),
        ("kernel_size: 1 stride: 2", &["outside the bottom's extent 4", "FLOOR"]),
        ("kernel_size: 2 global_pooling: true", &["global_pooling", "kernel"]),
        ("global_pooling: true stride: 2", &["global_pooling", "stride 1"]),
        ("pool: STOCHASTIC kernel_size: 2 pad: 1", &["STOCHASTIC", "padding"]),
    ] {
        config_error(&registry(), &layer(param), &x, needles);
    }
    config_error(&registry(), &layer("kernel_size: 2"), &[[4, 4].into()], &["4 axes", "(4, 4)"]);
    config_error(&registry(), &layer("kernel_size: 2"), &[[1, 1, 5000, 5000].into()], &["5000 × 5000"]);
}

#[test]
fn each_side_may_have_its_own_padding_which_may_not_count() {
    let run = |param: &str| {
        let harness =
            Harness::new(&registry(), &layer(param), Phase::Test, DType::F64, &[[1, 1, 1, 3].into()]).unwrap();
        harness.run(&harness.forward_inputs(&[&[3.0, 6.0, 9.0]]).unwrap()).unwrap().tops.remove(0)
    };
    let window = "kernel_h: 1 kernel_w: 3 stride_h: 1 stride_w: 3";
    assert_eq!(run(&format!("{window} pool: AVE pad_l: 2 pad_r: 1")), [1.0, 5.0]);
    assert_eq!(run(&format!("{window} pool: AVE_EXC_PAD pad_l: 2 pad_r: 1")), [3.0, 7.5]);
    assert_eq!(run(&format!("{window} pool: MAX pad_r: 2")), [9.0]);
    let both = layer("kernel_size: 2 pad: 1 pad_l: 1");
    config_error(&registry(), &both, &[[1, 1, 3, 3].into()], &["both pad and pad_t"]);
}
