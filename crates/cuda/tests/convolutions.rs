//! Convolutions by a library: the simulated device's, and on the GPU of this machine cuDNN's, against the definition.

#![allow(clippy::unwrap_used, clippy::panic)]

mod machines;

use lgm_core::{
    ConvolutionPass, DeviceConvolution, Element, Format, Layout, Shape, TENSOR_CORES_FROM, Window, rounded,
};
use lgm_cuda::Precision;
use machines::{Machine, assert_near, by_library, draw, geometries, get_stored, gpu, open, put_stored, square};

/// The three passes by the definition, in double precision: y, dx, dw.
fn convolve(c: &DeviceConvolution, x: &[f32], w: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let (in_group, out_group) = (c.channels / c.groups, c.outputs / c.groups);
    let [mut y, mut dx, mut dw] = [dy.len(), x.len(), w.len()].map(|len| vec![0.0; len]);
    let [down, across] = c.windows;
    let input = |w: Window, output: usize, tap: usize| (output * w.stride + tap * w.dilation) as isize - w.pad;
    for n in 0..c.batch {
        for o in 0..c.outputs {
            for (p, q) in (0..down.output).flat_map(|p| (0..across.output).map(move |q| (p, q))) {
                let at_y = ((n * c.outputs + o) * down.output + p) * across.output + q;
                for i in 0..in_group {
                    for (r, s) in (0..down.kernel).flat_map(|r| (0..across.kernel).map(move |s| (r, s))) {
                        let [h, v] = [input(down, p, r), input(across, q, s)].map(|at| at as usize);
                        if h >= down.input || v >= across.input {
                            continue;
                        }
                        let channel = o / out_group * in_group + i;
                        let at_x = ((n * c.channels + channel) * down.input + h) * across.input + v;
                        let at_w = ((o * in_group + i) * down.kernel + r) * across.kernel + s;
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
                let [x, w, y] = &c.shapes();
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
            let [x, w, y] = c.shapes();
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
        windows: [Window::new(2, 2, 1, 0, 1).unwrap(); 2],
        groups: 1,
        format: Format::PLAIN,
    };
    let [y, dx, dw] = convolve(&c, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], &[2.0]);
    assert_eq!((y, dx, dw), (vec![70.0], vec![10.0, 12.0, 14.0, 16.0], vec![2.0, 4.0, 6.0, 8.0]));
}
