//! The queue and the memory of a device: each body runs on the simulated device, which proves the body, and on the GPU
//! of this machine (number `LGM_TEST_GPU`, 0 without it), skipped aloud where there is none.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::OnceLock;

use lgm_core::{
    ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Element, Format, Gemm, Grid, Layout, Shape,
    TENSOR_CORES_FROM, args, rounded,
};
use lgm_cuda::sim::{Order, Sim};
use lgm_cuda::{Allocator, Cuda, Precision};

trait Machine: DeviceQueue + Allocator {}
impl<T: DeviceQueue + Allocator> Machine for T {}

fn open(precision: Precision) -> Option<Cuda> {
    let id = std::env::var("LGM_TEST_GPU").ok().map_or(0, |id| id.parse().unwrap());
    match lgm_cuda::devices() {
        Ok(gpus) if precision == Precision::Bf16 && gpus.iter().any(|gpu| gpu.id == id && gpu.capability.0 < 8) => {
            println!("skipped: the GPU has no bf16");
            None
        }
        Ok(_) => Some(Cuda::open(id, precision).unwrap()),
        Err(error) => {
            println!("skipped: {}", error.summary());
            None
        }
    }
}

/// The GPU in single precision.
fn gpu() -> Option<&'static Cuda> {
    static GPU: OnceLock<Option<Cuda>> = OnceLock::new();
    GPU.get_or_init(|| open(Precision::Fp32)).as_ref()
}

fn everywhere(body: impl Fn(&dyn Machine)) {
    body(&Sim::new(Order::Forward).unwrap());
    match gpu() {
        Some(gpu) => body(gpu),
        None => println!("skipped: no GPU; the simulated device alone"),
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn put(machine: &dyn Machine, values: &[f32]) -> DevicePtr {
    let at = machine.alloc(4 * values.len()).unwrap();
    machine.upload(&bytes(values), at).unwrap();
    at
}

fn get(machine: &dyn Machine, at: DevicePtr, len: usize) -> Vec<f32> {
    let mut raw = vec![0; 4 * len];
    machine.download(at, &mut raw).unwrap();
    raw.chunks_exact(4).map(|c| f32::from_ne_bytes(c.try_into().unwrap())).collect()
}

/// Numbers in -1 to 1 that differ from place to place.
fn draw(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    let scale = want.iter().fold(1e-2, |m: f64, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(got.iter().all(|v| v.is_finite()) && worst <= tolerance * scale, "{what}: off by {worst:e} of {scale:e}");
    assert_eq!(got.len(), want.len());
}

#[test]
fn what_goes_up_comes_down() {
    everywhere(|machine| {
        // Around the pieces in which long copies go.
        for len in [0usize, 1, 3, 4095, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3_000_017] {
            let values = draw(len, len as u32);
            let (a, b) = (put(machine, &values), machine.alloc(4 * len).unwrap());
            machine.copy(a, b, 4 * len).unwrap();
            machine.zero(a, 4 * len).unwrap();
            assert_eq!(get(machine, b, len), values);
            assert!(get(machine, a, len).iter().all(|v| *v == 0.0));
            machine.free(a).unwrap();
            machine.free(b).unwrap();
        }
        let at = put(machine, &[1.0; 4]);
        machine.zero(at.offset(5), 6).unwrap();
        let mut raw = [0; 16];
        machine.download(at, &mut raw).unwrap();
        let mut expected = bytes(&[1.0; 4]);
        expected[5..11].fill(0);
        assert_eq!(raw[..], expected);
        machine.free(at).unwrap();
    });
}

#[test]
fn many_small_uploads_stay_in_order() {
    everywhere(|machine| {
        let at = put(machine, &[0.0; 100]);
        for i in 0..1000 {
            machine.upload(&bytes(&[i as f32]), at.floats(i % 100)).unwrap();
        }
        let expected: Vec<f32> = (900..1000).map(|i| i as f32).collect();
        assert_eq!(get(machine, at, 100), expected);
        machine.free(at).unwrap();
    });
}

#[test]
fn memory_is_aligned_counted_and_its_lack_told() {
    everywhere(|machine| {
        let (_, total) = machine.free_bytes().unwrap();
        let blocks: Vec<DevicePtr> = (0..4).map(|i| machine.alloc(1 + 100 * i).unwrap()).collect();
        assert!(blocks.iter().all(|block| block.0 % 256 == 0));
        let text = machine.alloc(1 << 50).unwrap_err().to_string();
        assert!(text.contains("out of memory") || text.contains("free"), "{text}");
        assert_eq!(machine.free_bytes().unwrap().1, total);
        assert!(machine.free(blocks[0].offset(1)).is_err(), "not a block's first byte");
        blocks.into_iter().for_each(|block| machine.free(block).unwrap());
    });
}

#[test]
fn kernels_run_with_their_arguments() {
    everywhere(|machine| {
        for n in [1usize, 31, 32, 33, 257, 70_000] {
            let x = draw(n, 7);
            let (from, to) = (put(machine, &x), machine.alloc(4 * n).unwrap());
            machine.launch("relu_forward", Grid::elements(n), args![to, from, 0.25f32, n as i64]).unwrap();
            let expected: Vec<f32> = x.iter().map(|v| if *v < 0.0 { 0.25 * v } else { *v }).collect();
            assert_eq!(get(machine, to, n), expected);
            [from, to].into_iter().for_each(|block| machine.free(block).unwrap());
        }
        let text = machine.launch("relu_forwards", Grid::elements(1), args![]).unwrap_err().to_string();
        assert!(text.contains("relu_forward"), "{text}");
    });
}

/// How far a sum in single precision of k products of numbers in -1 to 1 may be off, by √k. Added up one after another by
/// fused multiply-adds, as some of cuBLAS's kernels do, partial sums of about √j/3 are rounded by 2^-24 of themselves: for
/// k = 512, where that is worst here, by 3e-6 as a rule and, of half a million such sums times the 1.5 of the tests, by 5.2e-5
/// at most, which is 2.3e-6 · √k. Twice that, for other orders and factors.
const SUMS: f64 = 5e-6;
/// The same where factors are rounded to TF32: each by up to 2^-11 of itself, so that a product of about 1/3 is off by 2e-4 as
/// a rule, a sum by √k times that, and the worst by five times as much.
const SUMS_OF_TF32: f64 = 3e-3;
/// How far a sum in single precision may be off, by the largest of all. Tensor cores cut off what does not fit, up to 2^-23
/// of a partial sum for every 16 products: 3e-6 for 384, and plain sums are off by 1e-6.
const OF_LARGEST: f64 = 5e-6;

fn products(machine: &dyn Machine, exact: bool, tolerance: f64) {
    let cases = [(1, 1, 1), (3, 5, 7), (33, 17, 65), (128, 100, 384), (1, 64, 500), (257, 1, 33), (512, 512, 512)];
    for (case, &(m, n, k)) in cases.iter().enumerate() {
        for bits in 0..8usize {
            let (trans_a, trans_b, batch) = (bits & 1 != 0, bits & 2 != 0, 1 + 2 * (bits >> 2));
            let (lda, ldb, ldc) = (if trans_a { m } else { k } + case, if trans_b { k } else { n } + case, n + case);
            let strides = [if trans_a { k } else { m } * lda, if trans_b { n } else { k } * ldb, m * ldc];
            let beta = [0.0, 1.0, -0.5][case % 3];
            let [a, b, mut c] = [0, 1, 2].map(|i| draw(batch * strides[i], i as u32 + 1));
            if beta == 0.0 {
                c.fill(f32::NAN);
            }
            let [pa, pb, pc] = [&a, &b, &c].map(|values| put(machine, values));
            let gemm = Gemm {
                trans_a,
                trans_b,
                m,
                n,
                k,
                lda,
                ldb,
                ldc,
                beta,
                exact,
                factors: Element::F32,
                result: Element::F32,
                alpha: 1.5,
                a: pa,
                b: pb,
                c: pc,
                batch: (batch, strides),
            };
            machine.gemm(&gemm).unwrap();
            let got = get(machine, pc, c.len());
            // Of the largest, one in so many is looked at.
            let all = (0..batch).flat_map(|i| (0..m).flat_map(move |r| (0..n).map(move |c| (i, r, c))));
            for (i, row, column) in all.step_by(1 + m * n / 1009 / 13) {
                let at = |trans: bool, ld: usize, row: usize, column: usize| {
                    if trans { column * ld + row } else { row * ld + column }
                };
                let sum: f64 = (0..k)
                    .map(|j| {
                        let (a, b) = (
                            a[i * strides[0] + at(trans_a, lda, row, j)],
                            b[i * strides[1] + at(trans_b, ldb, j, column)],
                        );
                        f64::from(a) * f64::from(b)
                    })
                    .sum();
                let place = i * strides[2] + row * ldc + column;
                let want = 1.5 * sum + if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(c[place]) };
                let off = (f64::from(got[place]) - want).abs();
                assert!(off <= tolerance * (k as f64).sqrt().max(1.0), "{gemm:?} at {row}, {column}: off by {off:e}");
            }
            // Between the rows nothing is written.
            for place in (0..c.len()).filter(|p| p % ldc >= n) {
                assert_eq!(got[place].to_bits(), c[place].to_bits(), "{gemm:?}");
            }
            [pa, pb, pc].into_iter().for_each(|block| machine.free(block).unwrap());
        }
    }
}

#[test]
fn products_are_row_major() {
    everywhere(|machine| products(machine, false, SUMS));
}

fn put_stored(machine: &dyn Machine, format: Format, shape: &Shape, values: &[f32]) -> DevicePtr {
    let at = machine.alloc(format.bytes(shape)).unwrap();
    machine.upload(&format.encode(shape, values), at).unwrap();
    at
}

fn get_stored(machine: &dyn Machine, format: Format, shape: &Shape, at: DevicePtr) -> Vec<f32> {
    let mut raw = vec![0; format.bytes(shape)];
    machine.download(at, &mut raw).unwrap();
    format.decode(shape, &raw)
}

/// Numbers that bf16 can hold.
fn draw_narrow(len: usize, seed: u32) -> Vec<f32> {
    draw(len, seed).into_iter().map(|v| rounded(v, Element::Bf16)).collect()
}

/// As for the groups of a convolution whose channels are last: rows of A and of C hold group after group, an odd number of
/// elements apart or one that is a multiple of 16 bytes.
#[test]
fn products_of_groups_lie_side_by_side() {
    let body = |machine: &dyn Machine| {
        for (groups, m, n, k) in [(2, 33, 7, 5), (4, 64, 16, 72)] {
            for (element, tolerance) in [(Element::F32, OF_LARGEST), (Element::Bf16, 4e-3)] {
                let format = Format { element, ..Format::PLAIN };
                let (a, b) = (draw_narrow(m * groups * k, 1), draw_narrow(groups * n * k, 2));
                let [pa, pb] = [&a, &b].map(|values| put_stored(machine, format, &[values.len()].into(), values));
                let shape = Shape::from([m * groups * n]);
                let c = put_stored(machine, format, &shape, &vec![f32::NAN; shape.count()]);
                machine
                    .gemm(&Gemm {
                        trans_a: false,
                        trans_b: true,
                        m,
                        n,
                        k,
                        alpha: 1.0,
                        a: pa,
                        lda: groups * k,
                        b: pb,
                        ldb: k,
                        beta: 0.0,
                        c,
                        ldc: groups * n,
                        batch: (groups, [k, n * k, n]),
                        exact: false,
                        factors: element,
                        result: element,
                    })
                    .unwrap();
                let sum = |i: usize, j: usize| -> f64 {
                    let row = i * groups * k + j / n * k;
                    (0..k).map(|l| f64::from(a[row + l]) * f64::from(b[j * k + l])).sum()
                };
                let want: Vec<f64> = (0..shape.count()).map(|at| sum(at / (groups * n), at % (groups * n))).collect();
                let got = get_stored(machine, format, &shape, c);
                assert_near(&got, &want, tolerance, &format!("{groups} groups of {m} x {n} x {k} in {element:?}"));
                [pa, pb, c].into_iter().for_each(|block| machine.free(block).unwrap());
            }
        }
    };
    body(&Sim::new(Order::Forward).unwrap());
    if let Some(gpu) = open(Precision::Bf16) {
        body(&gpu);
    }
}

#[test]
fn products_of_bf16_are_summed_in_single_precision() {
    let body = |machine: &dyn Machine| {
        let format = Format { element: Element::Bf16, ..Format::PLAIN };
        for (m, n, k) in [(3, 5, 7), (33, 17, 65), (128, 96, 384)] {
            let (a, b) = (draw_narrow(m * k, 1), draw_narrow(n * k, 2));
            let (pa, pb) =
                (put_stored(machine, format, &[m * k].into(), &a), put_stored(machine, format, &[n * k].into(), &b));
            let sum = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum();
            let want: Vec<f64> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
            for (result, tolerance) in [(Element::F32, OF_LARGEST), (Element::Bf16, 4e-3)] {
                let (format, shape) = (Format { element: result, ..Format::PLAIN }, Shape::from([m * n]));
                let c = put_stored(machine, format, &shape, &vec![f32::NAN; m * n]);
                machine
                    .gemm(&Gemm {
                        trans_a: false,
                        trans_b: true,
                        m,
                        n,
                        k,
                        alpha: 1.0,
                        a: pa,
                        lda: k,
                        b: pb,
                        ldb: k,
                        beta: 0.0,
                        c,
                        ldc: n,
                        batch: (1, [0; 3]),
                        exact: false,
                        factors: Element::Bf16,
                        result,
                    })
                    .unwrap();
                let got = get_stored(machine, format, &shape, c);
                assert_near(&got, &want, tolerance, &format!("{m} x {n} x {k} to {result:?}"));
                machine.free(c).unwrap();
            }
            [pa, pb].into_iter().for_each(|block| machine.free(block).unwrap());
        }
    };
    body(&Sim::new(Order::Forward).unwrap());
    if let Some(gpu) = open(Precision::Bf16) {
        body(&gpu);
    }
}

#[test]
fn tf32_shortens_products_unless_they_are_exact() {
    let body = |machine: &dyn Machine| {
        products(machine, false, SUMS_OF_TF32);
        products(machine, true, SUMS);
    };
    body(&Sim::new(Order::Forward).unwrap().in_precision(Precision::Tf32));
    if let Some(gpu) = open(Precision::Tf32) {
        body(&gpu);
    }
}

/// The three passes by the definition, in double precision: y, dx, dw.
fn convolve(c: &DeviceConvolution, x: &[f32], w: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let (in_group, out_group) = (c.channels / c.groups, c.outputs / c.groups);
    let [mut y, mut dx, mut dw] = [dy.len(), x.len(), w.len()].map(|len| vec![0.0; len]);
    for n in 0..c.batch {
        for o in 0..c.outputs {
            for (p, q) in (0..c.output[0]).flat_map(|p| (0..c.output[1]).map(move |q| (p, q))) {
                let at_y = ((n * c.outputs + o) * c.output[0] + p) * c.output[1] + q;
                for i in 0..in_group {
                    for (r, s) in (0..c.kernel[0]).flat_map(|r| (0..c.kernel[1]).map(move |s| (r, s))) {
                        let h = (p * c.stride[0] + r * c.dilation[0]).wrapping_sub(c.pad[0]);
                        let v = (q * c.stride[1] + s * c.dilation[1]).wrapping_sub(c.pad[1]);
                        if h >= c.input[0] || v >= c.input[1] {
                            continue;
                        }
                        let channel = o / out_group * in_group + i;
                        let at_x = ((n * c.channels + channel) * c.input[0] + h) * c.input[1] + v;
                        let at_w = ((o * in_group + i) * c.kernel[0] + r) * c.kernel[1] + s;
                        y[at_y] += f64::from(x[at_x]) * f64::from(w[at_w]);
                        dx[at_x] += f64::from(dy[at_y]) * f64::from(w[at_w]);
                        dw[at_w] += f64::from(dy[at_y]) * f64::from(x[at_x]);
                    }
                }
            }
        }
    }
    [y, dx, dw]
}

#[allow(clippy::too_many_arguments)]
fn square(
    batch: usize,
    channels: usize,
    outputs: usize,
    size: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
    groups: usize,
) -> DeviceConvolution {
    let output = (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
    DeviceConvolution {
        batch,
        channels,
        outputs,
        input: [size; 2],
        output: [output; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        pad: [pad; 2],
        dilation: [dilation; 2],
        groups,
        format: Format::PLAIN,
    }
}

fn geometries() -> Vec<DeviceConvolution> {
    let odd = DeviceConvolution {
        input: [9, 11],
        output: [4, 9],
        kernel: [3, 2],
        stride: [2, 1],
        pad: [1, 0],
        dilation: [2, 2],
        ..square(2, 6, 4, 9, 3, 1, 0, 1, 2)
    };
    vec![
        square(2, 3, 8, 12, 3, 1, 1, 1, 1),
        square(3, 1, 20, 28, 5, 1, 0, 1, 1),
        square(2, 16, 16, 8, 1, 1, 0, 1, 1),
        square(2, 8, 12, 15, 3, 2, 1, 1, 4),
        square(2, 8, 8, 10, 3, 1, 1, 1, 8),
        square(2, 32, 32, 14, 3, 2, 1, 1, 4),
        square(2, 32, 32, 14, 3, 1, 1, 1, 32),
        square(2, 16, 32, 9, 3, 2, 1, 1, 16),
        square(1, 4, 6, 17, 3, 1, 2, 2, 1),
        square(1, 3, 16, 23, 7, 4, 3, 1, 1),
        odd,
    ]
}

/// The simulated device with a library of convolutions, and the GPU of this machine.
fn by_library(precision: Precision, body: impl Fn(&dyn Machine)) {
    body(&Sim::new(Order::Forward).unwrap().in_precision(precision).with_library(&ConvolutionPass::ALL));
    if let Some(gpu) = open(precision) {
        body(&gpu);
    }
}

/// The shapes of a convolution's input, filters and output.
fn shapes(c: &DeviceConvolution) -> [Shape; 3] {
    [
        Shape::from([c.batch, c.channels, c.input[0], c.input[1]]),
        Shape::from([c.outputs, c.channels / c.groups, c.kernel[0], c.kernel[1]]),
        Shape::from([c.batch, c.outputs, c.output[0], c.output[1]]),
    ]
}

/// A blob: its shape and its values in the host's order.
type Blob<'a> = (&'a Shape, &'a [f32]);

/// What a library's pass makes of two operands and of what its result holds before, the same bits each time; `None` where
/// there is none that does it.
fn pass_of(
    machine: &dyn Machine,
    c: &DeviceConvolution,
    pass: ConvolutionPass,
    operands: [Blob<'_>; 2],
    (shape, before): Blob<'_>,
) -> Option<Vec<f32>> {
    let Some(workspace) = machine.convolution_workspace(c, pass).unwrap() else {
        println!("skipped: no cuDNN for {pass:?} of {c:?}");
        return None;
    };
    let operands = operands.map(|(shape, values)| put_stored(machine, c.format, shape, values));
    let (result, at) = (put_stored(machine, c.format, shape, before), machine.alloc(workspace).unwrap());
    let run = || {
        machine.upload(&c.format.encode(shape, before), result).unwrap();
        machine.convolution(c, pass, result, operands, at).unwrap();
        get_stored(machine, c.format, shape, result)
    };
    let (first, again) = (run(), run());
    assert!(first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{pass:?} of {c:?}");
    operands.into_iter().chain([result, at]).for_each(|block| machine.free(block).unwrap());
    Some(first)
}

/// In every format that layers ask for.
#[test]
fn convolutions_are_caffes() {
    let last = |element| Format { element, layout: Layout::ChannelsLast };
    for (precision, format, tolerance) in [
        // Plain sums are off by 1e-6 of the largest; those of Winograd's way, whose transforms have numbers grow that cancel
        // again, by ten times as much and more.
        (Precision::Fp32, Format::PLAIN, 1e-4),
        (Precision::Tf32, Format::PLAIN, 5e-3),
        (Precision::Tf32, last(Element::F32), 5e-3),
        (Precision::Bf16, last(Element::Bf16).channels_first(), 1e-2),
        (Precision::Bf16, last(Element::Bf16), 1e-2),
    ] {
        by_library(precision, |machine| {
            let mut done = 0;
            for plain in geometries() {
                let c = &DeviceConvolution { format, ..plain };
                let [x, w, y] = &shapes(c);
                let values = |shape: &Shape, seed: u32| -> Vec<f32> {
                    draw(shape.count(), seed).into_iter().map(|v| rounded(v, format.element)).collect()
                };
                let [vx, vw, vdy, before] = [values(x, 1), values(w, 2), values(y, 3), values(w, 4)];
                let nothing = |shape: &Shape| vec![f32::NAN; shape.count()];
                let [want_y, want_dx, mut want_dw] = convolve(c, &vx, &vw, &vdy);
                // Where filters lie as the parameter does, their gradient is added to it; else what is there is not read.
                let held = if c.has_plain_filters() { before } else { nothing(w) };
                want_dw.iter_mut().zip(&held).for_each(|(d, h)| *d += f64::from(if h.is_nan() { 0.0 } else { *h }));
                let passes = [
                    (ConvolutionPass::Forward, [(x, &vx[..]), (w, &vw[..])], (y, nothing(y)), want_y),
                    (ConvolutionPass::Data, [(y, &vdy[..]), (w, &vw[..])], (x, nothing(x)), want_dx),
                    (ConvolutionPass::Filter, [(x, &vx[..]), (y, &vdy[..])], (w, held), want_dw),
                ];
                for (pass, operands, (shape, held), want) in passes {
                    let Some(got) = pass_of(machine, c, pass, operands, (shape, &held)) else { continue };
                    assert_near(&got, &want, tolerance, &format!("{precision} {pass:?} of {c:?}"));
                    done += 1;
                }
            }
            println!("{precision} in {format}: {done} passes by a library");
        });
    }
}

/// Where training spends its time: large enough for tensor cores, and in the formats that layers ask for there.
#[test]
fn convolutions_on_tensor_cores_are_those_of_single_precision() {
    if std::env::var_os("LGM_FAKE_GPU").is_some() {
        return println!("skipped: the fake GPU would take hours");
    }
    let Some(exact) = gpu() else { return };
    let first = Format { element: Element::Bf16, ..Format::PLAIN };
    let last = |element| Format { element, layout: Layout::ChannelsLast };
    let cases = [
        (Precision::Tf32, Format::PLAIN, 2e-3),
        (Precision::Tf32, last(Element::F32), 2e-3),
        (Precision::Bf16, first, 1e-2),
        (Precision::Bf16, last(Element::Bf16), 1e-2),
    ];
    // The second has filters that lie the same in both orders, the third is an image's, and the last two have groups.
    let convolutions = [
        square(10, 64, 64, 28, 3, 1, 1, 1, 1),
        square(10, 256, 128, 28, 1, 1, 0, 1, 1),
        square(10, 3, 64, 112, 7, 2, 3, 1, 1),
        square(10, 128, 256, 28, 3, 1, 1, 1, 2),
        square(20, 64, 64, 112, 3, 1, 1, 1, 64),
    ];
    for (precision, format, tolerance) in cases {
        let Some(gpu) = open(precision) else { continue };
        for plain in &convolutions {
            assert!(plain.multiply_adds() >= TENSOR_CORES_FROM, "{plain:?}");
            let c = &DeviceConvolution { format, ..*plain };
            let [x, w, y] = shapes(c);
            let values = |shape: &Shape, seed: u32| -> Vec<f32> {
                draw(shape.count(), seed).into_iter().map(|v| rounded(v, format.element)).collect()
            };
            let [vx, vw, vdy, before] = [values(&x, 1), values(&w, 2), values(&y, 3), values(&w, 4)];
            let nothing = |shape: &Shape| vec![f32::NAN; shape.count()];
            let (ny, nx) = (nothing(&y), nothing(&x));
            let passes = [
                (ConvolutionPass::Forward, [(&x, &vx[..]), (&w, &vw[..])], (&y, &ny[..])),
                (ConvolutionPass::Data, [(&y, &vdy[..]), (&w, &vw[..])], (&x, &nx[..])),
                (ConvolutionPass::Filter, [(&x, &vx[..]), (&y, &vdy[..])], (&w, &before[..])),
            ];
            for (pass, operands, (shape, held)) in passes {
                let Some(want) = pass_of(exact, plain, pass, operands, (shape, held)) else { continue };
                let Some(got) = pass_of(&gpu, c, pass, operands, (shape, held)) else { continue };
                // Where filters lie otherwise than the parameter, their gradient is not added.
                let added = pass == ConvolutionPass::Filter && !c.has_plain_filters();
                let want: Vec<f64> = (want.iter().zip(held))
                    .map(|(v, held)| f64::from(*v) - if added { f64::from(*held) } else { 0.0 })
                    .collect();
                assert_near(&got, &want, tolerance, &format!("{precision} {pass:?} of {c:?}"));
            }
        }
    }
}

#[test]
fn the_references_convolution_is_that_of_its_definition() {
    // One channel, a 2x2 input under a 2x2 filter, no padding: one number.
    let c = DeviceConvolution {
        batch: 1,
        channels: 1,
        outputs: 1,
        input: [2; 2],
        output: [1; 2],
        kernel: [2; 2],
        stride: [1; 2],
        pad: [0; 2],
        dilation: [1; 2],
        groups: 1,
        format: Format::PLAIN,
    };
    let [y, dx, dw] = convolve(&c, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], &[2.0]);
    assert_eq!((y, dx, dw), (vec![70.0], vec![10.0, 12.0, 14.0, 16.0], vec![2.0, 4.0, 6.0, 8.0]));
}

#[test]
fn recorded_work_runs_when_replayed_and_not_before() {
    let Some(gpu) = gpu() else { return };
    let (x, sum) = (put(gpu, &[1.0; 1000]), gpu.alloc(8 * 1000).unwrap());
    gpu.zero(sum, 8 * 1000).unwrap();
    let add = || gpu.launch("net_accumulate", Grid::elements(1000), args![sum, x, 1000i64]);
    let read = || {
        let mut raw = [0; 8];
        gpu.download(sum.offset(8 * 999), &mut raw).unwrap();
        f64::from_ne_bytes(raw)
    };
    let other = Cuda::open(gpu.gpu().id, Precision::Fp32).unwrap();
    let (y, total) = (put(&other, &[1.0; 10]), put(&other, &[0.0; 20]));
    let graph = other
        .capture(&mut || {
            other.launch("net_accumulate", Grid::elements(10), args![total, y, 10i64])?;
            other.launch("net_accumulate", Grid::elements(10), args![total, y, 10i64])
        })
        .unwrap();
    assert_eq!(graph.nodes(), 2);
    let value = |at| {
        let mut raw = [0; 8];
        other.download(at, &mut raw).unwrap();
        f64::from_ne_bytes(raw)
    };
    assert_eq!(value(total), 0.0);
    for round in 1..=3 {
        other.replay(&graph).unwrap();
        assert_eq!(value(total.offset(72)), 2.0 * f64::from(round));
    }

    // What waits or copies from the host cannot be recorded, and the device goes on after the refusal.
    let text = other.capture(&mut || other.upload(&[0; 4], y)).map(drop).unwrap_err().to_string();
    assert!(text.contains("recorded"), "{text}");
    other.upload(&bytes(&[5.0]), y).unwrap();
    assert_eq!(get(&other, y, 1), [5.0]);

    add().unwrap();
    assert_eq!(read(), 1.0);
}

#[test]
fn a_product_and_a_convolution_can_be_recorded() {
    let Some(gpu) = open(Precision::Tf32) else { return };
    let c = geometries()[0];
    let (x, w) = (put(&gpu, &draw(2 * 3 * 144, 1)), put(&gpu, &draw(8 * 27, 2)));
    let (y, z) = (put(&gpu, &[0.0; 2 * 8 * 144]), put(&gpu, &[0.0; 144 * 144]));
    let workspace = gpu.convolution_workspace(&c, ConvolutionPass::Forward).unwrap();
    let at = gpu.alloc(workspace.unwrap_or(0)).unwrap();
    let mut work = || {
        if workspace.is_some() {
            gpu.convolution(&c, ConvolutionPass::Forward, y, [x, w], at)?;
        }
        gpu.gemm(&Gemm {
            trans_a: true,
            trans_b: false,
            m: 144,
            n: 144,
            k: 8,
            lda: 144,
            ldb: 144,
            ldc: 144,
            alpha: 1.0,
            beta: 0.0,
            a: y,
            b: y,
            c: z,
            batch: (1, [0; 3]),
            exact: false,
            factors: Element::F32,
            result: Element::F32,
        })
    };
    work().unwrap();
    let first = get(&gpu, z, 144 * 144);
    let graph = gpu.capture(&mut work).unwrap();
    gpu.zero(z, 4 * 144 * 144).unwrap();
    gpu.replay(&graph).unwrap();
    let again = get(&gpu, z, 144 * 144);
    assert!(first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(workspace.is_none() || first.iter().any(|v| *v != 0.0));
}

#[test]
fn a_feed_brings_every_batch_in_turn() {
    let Some(gpu) = gpu() else { return };
    const FLOATS: usize = 100_000;
    let mut feed = gpu.feed(4 * FLOATS, 2).unwrap();
    let (input, sum) = (gpu.alloc(4 * FLOATS).unwrap(), gpu.alloc(8 * FLOATS).unwrap());
    gpu.zero(sum, 8 * FLOATS).unwrap();
    let fill = |feed: &mut lgm_cuda::Feed, batch: usize| {
        feed.host(batch % 2).unwrap().floats_mut().fill(batch as f32);
        feed.send(batch % 2, 4 * FLOATS).unwrap();
    };
    fill(&mut feed, 0);
    for batch in 0..50 {
        if batch + 1 < 50 {
            fill(&mut feed, batch + 1);
        }
        // In two parts, as for data and labels.
        let half = 2 * FLOATS;
        feed.deliver(batch % 2, &[(0, input, half), (half, input.offset(half), half)]).unwrap();
        gpu.launch("net_accumulate", Grid::elements(FLOATS), args![sum, input, FLOATS as i64]).unwrap();
    }
    let mut raw = vec![0; 8 * FLOATS];
    gpu.download(sum, &mut raw).unwrap();
    let want = f64::from(49 * 50 / 2);
    assert!(raw.chunks_exact(8).all(|c| f64::from_ne_bytes(c.try_into().unwrap()) == want));
}

#[test]
fn marks_measure_time() {
    let Some(gpu) = gpu() else { return };
    let x = put(gpu, &vec![1.0; 1 << 22]);
    let before = gpu.mark().unwrap();
    for _ in 0..10 {
        gpu.launch("relu_forward", Grid::elements(1 << 22), args![x, x, 0.5f32, 1i64 << 22]).unwrap();
    }
    let after = gpu.mark().unwrap();
    let time = before.milliseconds_to(&after).unwrap();
    assert!(after.reached().unwrap() && time > 0.0 && time < 1000.0, "{time} ms");
}
