//! The loops of a PReLU: y = x where x is positive, a · x elsewhere, with a slope a for each channel, or one for all.

use std::ops::Range;

use lgm_core::Axes3;

use crate::elementwise::{
    leaky_gradient, map_block, map_block_in_place, zip_block, zip2_block, zip2_block_in_place, zip3_block,
};
use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{BLOCK, Float, for_each_block, for_each_part};

/// Elements summed before the sum moves on to double precision.
const RUN: usize = 4096;
/// Rows of channels summed before the sums move on to double precision, and channels of such rows that a task takes.
const ROWS: usize = 64;
const COLUMNS: usize = 4096;

/// x where it is positive, a · x elsewhere.
#[inline(always)]
fn value<T: Float>(x: T, slope: T) -> T {
    leaky_gradient(x, x, slope)
}

/// Elements with one slope, or consecutive channels with a slope each.
enum Slopes<'a, T> {
    One(T),
    Each(&'a [T]),
}

/// Calls `run` with the pieces of the elements `at` to `at + len`, counted from the first of them, and their slopes.
fn pieces<'a, T: Float>(
    (at, len): (usize, usize),
    axes: Axes3,
    slopes: &'a [T],
    mut run: impl FnMut(Range<usize>, Slopes<'a, T>),
) {
    if let [slope] = slopes {
        return run(0..len, Slopes::One(*slope));
    }
    let row = if axes.inner == 1 { axes.channels } else { axes.inner };
    let mut from = 0;
    while from < len {
        let (i, skip) = ((at + from) / row, (at + from) % row);
        let piece = from..(from + row - skip).min(len);
        match axes.inner {
            1 => run(piece.clone(), Slopes::Each(&slopes[skip..][..piece.len()])),
            _ => run(piece.clone(), Slopes::One(slopes[i % axes.channels])),
        }
        from = piece.end;
    }
}

/// y of x, or of y itself when `x` is absent; a slope for each channel of `axes`, or one.
///
/// # Panics
/// When a slice is too short.
pub fn forward<T: Float>(x: Option<&[T]>, slopes: &[T], axes: Axes3, y: &mut [T]) {
    for_each_block(y, |at, y| {
        pieces((at, y.len()), axes, slopes, |piece, slopes| {
            let (x, y) = (x.map(|x| &x[at..][piece.clone()]), &mut y[piece]);
            match (x, slopes) {
                (Some(x), Slopes::One(a)) => map_block(x, y, &|x| value(x, a)),
                (None, Slopes::One(a)) => map_block_in_place(y, &|x| value(x, a)),
                (Some(x), Slopes::Each(slopes)) => zip2_block(x, slopes, y, &value),
                (None, Slopes::Each(slopes)) => zip_block(slopes, y, &value),
            }
        });
    });
}

/// dx of x and dy, the latter in dx when it is absent.
///
/// # Panics
/// When a slice is too short.
pub fn backward<T: Float>(x: &[T], dy: Option<&[T]>, slopes: &[T], axes: Axes3, dx: &mut [T]) {
    for_each_block(dx, |at, dx| {
        pieces((at, dx.len()), axes, slopes, |piece, slopes| {
            let (x, dy) = (&x[at..][piece.clone()], dy.map(|dy| &dy[at..][piece.clone()]));
            let dx = &mut dx[piece];
            match (dy, slopes) {
                (Some(dy), Slopes::One(a)) => zip2_block(x, dy, dx, &|x, dy| leaky_gradient(x, dy, a)),
                (None, Slopes::One(a)) => zip_block(x, dx, &|dy, x| leaky_gradient(x, dy, a)),
                (Some(dy), Slopes::Each(slopes)) => zip3_block(x, dy, slopes, dx, &leaky_gradient),
                (None, Slopes::Each(slopes)) => {
                    zip2_block_in_place(x, slopes, dx, &|dy, x, a| leaky_gradient(x, dy, a));
                }
            }
        });
    });
}

/// The gradient of the slope of each channel of `axes`: Σ dy · x over the elements that are not positive. Overwrites `sums`.
///
/// # Panics
/// When a slice is too short.
pub fn slope_gradients<T: Float>(x: &[T], dy: &[T], axes: Axes3, sums: &mut [T]) {
    let Axes3 { outer, channels, inner } = axes;
    let sums = &mut sums[..channels];
    if inner == 1 {
        return sums_of_rows(x, dy, (outer, channels), sums);
    }
    let at_once = (BLOCK / (outer * inner).max(1)).max(1);
    for_each_part(sums, at_once, |t, sums| {
        for (c, sum) in sums.iter_mut().enumerate() {
            let row = |i: usize| (i * channels + t * at_once + c) * inner;
            let rows = (0..outer).map(|i| row(i)..row(i) + inner);
            *sum = T::of(rows.map(|r| below(&x[r.clone()], &dy[r])).sum());
        }
    });
}

/// Σ dy · x over the elements that are not positive.
fn below<T: Float>(x: &[T], dy: &[T]) -> f64 {
    x.chunks(RUN).zip(dy.chunks(RUN)).map(|(x, dy)| below_run(x, dy).f64()).sum()
}

vectorized! {
    fn below_run[T: Float](x: &[T], dy: &[T]) -> T {
        const L: usize = 64;
        let mut acc = [T::zero(); L];
        let (xs, dys) = (x.chunks_exact(L), dy.chunks_exact(L));
        let (xt, dyt) = (xs.remainder(), dys.remainder());
        for (x, dy) in xs.zip(dys) {
            for l in 0..L {
                acc[l] += below_product(x[l], dy[l]);
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
        xt.iter().zip(dyt).fold(acc[0], |sum, (&x, &dy)| sum + below_product(x, dy))
    }
}

/// dy · x, or nought where x is positive.
#[inline(always)]
fn below_product<T: Float>(x: T, dy: T) -> T {
    let product = dy * x;
    if x > T::zero() { T::zero() } else { product }
}

/// [`slope_gradients`] of `outer` rows of an element a channel.
fn sums_of_rows<T: Float>(x: &[T], dy: &[T], (outer, channels): (usize, usize), sums: &mut [T]) {
    let (blocks, parts) = (outer.div_ceil(ROWS), channels.div_ceil(COLUMNS));
    let mut partial = Scratch::<T>::new(blocks * channels);
    let shared = Shared::new(&mut partial);
    tasks(blocks * parts, outer * channels > BLOCK, |t| {
        let (block, from) = (t / parts, t % parts * COLUMNS);
        let to = (from + COLUMNS).min(channels);
        // SAFETY: these columns of a block are one task's.
        let sums = unsafe { shared.part(block * channels + from..block * channels + to) };
        sums.fill(T::zero());
        for row in block * ROWS..((block + 1) * ROWS).min(outer) {
            let row = row * channels + from..row * channels + to;
            zip2_block_in_place(&x[row.clone()], &dy[row], sums, &|sum, x, dy| sum + below_product(x, dy));
        }
    });
    for (c, sum) in sums.iter_mut().enumerate() {
        *sum = T::of((0..blocks).map(|block| partial[block * channels + c].f64()).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_bits_on_any_threads};

    #[test]
    fn every_layout_is_what_its_elements_say() {
        for (outer, channels, inner) in [(3, 5, 7), (130, 3, 1), (2, 5000, 1), (1, 2, 9000), (4, 6, 1), (0, 3, 2)] {
            let axes = Axes3::new(outer, channels, inner);
            let (x, dy): (Vec<f64>, Vec<f64>) = (noise(axes.count(), 1), noise(axes.count(), 2));
            for count in [channels, 1] {
                let slopes: Vec<f64> = noise(count, 3);
                let slope = |i: usize| slopes[i / inner % channels % count];
                let factor = |i: usize| if x[i] > 0.0 { 1.0 } else { slope(i) };
                let (mut y, mut dx) = (vec![7.0; x.len()], vec![7.0; x.len()]);
                forward(Some(&x), &slopes, axes, &mut y);
                backward(&x, Some(&dy), &slopes, axes, &mut dx);
                let (mut y_in_place, mut dx_in_place) = (x.clone(), dy.clone());
                forward(None, &slopes, axes, &mut y_in_place);
                backward(&x, None, &slopes, axes, &mut dx_in_place);
                assert!(y == y_in_place && dx == dx_in_place, "{axes:?}");
                assert!((0..x.len()).all(|i| y[i] == factor(i) * x[i] && dx[i] == factor(i) * dy[i]), "{axes:?}");
            }
            let mut sums = vec![7.0; channels];
            slope_gradients(&x, &dy, axes, &mut sums);
            for c in 0..channels {
                let of_channel = (0..x.len()).filter(|i| i / inner % channels == c && x[*i] <= 0.0);
                let want: f64 = of_channel.map(|i| x[i] * dy[i]).sum();
                assert!((sums[c] - want).abs() < 1e-9, "{axes:?}: {} for {want}", sums[c]);
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        for axes in [Axes3::new(300, 500, 1), Axes3::new(20, 30, 100)] {
            let (x, dy): (Vec<f32>, Vec<f32>) = (noise(axes.count(), 1), noise(axes.count(), 2));
            same_bits_on_any_threads(|| {
                let mut sums = vec![0.0f32; axes.channels];
                slope_gradients(&x, &dy, axes, &mut sums);
                sums
            });
        }
    }
}
