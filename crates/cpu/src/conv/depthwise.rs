//! Depthwise convolution: every channel has its own kernel.
//!
//! [`super::forward`] packs patches because all filters of a group read them; here one does, and packing would copy an element
//! for every tap that uses it once. So the loops are apart from those: rows are read where they lie.
//!
//! And they are two. At stride 1 what a tap reads of a row lies together; at greater strides the row is first split by phases
//! ([`super::phases`]), a copy that at stride 1 would change nothing but the time.

use super::Planar;
use super::epilogue::Epilogue;
use super::patches::Plane;
use super::phases::Phases;
use crate::Float;
use crate::kernel::{Micro, vectorized};
use crate::parallel::{Shared, for_each_block, for_each_row, tasks};
use crate::scratch::Scratch;
use crate::vector::{axpy_block, halves};

/// y = w ∗ x, completed by `epilogue`, channel by channel.
pub(super) fn forward<T: Float>(conv: &Planar<T>, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
    let Planar { micro, ref plane, groups: channels, batch, .. } = *conv;
    debug_assert_eq!(y.len(), batch * channels * plane.out_area());
    let strided = Strided::of(plane);
    for_each_row(y, plane.out_area(), |nc, y| {
        let (x, c) = (&x[nc * plane.area()..][..plane.area()], nc % channels);
        let w = &w[c * plane.taps()..][..plane.taps()];
        y.fill(epilogue.bias.map_or(T::zero(), |b| b[c]));
        match &strided {
            Some(strided) => strided.forward(micro, x, w, y),
            None => forward_plane(plane, x, w, y),
        }
        Epilogue { bias: None, ..epilogue }.apply(c, y);
    });
}

vectorized! {
    /// y += w ∗ x for one plane, of stride 1 along its rows.
    fn forward_plane[T: Float](plane: &Plane, x: &[T], w: &[T], y: &mut [T]) {
        for (oh, y) in y.chunks_exact_mut(plane.columns.output).enumerate() {
            for i in 0..plane.rows.kernel {
                let Some(ih) = plane.rows.position(oh, i) else { continue };
                let row = &x[ih * plane.columns.input..][..plane.columns.input];
                for j in 0..plane.columns.kernel {
                    let (outputs, from) = plane.columns.outputs_of(j);
                    let w = w[i * plane.columns.kernel + j];
                    y[outputs].iter_mut().zip(&row[from..]).for_each(|(y, &x)| *y += w * x);
                }
            }
        }
    }
}

/// dx from dy, completed by `epilogue`, overwriting dx.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], epilogue: Epilogue<'_, T>, dx: &mut [T]) {
    let Planar { micro, ref plane, groups: channels, batch, .. } = *conv;
    debug_assert_eq!(dx.len(), batch * channels * plane.area());
    let strided = Strided::of(plane);
    for_each_row(dx, plane.area(), |nc, dx| {
        let (dy, c) = (&dy[nc * plane.out_area()..][..plane.out_area()], nc % channels);
        let w = &w[c * plane.taps()..][..plane.taps()];
        match &strided {
            Some(strided) => strided.backward_data(micro, w, dy, dx),
            None => {
                dx.fill(T::zero());
                backward_plane(plane, w, dy, dx);
            }
        }
        epilogue.apply(c, dx);
    });
}

vectorized! {
    /// dx += the gradient of one plane, of stride 1 along its rows.
    fn backward_plane[T: Float](plane: &Plane, w: &[T], dy: &[T], dx: &mut [T]) {
        for (oh, dy) in dy.chunks_exact(plane.columns.output).enumerate() {
            for i in 0..plane.rows.kernel {
                let Some(ih) = plane.rows.position(oh, i) else { continue };
                let row = &mut dx[ih * plane.columns.input..][..plane.columns.input];
                for j in 0..plane.columns.kernel {
                    let (outputs, from) = plane.columns.outputs_of(j);
                    let w = w[i * plane.columns.kernel + j];
                    row[from..].iter_mut().zip(&dy[outputs]).for_each(|(x, &y)| *x += w * y);
                }
            }
        }
    }
}

vectorized! {
    /// Σ x·dy over the outputs of a plane whose tap (i, j) is inside the input, in interleaved partial sums; of stride 1
    /// along its rows.
    fn tap_gradient[T: Float](plane: &Plane, i: usize, j: usize, x: &[T], dy: &[T]) -> T {
        const L: usize = 32;
        let mut acc = [T::zero(); L];
        let (outputs, from) = plane.columns.outputs_of(j);
        for (oh, dy) in dy.chunks_exact(plane.columns.output).enumerate() {
            let Some(ih) = plane.rows.position(oh, i) else { continue };
            let (row, dy) = (&x[ih * plane.columns.input + from..(ih + 1) * plane.columns.input], &dy[outputs.clone()]);
            let (dy, dy_tail) = dy.as_chunks::<L>();
            let (x, x_tail) = row.as_chunks::<L>();
            for (x, dy) in x.iter().zip(dy) {
                for l in 0..L {
                    acc[l] += x[l] * dy[l];
                }
            }
            // A tail shorter than dy's last piece still has its elements in the next whole piece of the row.
            let x_tail = if x.len() > dy.len() { &x[dy.len()][..] } else { x_tail };
            acc.iter_mut().zip(x_tail).zip(dy_tail).for_each(|((a, &x), &y)| *a += x * y);
        }
        halves(acc)
    }
}

/// A plane whose windows are more than a column apart: rows are split by phases, or joined of them, once each.
struct Strided<'a> {
    plane: &'a Plane,
    phases: Phases,
}

/// Partial sums of a tap's gradient.
const LANES: usize = 16;

impl<'a> Strided<'a> {
    fn of(plane: &'a Plane) -> Option<Strided<'a>> {
        let phases = || Phases::new(&plane.columns, 0..plane.columns.output);
        (plane.columns.stride > 1).then(|| Strided { plane, phases: phases() })
    }

    /// Rows of a kernel that see row `ih`, each with the output they see it for.
    fn seen(&self, ih: usize) -> impl Iterator<Item = (usize, usize)> {
        let rows = self.plane.rows;
        (0..rows.kernel).filter_map(move |i| Some((i, rows.output_at(ih, i)?)))
    }

    /// y += w ∗ x.
    fn forward<T: Float>(&self, micro: &Micro<T>, x: &[T], w: &[T], y: &mut [T]) {
        let Plane { columns, .. } = *self.plane;
        self.split(micro, x, |i, oh, phases| {
            let (w, y) = (&w[i * columns.kernel..][..columns.kernel], &mut y[oh * columns.output..][..columns.output]);
            add_from_taps(self.phases.taps(), w, phases, y);
        });
    }

    /// dx from dy.
    fn backward_data<T: Float>(&self, micro: &Micro<T>, w: &[T], dy: &[T], dx: &mut [T]) {
        let Plane { columns, .. } = *self.plane;
        let mut scratch = Scratch::<T>::new(2 * self.phases.count());
        let (sums, line) = scratch.split_at_mut(self.phases.count());
        for (ih, dx) in dx.chunks_exact_mut(columns.input).enumerate() {
            sums.fill(T::zero());
            for (i, oh) in self.seen(ih) {
                let w = &w[i * columns.kernel..][..columns.kernel];
                add_to_taps(self.phases.taps(), w, &dy[oh * columns.output..][..columns.output], sums);
            }
            self.phases.join(micro, sums, line, dx, false);
        }
    }

    /// The gradients of a kernel's taps.
    fn weights<T: Float>(&self, micro: &Micro<T>, x: &[T], dy: &[T], dw: &mut [T]) {
        let Plane { columns, .. } = *self.plane;
        let mut sums = Scratch::<T>::new(dw.len() * LANES);
        let sums = sums.as_chunks_mut::<LANES>().0;
        sums.fill([T::zero(); LANES]);
        self.split(micro, x, |i, oh, phases| {
            let sums = &mut sums[i * columns.kernel..][..columns.kernel];
            add_products(self.phases.taps(), phases, &dy[oh * columns.output..][..columns.output], sums);
        });
        dw.iter_mut().zip(sums).for_each(|(dw, sums)| *dw = halves(*sums));
    }

    /// Calls `row(i, output, phases)` with the phases of every row of x for each row `i` of the kernel that sees it.
    fn split<T: Float>(&self, micro: &Micro<T>, x: &[T], mut row: impl FnMut(usize, usize, &[T])) {
        let mut scratch = Scratch::<T>::new(2 * self.phases.count());
        let (phases, line) = scratch.split_at_mut(self.phases.count());
        for (ih, x) in x.chunks_exact(self.plane.columns.input).enumerate() {
            let mut seen = self.seen(ih).peekable();
            if seen.peek().is_some() {
                self.phases.split(micro, x, line, phases);
            }
            seen.for_each(|(i, oh)| row(i, oh, phases));
        }
    }
}

vectorized! {
    /// y += Σ w · what the taps see.
    fn add_from_taps[T: Float](taps: &[usize], w: &[T], phases: &[T], y: &mut [T]) {
        for (&at, &w) in taps.iter().zip(w) {
            y.iter_mut().zip(&phases[at..]).for_each(|(y, &x)| *y += w * x);
        }
    }
}

vectorized! {
    /// What each tap sees += w · dy.
    fn add_to_taps[T: Float](taps: &[usize], w: &[T], dy: &[T], sums: &mut [T]) {
        for (&at, &w) in taps.iter().zip(w) {
            sums[at..].iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += w * dy);
        }
    }
}

vectorized! {
    /// Adds the products of dy and what each tap sees to the tap's sums.
    fn add_products[T: Float](taps: &[usize], phases: &[T], dy: &[T], sums: &mut [[T; LANES]]) {
        let (whole, tail) = dy.as_chunks::<LANES>();
        for (&at, sums) in taps.iter().zip(sums) {
            let (x, rest) = phases[at..][..dy.len()].as_chunks::<LANES>();
            for (x, dy) in x.iter().zip(whole) {
                for l in 0..LANES {
                    sums[l] += x[l] * dy[l];
                }
            }
            sums.iter_mut().zip(rest).zip(tail).for_each(|((sum, &x), &dy)| *sum += x * dy);
        }
    }
}

/// dw += gradient; each image's share is computed apart and they are added in order.
pub(super) fn backward_weights<T: Float>(conv: &Planar<T>, x: &[T], dy: &[T], dw: &mut [T]) {
    let Planar { micro, ref plane, groups: channels, batch, .. } = *conv;
    let taps = plane.taps();
    let strided = Strided::of(plane);
    let mut partial = Scratch::<T>::new(batch * channels * taps);
    let shared = Shared::new(&mut partial);
    tasks(batch * channels, x.len() >= crate::BLOCK, |nc| {
        // SAFETY: each task has the taps of its own channel and image.
        let out = unsafe { shared.part(nc * taps..(nc + 1) * taps) };
        let x = &x[nc * plane.area()..][..plane.area()];
        let dy = &dy[nc * plane.out_area()..][..plane.out_area()];
        if let Some(strided) = &strided {
            return strided.weights(micro, x, dy, out);
        }
        for (tap, out) in out.iter_mut().enumerate() {
            *out = tap_gradient(plane, tap / plane.columns.kernel, tap % plane.columns.kernel, x, dy);
        }
    });
    let (partial, len) = (&partial, channels * taps);
    for_each_block(dw, |at, dst| {
        for image in 0..batch {
            axpy_block(T::one(), &partial[image * len + at..][..dst.len()], dst);
        }
    });
}
