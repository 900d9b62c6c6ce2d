//! Depthwise convolution: every channel has its own kernel, so there is no product to block.

use super::epilogue::Epilogue;
use super::patches::Plane;
use crate::Float;
use crate::kernel::vectorized;
use crate::parallel::{Shared, for_each_block, for_each_row, tasks};
use crate::scratch::Scratch;
use crate::vector::axpy_block;

/// Outputs `first..end` of a row whose tap j falls inside the input, and the input column of the first.
fn span(plane: &Plane, j: usize) -> (usize, usize, usize) {
    let shift = (j * plane.dw) as isize - plane.pw;
    let first = (-shift).max(0).unsigned_abs().div_ceil(plane.sw);
    let end = (plane.w as isize - shift).max(0).unsigned_abs().div_ceil(plane.sw).min(plane.ow);
    if first >= end { (0, 0, 0) } else { (first, end, ((first * plane.sw) as isize + shift) as usize) }
}

/// The input row under tap i of output row oh, if there is one.
fn input_row(plane: &Plane, oh: usize, i: usize) -> Option<usize> {
    let ih = (oh * plane.sh + i * plane.dh) as isize - plane.ph;
    (0..plane.h as isize).contains(&ih).then_some(ih as usize)
}

/// y = w ∗ x, completed by `epilogue`, channel by channel.
pub(super) fn forward<T: Float>(
    plane: &Plane,
    channels: usize,
    batch: usize,
    x: &[T],
    w: &[T],
    epilogue: Epilogue<'_, T>,
    y: &mut [T],
) {
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
        for (oh, y) in y.chunks_exact_mut(plane.ow).enumerate() {
            for i in 0..plane.kh {
                let Some(ih) = input_row(plane, oh, i) else { continue };
                let row = &x[ih * plane.w..][..plane.w];
                for j in 0..plane.kw {
                    let (first, end, from) = span(plane, j);
                    let (w, y) = (w[i * plane.kw + j], &mut y[first..end]);
                    if plane.sw == 1 {
                        y.iter_mut().zip(&row[from..]).for_each(|(y, &x)| *y += w * x);
                    } else {
                        y.iter_mut().zip(row[from..].iter().step_by(plane.sw)).for_each(|(y, &x)| *y += w * x);
                    }
                }
            }
        }
    }
}

/// dx from dy, overwriting dx.
pub(super) fn backward_data<T: Float>(plane: &Plane, channels: usize, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
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
        for (oh, dy) in dy.chunks_exact(plane.ow).enumerate() {
            for i in 0..plane.kh {
                let Some(ih) = input_row(plane, oh, i) else { continue };
                let row = &mut dx[ih * plane.w..][..plane.w];
                for j in 0..plane.kw {
                    let (first, end, from) = span(plane, j);
                    let (w, dy) = (w[i * plane.kw + j], &dy[first..end]);
                    if plane.sw == 1 {
                        row[from..].iter_mut().zip(dy).for_each(|(x, &y)| *x += w * y);
                    } else {
                        row[from..].iter_mut().step_by(plane.sw).zip(dy).for_each(|(x, &y)| *x += w * y);
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Σ x·dy over the outputs of a plane whose tap (i, j) lies inside the input, in interleaved partial sums.
    fn tap_gradient[T: Float](plane: &Plane, i: usize, j: usize, x: &[T], dy: &[T]) -> T {
        const L: usize = 32;
        let mut acc = [T::zero(); L];
        let (first, end, from) = span(plane, j);
        for (oh, dy) in dy.chunks_exact(plane.ow).enumerate() {
            let Some(ih) = input_row(plane, oh, i) else { continue };
            let (row, dy) = (&x[ih * plane.w + from..(ih + 1) * plane.w], &dy[first..end]);
            if plane.sw == 1 {
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
                acc[0] += row.iter().step_by(plane.sw).zip(dy).fold(T::zero(), |s, (&x, &y)| s + x * y);
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
pub(super) fn backward_weights<T: Float>(
    plane: &Plane,
    channels: usize,
    batch: usize,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let taps = plane.taps();
    let mut partial = Scratch::<T>::new(batch * channels * taps);
    let shared = Shared::new(&mut partial);
    tasks(batch * channels, x.len() >= crate::BLOCK, |nc| {
        // SAFETY: each task has the taps of its own channel and image.
        let out = unsafe { shared.part(nc * taps..(nc + 1) * taps) };
        let x = &x[nc * plane.area()..][..plane.area()];
        let dy = &dy[nc * plane.out_area()..][..plane.out_area()];
        for (tap, out) in out.iter_mut().enumerate() {
            *out = tap_gradient(plane, tap / plane.kw, tap % plane.kw, x, dy);
        }
    });
    let (partial, len) = (&partial, channels * taps);
    for_each_block(dw, |at, dst| {
        for image in 0..batch {
            axpy_block(T::one(), &partial[image * len + at..][..dst.len()], dst);
        }
    });
}
