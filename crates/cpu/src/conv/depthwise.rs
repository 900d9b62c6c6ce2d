//! Depthwise convolution: every channel has its own kernel, so there is no product to block.

use super::Planar;
use super::epilogue::Epilogue;
use super::patches::Plane;
use crate::Float;
use crate::kernel::vectorized;
use crate::parallel::{Shared, for_each_block, for_each_row, tasks};
use crate::scratch::Scratch;
use crate::vector::axpy_block;

/// y = w ∗ x, completed by `epilogue`, channel by channel.
pub(super) fn forward<T: Float>(conv: &Planar<T>, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
    let Planar { ref plane, groups: channels, batch, .. } = *conv;
    debug_assert_eq!(y.len(), batch * channels * plane.out_area());
    for_each_row(y, plane.out_area(), |nc, y| {
        let (x, c) = (&x[nc * plane.area()..][..plane.area()], nc % channels);
        y.fill(epilogue.bias.map_or(T::zero(), |b| b[c]));
        forward_plane(plane, x, &w[c * plane.taps()..][..plane.taps()], y);
        Epilogue { bias: None, ..epilogue }.apply(c, y);
    });
}

vectorized! {
    /// y += w ∗ x for one plane.
    fn forward_plane[T: Float](plane: &Plane, x: &[T], w: &[T], y: &mut [T]) {
        for (oh, y) in y.chunks_exact_mut(plane.columns.output).enumerate() {
            for i in 0..plane.rows.kernel {
                let Some(ih) = plane.rows.position(oh, i) else { continue };
                let row = &x[ih * plane.columns.input..][..plane.columns.input];
                for j in 0..plane.columns.kernel {
                    let (outputs, from) = plane.columns.outputs_of(j);
                    let (w, y) = (w[i * plane.columns.kernel + j], &mut y[outputs]);
                    if plane.columns.stride == 1 {
                        y.iter_mut().zip(&row[from..]).for_each(|(y, &x)| *y += w * x);
                    } else {
                        y.iter_mut().zip(row[from..].iter().step_by(plane.columns.stride)).for_each(|(y, &x)| *y += w * x);
                    }
                }
            }
        }
    }
}

/// dx from dy, overwriting dx.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], dx: &mut [T]) {
    let Planar { ref plane, groups: channels, batch, .. } = *conv;
    debug_assert_eq!(dx.len(), batch * channels * plane.area());
    for_each_row(dx, plane.area(), |nc, dx| {
        let (dy, c) = (&dy[nc * plane.out_area()..][..plane.out_area()], nc % channels);
        dx.fill(T::zero());
        backward_plane(plane, &w[c * plane.taps()..][..plane.taps()], dy, dx);
    });
}

vectorized! {
    /// dx += the gradient of one plane.
    fn backward_plane[T: Float](plane: &Plane, w: &[T], dy: &[T], dx: &mut [T]) {
        for (oh, dy) in dy.chunks_exact(plane.columns.output).enumerate() {
            for i in 0..plane.rows.kernel {
                let Some(ih) = plane.rows.position(oh, i) else { continue };
                let row = &mut dx[ih * plane.columns.input..][..plane.columns.input];
                for j in 0..plane.columns.kernel {
                    let (outputs, from) = plane.columns.outputs_of(j);
                    let (w, dy) = (w[i * plane.columns.kernel + j], &dy[outputs]);
                    if plane.columns.stride == 1 {
                        row[from..].iter_mut().zip(dy).for_each(|(x, &y)| *x += w * y);
                    } else {
                        row[from..].iter_mut().step_by(plane.columns.stride).zip(dy).for_each(|(x, &y)| *x += w * y);
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Σ x·dy over the outputs of a plane whose tap (i, j) is inside the input, in interleaved partial sums.
    fn tap_gradient[T: Float](plane: &Plane, i: usize, j: usize, x: &[T], dy: &[T]) -> T {
        const L: usize = 32;
        let mut acc = [T::zero(); L];
        let (outputs, from) = plane.columns.outputs_of(j);
        for (oh, dy) in dy.chunks_exact(plane.columns.output).enumerate() {
            let Some(ih) = plane.rows.position(oh, i) else { continue };
            let (row, dy) = (&x[ih * plane.columns.input + from..(ih + 1) * plane.columns.input], &dy[outputs.clone()]);
            if plane.columns.stride == 1 {
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
            } else {
                acc[0] += row.iter().step_by(plane.columns.stride).zip(dy).fold(T::zero(), |s, (&x, &y)| s + x * y);
            }
        }
        let mut width = L;
        while width > 1 {
            width /= 2;
            for l in 0..width {
                let high = acc[l + width];
                acc[l] += high;
            }
        }
        acc[0]
    }
}

/// dw += gradient; each image's share is computed apart and they are added in order.
pub(super) fn backward_weights<T: Float>(conv: &Planar<T>, x: &[T], dy: &[T], dw: &mut [T]) {
    let Planar { ref plane, groups: channels, batch, .. } = *conv;
    let taps = plane.taps();
    let mut partial = Scratch::<T>::new(batch * channels * taps);
    let shared = Shared::new(&mut partial);
    tasks(batch * channels, x.len() >= crate::BLOCK, |nc| {
        // SAFETY: each task has the taps of its own channel and image.
        let out = unsafe { shared.part(nc * taps..(nc + 1) * taps) };
        let x = &x[nc * plane.area()..][..plane.area()];
        let dy = &dy[nc * plane.out_area()..][..plane.out_area()];
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
