use super::*;
use crate::elementwise;
use crate::testing::{noise, relative_error, same_bits_on_any_threads};

/// Visits every (image, output channel, input channel, weight, x, y) index of the convolution.
fn visit(g: &ConvGeometry, batch: usize, mut f: impl FnMut(usize, usize, usize)) {
    let axes = g.windows.len();
    let unravel = |mut i: usize, extents: &[usize]| {
        let mut at = vec![0; axes];
        for d in (0..axes).rev() {
            at[d] = i % extents[d];
            i /= extents[d];
        }
        at
    };
    let each = |extent: fn(&Window) -> usize| g.windows.iter().map(extent).collect::<Vec<_>>();
    let (input, output, kernel) = (each(|w| w.input), each(|w| w.output), each(|w| w.kernel));
    let taps: Vec<_> = (0..kernel.iter().product()).map(|t| unravel(t, &kernel)).collect();
    let (cin, cout) = (g.in_channels / g.group, g.out_channels / g.group);
    let area: usize = input.iter().product();
    for s in 0..g.output_area() {
        let out = unravel(s, &output);
        for (t, tap) in taps.iter().enumerate() {
            let mut at = Some(0);
            for (d, w) in g.windows.iter().enumerate() {
                let i = (out[d] * w.stride + tap[d] * w.dilation) as isize - w.pad;
                at = at.filter(|_| i >= 0 && i < w.input as isize).map(|a| a * w.input + i as usize);
            }
            let Some(at) = at else { continue };
            for n in 0..batch {
                for o in 0..g.out_channels {
                    for c in 0..cin {
                        let x = (n * g.in_channels + o / cout * cin + c) * area + at;
                        f((o * cin + c) * taps.len() + t, x, (n * g.out_channels + o) * g.output_area() + s);
                    }
                }
            }
        }
    }
}

fn geometry(c: usize, o: usize, group: usize, axes: &[[usize; 5]]) -> ConvGeometry {
    let windows = axes.iter().map(|&[i, k, s, p, d]| Window::new(i, k, s, p, d).unwrap());
    ConvGeometry::new(c, o, group, windows.collect()).unwrap()
}

/// Axes are [input, kernel, stride, pad, dilation].
fn cases() -> Vec<(usize, ConvGeometry)> {
    let sq = |a: [usize; 5]| vec![a, a];
    vec![
        (1, geometry(1, 1, 1, &sq([1, 1, 1, 0, 1]))),
        (2, geometry(3, 5, 1, &sq([7, 3, 1, 1, 1]))),
        (5, geometry(6, 20, 1, &sq([4, 4, 1, 0, 1]))),
        (3, geometry(2, 3, 1, &sq([96, 48, 24, 12, 1]))),
        (3, geometry(1, 20, 1, &sq([28, 5, 1, 0, 1]))),
        (9, geometry(20, 50, 1, &sq([12, 5, 1, 0, 1]))),
        (2, geometry(3, 33, 1, &sq([31, 11, 4, 0, 1]))),
        (2, geometry(3, 17, 1, &sq([33, 7, 2, 3, 1]))),
        (2, geometry(12, 30, 3, &sq([13, 3, 2, 1, 1]))),
        (2, geometry(6, 4, 2, &sq([15, 3, 1, 2, 2]))),
        (5, geometry(8, 16, 1, &sq([9, 1, 1, 0, 1]))),
        (3, geometry(8, 16, 1, &sq([9, 1, 2, 0, 1]))),
        (2, geometry(4, 6, 1, &sq([5, 2, 1, 4, 1]))),
        (2, geometry(4, 6, 1, &sq([6, 2, 3, 5, 2]))),
        (2, geometry(7, 7, 7, &sq([11, 3, 1, 1, 1]))),
        (2, geometry(7, 7, 7, &sq([11, 4, 2, 1, 2]))),
        (2, geometry(4, 8, 4, &sq([10, 3, 1, 1, 1]))),
        (2, geometry(5, 40, 1, &[[32, 3, 1, 1, 1], [33, 1, 2, 0, 1]])),
        (2, geometry(4, 3, 1, &[[37, 5, 3, 2, 1]])),
        (2, geometry(4, 6, 2, &[[5, 3, 1, 1, 1], [6, 2, 2, 0, 1], [7, 3, 1, 2, 2]])),
        (2, geometry(3, 2, 1, &[[9, 4, 1, 0, 1], [9, 2, 1, 0, 1]])),
        (17, geometry(6, 70, 1, &sq([7, 3, 1, 1, 1]))),
        (1, geometry(16, 130, 1, &sq([24, 3, 1, 1, 1]))),
        (7, geometry(9, 24, 1, &sq([8, 4, 2, 1, 1]))),
        (5, geometry(8, 6, 2, &sq([7, 3, 2, 1, 1]))),
        // More of the input than the kernel ever reaches.
        (2, geometry(2, 3, 1, &sq([10, 2, 5, 0, 1]))),
        (2, geometry(2, 3, 1, &sq([11, 1, 3, 0, 1]))),
        // Far more of nothing than of anything.
        (2, geometry(3, 2, 1, &sq([5, 3, 1 << 31, 0, 1]))),
        (2, geometry(4, 6, 2, &sq([5, 3, 1 << 30, 1 << 30, 1]))),
        (2, geometry(3, 3, 3, &sq([5, 3, 1, 1 << 30, 1 << 30]))),
    ]
}

/// A case with its values and results in f64; the operands are exact in f32.
struct Reference {
    batch: usize,
    g: ConvGeometry,
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

impl Reference {
    fn new(batch: usize, g: ConvGeometry) -> Self {
        let [x, w, b, dy, dw0] = operands::<f64>(batch, &g);
        let mut y: Vec<f64> = (0..dy.len()).map(|i| b[i / g.output_area() % g.out_channels]).collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], dw0);
        visit(&g, batch, |wi, xi, yi| {
            y[yi] += w[wi] * x[xi];
            dx[xi] += w[wi] * dy[yi];
            dw[wi] += x[xi] * dy[yi];
        });
        Reference { batch, g, y, dx, dw }
    }

    fn check<T: Float>(&self, algorithm: Algorithm, tolerance: f64) {
        let (batch, g) = (self.batch, &self.g);
        let [x, w, b, dy, mut dw] = operands::<T>(batch, g);
        let mut y = vec![T::nan(); dy.len()];
        let mut dx = vec![T::nan(); x.len()];
        let fits = |what: &str, found: &[T], want: &[f64]| {
            let e = relative_error(found, want);
            assert!(e < tolerance, "{what} by {algorithm:?}, batch {batch} of {g:?}: off by {e:e}");
        };
        g.forward_with(algorithm, batch, &x, &w, Epilogue::bias(&b), &mut y);
        fits("y", &y, &self.y);
        g.forward_with(algorithm, batch, &x, &w, Epilogue::default(), &mut y);
        for (i, v) in y.iter_mut().enumerate() {
            *v += b[i / g.output_area() % g.out_channels];
        }
        fits("y without bias", &y, &self.y);
        g.backward_data_with(algorithm, batch, &w, &dy, &mut dx);
        fits("dx", &dx, &self.dx);
        g.backward_weights_with(algorithm, batch, &x, &dy, &mut dw);
        fits("dw", &dw, &self.dw);
    }
}

/// x, w, b, dy and the dw to add to.
fn operands<T: Float>(batch: usize, g: &ConvGeometry) -> [Vec<T>; 5] {
    let (x, y, w) = (batch * g.input_len(), batch * g.output_len(), g.weights_len());
    [noise(x, 1), noise(w, 2), noise(g.out_channels, 3), noise(y, 4), noise(w, 5)]
}

#[test]
fn agrees_with_the_definition() {
    for (batch, g) in cases() {
        let reference = Reference::new(batch, g);
        for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
            reference.check::<f32>(Algorithm { kernel, winograd: false }, 1e-5);
            reference.check::<f64>(Algorithm { kernel, winograd: false }, 1e-13);
        }
    }
}

/// Whatever computes it, an output completed on the spot has the bits of one completed in a pass of its own.
#[test]
fn an_epilogue_changes_nothing_but_what_it_says() {
    fn case<T: Float>(algorithm: Algorithm, batch: usize, g: &ConvGeometry, transposed: bool) {
        let [x, w, b, dy, _] = operands::<T>(batch, g);
        let b = if transposed { noise(g.in_channels, 3) } else { b };
        let run = |epilogue: Epilogue<'_, T>| {
            let mut y = vec![T::nan(); if transposed { x.len() } else { dy.len() }];
            match transposed {
                true => g.forward_transposed_with(algorithm, batch, &dy, &w, epilogue, &mut y),
                false => g.forward_with(algorithm, batch, &x, &w, epilogue, &mut y),
            }
            y
        };
        if transposed {
            let (plain, biased) = (run(Epilogue::default()), run(Epilogue::bias(&b)));
            let area = g.input_area();
            let added = plain.iter().enumerate().map(|(i, &y)| y + b[i / area % g.in_channels]);
            assert!(added.eq(biased), "by {algorithm:?}, batch {batch} of {g:?}, transposed");
        }
        for bias in [None, Some(&b[..])] {
            let plain = run(Epilogue { bias, relu: false });
            let bits = |y: T| elementwise::rectified(y).f64().to_bits();
            let found = run(Epilogue { bias, relu: true });
            let same = found.iter().zip(&plain).all(|(found, &y)| found.f64().to_bits() == bits(y));
            let what = if transposed { ", transposed" } else { "" };
            assert!(same, "by {algorithm:?}, bias {}, batch {batch} of {g:?}{what}", bias.is_some());
            let cleared = plain.iter().filter(|y| y.f64() < 0.0).count();
            assert!(cleared > 0 || plain.len() < 100, "nothing to clear in {g:?}");
        }
    }
    let sq = |a: [usize; 5]| vec![a, a];
    // Winograd's algorithm by channels, in many blocks and in few, and by images.
    let more = [
        (4, geometry(20, 20, 1, &sq([32, 3, 1, 1, 1]))),
        (3, geometry(34, 48, 2, &sq([8, 3, 1, 1, 1]))),
        (64, geometry(20, 50, 1, &sq([12, 5, 1, 0, 1]))),
    ];
    for (batch, g) in cases().into_iter().chain(more) {
        for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
            for transposed in [false, true] {
                case::<f32>(Algorithm { kernel, winograd: false }, batch, &g, transposed);
                case::<f32>(Algorithm { kernel, winograd: true }, batch, &g, transposed);
                case::<f64>(Algorithm { kernel, winograd: false }, batch, &g, transposed);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_is_not_cleared() {
    let g = geometry(1, 1, 1, &[[40, 1, 1, 0, 1]]);
    let x: Vec<f32> = (0..40).map(|i| if i % 3 == 0 { f32::NAN } else { -1.0 }).collect();
    let mut y = vec![5.0; 40];
    g.forward(1, &x, &[1.0], Epilogue { bias: Some(&[0.5]), relu: true }, &mut y);
    assert!(y.iter().enumerate().all(|(i, y)| if i % 3 == 0 { y.is_nan() } else { *y == 0.0 }), "{y:?}");
}

#[test]
fn threads_do_not_change_the_bits() {
    let sq = |a: [usize; 5]| vec![a, a];
    for (batch, g) in [
        (16, geometry(24, 40, 1, &sq([16, 3, 1, 1, 1]))),
        (8, geometry(16, 32, 2, &sq([15, 3, 2, 1, 1]))),
        (32, geometry(1, 20, 1, &sq([28, 5, 1, 0, 1]))),
        (1, geometry(64, 256, 1, &sq([8, 3, 1, 1, 1]))),
        (4, geometry(32, 32, 32, &sq([28, 3, 1, 1, 1]))),
        (4, geometry(32, 32, 32, &sq([28, 4, 2, 1, 1]))),
        (2, geometry(3, 21, 1, &sq([80, 16, 8, 0, 1]))),
        (2, geometry(8, 8, 1, &[[8, 3, 1, 1, 1], [8, 3, 1, 1, 1], [8, 3, 1, 1, 1]])),
        (9, geometry(48, 64, 1, &sq([8, 4, 2, 1, 1]))),
        (40, geometry(70, 90, 1, &sq([4, 4, 1, 0, 1]))),
    ] {
        let x: Vec<f32> = noise(batch * g.input_len(), 1);
        let w: Vec<f32> = noise(g.weights_len(), 2);
        let dy: Vec<f32> = noise(batch * g.output_len(), 4);
        same_bits_on_any_threads(|| {
            let mut y = vec![0.0; batch * g.output_len()];
            let mut dx = vec![0.0; batch * g.input_len()];
            let mut dw = vec![1.0; g.weights_len()];
            g.forward(batch, &x, &w, Epilogue { bias: None, relu: true }, &mut y);
            g.backward_data(batch, &w, &dy, &mut dx);
            g.backward_weights(batch, &x, &dy, &mut dw);
            [y, dx, dw].concat()
        });
    }
}

#[test]
fn patches_and_their_adjoint() {
    let g = geometry(3, 1, 1, &[[6, 3, 2, 1, 1], [5, 2, 1, 1, 2]]);
    let x: Vec<f64> = noise(g.input_len(), 1);
    let len = g.patch_len() * g.output_area();
    let mut col = vec![f64::NAN; len];
    im2col_nd(&g, &x, &mut col);
    let c: Vec<f64> = noise(len, 2);
    let mut back = vec![f64::NAN; x.len()];
    col2im_nd(&g, &c, &mut back);
    let left: f64 = col.iter().zip(&c).map(|(a, b)| a * b).sum();
    let right: f64 = x.iter().zip(&back).map(|(a, b)| a * b).sum();
    assert!((left - right).abs() < 1e-12);
    let mut want = vec![0.0; len];
    visit(&g, 1, |wi, xi, yi| want[wi * g.output_area() + yi] = x[xi]);
    assert_eq!(col, want);
}

#[test]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let refuse = |c, o, g| ConvGeometry::new(c, o, g, vec![Window::UNIT]).unwrap_err().to_string();
    assert!(refuse(3, 4, 2).contains("group (2)"));
    assert!(refuse(4, 3, 2).contains("group (2)"));
    assert!(refuse(4, 4, 0).contains("positive"));
}

#[test]
fn one_product_for_all_images_has_the_bits_of_a_product_for_each() {
    for (batch, inner, channels, size) in [(1, 7, 3, 2), (16, 100, 30, 4), (130, 700, 5, 3), (9, 40, 1, 1)] {
        let g = geometry(channels, inner, 1, &[[size, size, 1, 0, 1]; 2]);
        let conv = g.planar::<f32>(Algorithm::active(), batch).unwrap();
        assert!(conv.is_product());
        let (w, dy) = (noise(g.weights_len(), 1), noise(batch * g.output_len(), 2));
        let (mut found, mut want) = (vec![f32::NAN; batch * g.input_len()], vec![f32::NAN; batch * g.input_len()]);
        g.backward_data(batch, &w, &dy, &mut found);
        data::backward_data(&conv, &w, &dy, Epilogue::default(), &mut want);
        assert_eq!(found, want, "{batch} images, {inner} to {channels} channels of {size} x {size}");
    }
}
