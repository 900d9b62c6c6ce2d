//! Depthwise convolution: every channel has its own kernel, so there is no product to block.

use super::patches::Plane;
use crate::Float;
use crate::gemv::{axpy_block, dot_block};
use crate::parallel::{Shared, for_each_block, for_each_row, tasks};
use crate::scratch::Scratch;

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

/// y = w ∗ x + b, channel by channel.
pub(super) fn forward<T: Float>(
    plane: &Plane,
    channels: usize,
    batch: usize,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    debug_assert_eq!(y.len(), batch * channels * plane.out_area());
    for_each_row(y, plane.out_area(), |nc, y| {
        let (x, c) = (&x[nc * plane.area()..][..plane.area()], nc % channels);
        let w = &w[c * plane.taps()..][..plane.taps()];
        y.fill(bias.map_or(T::zero(), |b| b[c]));
        for (oh, y) in y.chunks_exact_mut(plane.ow).enumerate() {
            for i in 0..plane.kh {
                let Some(ih) = input_row(plane, oh, i) else { continue };
                let row = &x[ih * plane.w..][..plane.w];
                for j in 0..plane.kw {
                    let (first, end, from) = span(plane, j);
                    let (w, y) = (w[i * plane.kw + j], &mut y[first..end]);
                    if plane.sw == 1 {
                        axpy_block(w, &row[from..], y);
                    } else {
                        y.iter_mut().zip(row[from..].iter().step_by(plane.sw)).for_each(|(y, &x)| *y += w * x);
                    }
                }
            }
        }
    });
}

/// dx from dy, overwriting dx.
pub(super) fn backward_data<T: Float>(plane: &Plane, channels: usize, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
    debug_assert_eq!(dx.len(), batch * channels * plane.area());
    for_each_row(dx, plane.area(), |nc, dx| {
        let (dy, c) = (&dy[nc * plane.out_area()..][..plane.out_area()], nc % channels);
        let w = &w[c * plane.taps()..][..plane.taps()];
        dx.fill(T::zero());
        for (oh, dy) in dy.chunks_exact(plane.ow).enumerate() {
            for i in 0..plane.kh {
                let Some(ih) = input_row(plane, oh, i) else { continue };
                let row = &mut dx[ih * plane.w..][..plane.w];
                for j in 0..plane.kw {
                    let (first, end, from) = span(plane, j);
                    let (w, dy) = (w[i * plane.kw + j], &dy[first..end]);
                    if plane.sw == 1 {
                        axpy_block(w, dy, &mut row[from..]);
                    } else {
                        row[from..].iter_mut().step_by(plane.sw).zip(dy).for_each(|(x, &y)| *x += w * y);
                    }
                }
            }
        }
    });
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
        out.fill(T::zero());
        let x = &x[nc * plane.area()..][..plane.area()];
        let dy = &dy[nc * plane.out_area()..][..plane.out_area()];
        for (oh, dy) in dy.chunks_exact(plane.ow).enumerate() {
            for i in 0..plane.kh {
                let Some(ih) = input_row(plane, oh, i) else { continue };
                let row = &x[ih * plane.w..][..plane.w];
                for j in 0..plane.kw {
                    let (first, end, from) = span(plane, j);
                    let dy = &dy[first..end];
                    out[i * plane.kw + j] += if plane.sw == 1 {
                        dot_block(&row[from..from + dy.len()], dy)
                    } else {
                        row[from..].iter().step_by(plane.sw).zip(dy).fold(T::zero(), |s, (&x, &y)| s + x * y)
                    };
                }
            }
        }
    });
    let (partial, len) = (&partial, channels * taps);
    for_each_block(dw, |at, dst| {
        for image in 0..batch {
            axpy_block(T::one(), &partial[image * len + at..][..dst.len()], dst);
        }
    });
}
