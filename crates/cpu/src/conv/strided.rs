//! A convolution by 4 × 4 kernels of stride 2 as a dense one: the input's positions of equal parity along each axis become
//! channels of their own, four for each ("phases"), over which the kernel has 2 × 2 elements. Winograd's algorithm then takes
//! 25 products where the direct one takes 64.
//!
//! Of a transposed convolution the output is what is dealt out so ("sub-pixel convolution", Shi et al., "Real-Time Single Image
//! and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", 2016).

use std::ops::Range;

use lgm_core::Window;

use super::epilogue::Epilogue;
use super::patches::{Plane, copy_phase};
use super::{Planar, winograd};
use crate::Float;
use crate::gemm::even_block;
use crate::kernel::vectorized;
use crate::parallel::{BLOCK, Shared, for_each_part, tasks};
use crate::scratch::Scratch;

/// The stride, and the dense kernel's elements along an axis.
const STRIDE: usize = 2;
const TAPS: usize = 2;
/// Phases of a channel, and elements of its kernel and of its dense kernels.
const PHASES: usize = STRIDE * STRIDE;
const LEN: usize = PHASES * TAPS * TAPS;
/// Elements of phases held at once, about.
const ELEMENTS: usize = 1 << 22;

/// The window over the phases along an axis. Element q of a kernel is element q div 2 of phase q mod 2, whose positions begin where
/// the first window does, that far on.
fn dense(w: &Window) -> Option<Window> {
    let suits = (w.kernel, w.stride, w.dilation) == (STRIDE * TAPS, STRIDE, 1) && w.pad >= 0;
    suits.then_some(Window { input: w.output + TAPS - 1, output: w.output, kernel: TAPS, ..Window::UNIT })
}

/// A strided convolution and its dense one.
pub(super) struct Strided<T: 'static> {
    plane: Plane,
    /// Over the phases.
    dense: Planar<T>,
}

/// Where an element of a kernel stands in the dense kernels of its channel.
const fn place(element: usize) -> usize {
    let (y, x) = (element / (STRIDE * TAPS), element % (STRIDE * TAPS));
    let phase = y % STRIDE * STRIDE + x % STRIDE;
    (phase * TAPS + y / STRIDE) * TAPS + x / STRIDE
}

impl<T: Float> Strided<T> {
    /// The dense form of a convolution, if it has one that takes less time than the direct algorithm.
    pub fn of(conv: &Planar<T>) -> Option<Strided<T>> {
        let (rows, columns) = (dense(&conv.plane.rows)?, dense(&conv.plane.columns)?);
        let plane = Plane { channels: lgm_core::count(&[conv.plane.channels, PHASES]), rows, columns };
        let direct = lgm_core::count(&[plane.out_area(), LEN]);
        let products = lgm_core::count(&[PHASES, winograd::products(&plane)]);
        let dense = Planar { plane, ..*conv };
        // Dealing out and transforming takes its time too.
        let gains = products <= direct / 10 * 6 && winograd::suits(&dense);
        gains.then_some(Strided { plane: conv.plane, dense })
    }

    /// Channels of all groups.
    fn channels(&self) -> usize {
        self.dense.groups * self.plane.channels
    }

    /// Elements of an image of x, of its phases, and of y.
    fn image(&self) -> [usize; 3] {
        let phases = self.channels() * PHASES * self.dense.plane.area();
        [self.channels() * self.plane.area(), phases, self.dense.groups * self.dense.rows * self.plane.out_area()]
    }

    /// Calls `run` with the dense convolution of some images at a time, and with memory for their phases; how many is a
    /// matter of the shapes alone.
    fn each_part(&self, mut run: impl FnMut(&Planar<T>, Range<usize>, &mut [T])) {
        let (batch, len) = (self.dense.batch, self.image()[1]);
        let images = even_block(batch, (ELEMENTS / len.max(1)).max(1));
        let mut phases = Scratch::<T>::new(images * len);
        for from in (0..batch).step_by(images) {
            let part = from..(from + images).min(batch);
            run(&Planar { batch: part.len(), ..self.dense }, part.clone(), &mut phases[..part.len() * len]);
        }
    }

    /// y = w ∗ x, completed by `epilogue`.
    pub fn forward(&self, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
        let (w, [of_x, _, of_y]) = (self.kernels(w), self.image());
        self.each_part(|dense, images, phases| {
            self.split(&x[images.start * of_x..images.end * of_x], phases);
            winograd::forward(dense, phases, &w, epilogue, &mut y[images.start * of_y..images.end * of_y]);
        });
    }

    /// dx from dy, completed by `epilogue`.
    pub fn backward_data(&self, w: &[T], dy: &[T], epilogue: Epilogue<'_, T>, dx: &mut [T]) {
        let (w, [of_x, _, of_y]) = (self.kernels(w), self.image());
        self.each_part(|dense, images, phases| {
            let dy = &dy[images.start * of_y..images.end * of_y];
            winograd::backward_data(dense, &w, dy, Epilogue::default(), phases);
            self.join(phases, epilogue, &mut dx[images.start * of_x..images.end * of_x]);
        });
    }

    /// Adds to dw.
    pub fn backward_weights(&self, x: &[T], dy: &[T], dw: &mut [T]) {
        let [of_x, _, of_y] = self.image();
        let mut sums = Scratch::<T>::new(dw.len());
        for_each_part(&mut sums, BLOCK, |_, sums| sums.fill(T::zero()));
        self.each_part(|dense, images, phases| {
            self.split(&x[images.start * of_x..images.end * of_x], phases);
            winograd::backward_weights(dense, phases, &dy[images.start * of_y..images.end * of_y], &mut sums);
        });
        for_each_part(dw, BLOCK, |t, dw| {
            for (dw, sums) in dw.chunks_exact_mut(LEN).zip(sums[t * BLOCK..].chunks_exact(LEN)) {
                dw.iter_mut().enumerate().for_each(|(i, dw)| *dw += sums[place(i)]);
            }
        });
    }

    /// The dense kernels.
    fn kernels(&self, w: &[T]) -> Scratch<T> {
        let mut dense = Scratch::<T>::new(w.len());
        for_each_part(&mut dense, BLOCK, |t, dense| {
            for (dense, w) in dense.chunks_exact_mut(LEN).zip(w[t * BLOCK..].chunks_exact(LEN)) {
                w.iter().enumerate().for_each(|(i, &w)| dense[place(i)] = w);
            }
        });
        dense
    }

    /// The phases of images of x, with zeros where there is none of it.
    fn split(&self, x: &[T], phases: &mut [T]) {
        let (area, dense_area) = (self.plane.area(), self.dense.plane.area());
        let Plane { rows, columns, .. } = self.plane;
        for_each_part(phases, PHASES * dense_area, |i, phases| {
            let x = &x[i * area..][..area];
            for (phase, to) in phases.chunks_exact_mut(dense_area).enumerate() {
                let top = (phase / STRIDE) as isize - rows.pad;
                let left = (phase % STRIDE) as isize - columns.pad;
                for (j, to) in to.chunks_exact_mut(self.dense.plane.columns.input).enumerate() {
                    match top + (j * STRIDE) as isize {
                        row if (0..rows.input as isize).contains(&row) => {
                            copy_phase(&x[row as usize * columns.input..][..columns.input], left, STRIDE, to);
                        }
                        _ => to.fill(T::zero()),
                    }
                }
            }
        });
    }

    /// Images of x of their phases, completed by `epilogue`; zeros where no window reaches.
    fn join(&self, phases: &[T], epilogue: Epilogue<'_, T>, x: &mut [T]) {
        let (area, dense_area) = (self.plane.area(), self.dense.plane.area());
        let (wide, dense_wide) = (self.plane.columns.input, self.dense.plane.columns.input);
        let [above, before] = [self.plane.rows.pad, self.plane.columns.pad].map(isize::unsigned_abs);
        let of_channel = PHASES * dense_area;
        let count = x.len() / area;
        let x = Shared::new(x);
        tasks(count, true, |i| {
            // SAFETY: a channel of an image is one task's.
            let x = unsafe { x.part(i * area..(i + 1) * area) };
            let phases = &phases[i * of_channel..][..of_channel];
            for (row, to) in x.chunks_exact_mut(wide).enumerate() {
                let (phase, j) = ((row + above) % STRIDE, (row + above) / STRIDE);
                if j >= self.dense.plane.rows.input {
                    to.fill(T::zero());
                    continue;
                }
                let first = phase * STRIDE * dense_area + j * dense_wide;
                let from = |column: usize| {
                    let phase = &phases[first + column % STRIDE * dense_area..][..dense_wide];
                    phase.get(column / STRIDE..).unwrap_or_default()
                };
                interleave(from(before), from(before + 1), to);
            }
            epilogue.apply(i % self.channels(), x);
        });
    }
}

vectorized! {
    /// dst = a₀, b₀, a₁, b₁ …, and zeros where these end.
    fn interleave[T: Float](a: &[T], b: &[T], dst: &mut [T]) {
        let pairs = a.len().min(b.len()).min(dst.len() / 2);
        let (both, rest) = dst.split_at_mut(2 * pairs);
        for ((pair, &a), &b) in both.as_chunks_mut::<2>().0.iter_mut().zip(a).zip(b) {
            *pair = [a, b];
        }
        rest.fill(T::zero());
        rest.iter_mut().step_by(2).zip(&a[pairs..]).for_each(|(v, &a)| *v = a);
        rest.iter_mut().skip(1).step_by(2).zip(&b[pairs..]).for_each(|(v, &b)| *v = b);
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::Window;

    use super::super::{Algorithm, ConvGeometry, Epilogue};
    use super::*;
    use crate::kernel::Kernel;
    use crate::testing::{noise, relative_error, same_bits_on_any_threads};

    /// Of inputs, kernels, strides and paddings along both axes.
    fn geometry(c: usize, o: usize, group: usize, axes: [[usize; 4]; 2]) -> ConvGeometry {
        let windows = axes.map(|[input, kernel, stride, pad]| Window::new(input, kernel, stride, pad, 1).unwrap());
        ConvGeometry::new(c, o, group, windows.to_vec()).unwrap()
    }

    fn cases() -> Vec<(usize, ConvGeometry)> {
        vec![
            (5, geometry(16, 20, 1, [[16, 4, 2, 1]; 2])),
            (4, geometry(17, 33, 1, [[15, 4, 2, 1], [18, 4, 2, 0]])),
            (2, geometry(32, 32, 2, [[30, 4, 2, 1], [31, 4, 2, 0]])),
            (5, geometry(18, 16, 1, [[16, 4, 2, 2], [17, 4, 2, 3]])),
            (70, geometry(16, 16, 1, [[16, 4, 2, 1]; 2])),
            (2, geometry(130, 70, 1, [[28, 4, 2, 1]; 2])),
            (32, geometry(48, 64, 1, [[8, 4, 2, 1]; 2])),
        ]
    }

    /// y, dx as what a transposed convolution makes, with a bias and a ReLU, and dw.
    fn run<T: Float>(algorithm: Algorithm, batch: usize, g: &ConvGeometry) -> [Vec<T>; 3] {
        let (x, dy) = (noise::<T>(batch * g.input_len(), 1), noise::<T>(batch * g.output_len(), 4));
        let (w, b, c) = (noise::<T>(g.weights_len(), 2), noise::<T>(g.out_channels, 3), noise::<T>(g.in_channels, 6));
        let (mut y, mut dx) = (vec![T::nan(); dy.len()], vec![T::nan(); x.len()]);
        let mut dw: Vec<T> = noise(w.len(), 5);
        g.forward_with(algorithm, batch, &x, &w, Epilogue::bias(&b), &mut y);
        g.forward_transposed_with(algorithm, batch, &dy, &w, Epilogue { bias: Some(&c), relu: true }, &mut dx);
        g.backward_weights_with(algorithm, batch, &x, &dy, &mut dw);
        [y, dx, dw]
    }

    #[test]
    fn agrees_with_the_direct_algorithm() {
        for (batch, g) in cases() {
            let direct = run::<f64>(Algorithm { winograd: false, ..Algorithm::active() }, batch, &g);
            for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
                let algorithm = Algorithm { kernel, winograd: true };
                let conv = g.planar::<f32>(algorithm, batch).unwrap();
                assert!(conv.strided(algorithm).is_some(), "{g:?} is not computed so");
                for (found, want) in run::<f32>(algorithm, batch, &g).iter().zip(&direct) {
                    let e = relative_error(found, want);
                    assert!(e < 2e-5, "{kernel:?}, batch {batch} of {g:?}: off by {e:e}");
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let g = geometry(48, 64, 1, [[32, 4, 2, 1]; 2]);
        same_bits_on_any_threads(|| run::<f32>(Algorithm::active(), 6, &g).concat());
    }

    #[test]
    fn only_windows_of_four_elements_and_stride_two_have_a_dense_form() {
        let of = |input, kernel, stride, pad| dense(&Window::new(input, kernel, stride, pad, 1).unwrap());
        assert!(of(16, 4, 2, 1).is_some() && of(16, 4, 2, 3).is_some());
        assert!(of(16, 3, 2, 1).is_none() && of(16, 4, 1, 1).is_none() && of(16, 8, 4, 0).is_none());
        assert!(dense(&Window { dilation: 2, ..Window::new(16, 4, 2, 1, 1).unwrap() }).is_none());
        assert!(dense(&Window { pad: -1, ..Window::new(16, 4, 2, 0, 1).unwrap() }).is_none());
    }
}
