//! The loops of a PReLU: y = x where x is positive, a · x elsewhere, with a slope a for each channel, or one for all.

use std::ops::Range;

use lgm_core::Axes3;

use crate::elementwise::{Map, Map2, leaky_gradient, map_block_in_place, zip_block};
use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::stream::{compute_part, is_large};
use crate::vector::halves;
use crate::{BLOCK, Float, for_each_block};

/// Elements of a channel summed before the sum moves on to double precision.
const RUN: usize = 4096;
/// About the elements of a task of the gradients.
const TILE: usize = 4 * BLOCK;

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
    let large = is_large(y);
    for_each_block(y, |at, y| {
        pieces((at, y.len()), axes, slopes, |piece, slopes| {
            let (x, y) = (x.map(|x| &x[at..][piece.clone()]), &mut y[piece]);
            match (x, slopes) {
                (Some(src), Slopes::One(a)) => compute_part(large, 0, y, &Map { src, f: |x| value(x, a) }),
                (None, Slopes::One(a)) => map_block_in_place(y, &|x| value(x, a)),
                (Some(x), Slopes::Each(slopes)) => compute_part(large, 0, y, &Map2 { a: x, b: slopes, f: value }),
                (None, Slopes::Each(slopes)) => zip_block(slopes, y, &value),
            }
        });
    });
}

/// dx of x and dy, the latter in dx when it is absent, if dx is wanted; a slope for each channel of `axes`. And the gradients of
/// the slopes, of each channel Σ dy · x over its elements that are not positive, which overwrite `sums`. Both in one pass: it is
/// memory that takes the time.
///
/// # Panics
/// When a slice is too short.
pub fn backward<T: Float>(x: &[T], dy: Option<&[T]>, slopes: &[T], axes: Axes3, dx: Option<&mut [T]>, sums: &mut [T]) {
    let Axes3 { outer, channels, inner } = axes;
    let (slopes, sums) = (&slopes[..channels], &mut sums[..channels]);
    // A task takes some images' runs of some channels: whole images if that is enough, and enough for few partial sums.
    let images = (TILE / (channels * inner).max(1)).max(64 / inner.max(1)).clamp(1, outer.max(1));
    // Rows of an element a channel are taken whole, or memory could not be fetched ahead.
    let most = if inner == 1 { 4 * TILE } else { TILE };
    let at_once = (most / (images * inner.clamp(1, TILE))).clamp(1, channels.max(1));
    let (blocks, groups, runs) = (outer.div_ceil(images), channels.div_ceil(at_once), inner.div_ceil(TILE));
    let mut partial = Scratch::<T>::new(blocks * runs * channels);
    let (partials, pass) = (Shared::new(&mut partial), Pass { x, dy, dx: dx.map(Shared::new) });
    tasks(blocks * groups * runs, axes.count() > BLOCK, |t| {
        let (block, run, group) = (t / (runs * groups), t / groups % runs, t % groups * at_once..channels);
        let (group, first) = (group.start..group.end.min(group.start + at_once), (block * runs + run) * channels);
        // SAFETY: these channels' sums of the block are one task's.
        let sums = unsafe { partials.part(first + group.start..first + group.end) };
        sums.fill(T::zero());
        let mut spare = Scratch::<T>::new(if inner == 1 { group.len() } else { RUN });
        for row in (block * images..((block + 1) * images).min(outer)).map(|image| image * channels) {
            if inner == 1 {
                let slopes = &slopes[group.clone()];
                // SAFETY: these elements are one task's.
                let loops = |x: &[T], dy: &[T], dx: &mut [T]| each_row(x, dy, slopes, dx, sums);
                unsafe { pass.on(row + group.start..row + group.end, &mut spare, loops) };
                continue;
            }
            for (c, sum) in group.clone().zip(&mut *sums) {
                let (start, end) = ((row + c) * inner + run * TILE, (row + c) * inner + ((run + 1) * TILE).min(inner));
                let mut below = sum.f64();
                for at in (start..end).step_by(RUN) {
                    let loops = |x: &[T], dy: &[T], dx: &mut [T]| below += one_run(x, dy, slopes[c], dx).f64();
                    // SAFETY: these elements are one task's.
                    unsafe { pass.on(at..end.min(at + RUN), &mut spare, loops) };
                }
                *sum = T::of(below);
            }
        }
    });
    let mut totals = Scratch::<f64>::new(channels);
    totals.fill(0.0);
    for partial in partial.chunks_exact(channels.max(1)) {
        totals.iter_mut().zip(partial).for_each(|(total, &sum)| *total += sum.f64());
    }
    sums.iter_mut().zip(&*totals).for_each(|(sum, &total)| *sum = T::of(total));
}

/// What [`backward`] reads, and what tasks write parts of.
struct Pass<'a, T> {
    x: &'a [T],
    dy: Option<&'a [T]>,
    dx: Option<Shared<'a, T>>,
}

impl<T: Float> Pass<'_, T> {
    /// Calls `loops` with x, dy and dx of some elements, in which `spare` stands for what is not there.
    ///
    /// # Safety
    /// No other task may touch these elements of dx meanwhile.
    #[inline(always)]
    unsafe fn on(&self, at: Range<usize>, spare: &mut [T], loops: impl FnOnce(&[T], &[T], &mut [T])) {
        let spare = &mut spare[..at.len()];
        // SAFETY: promised by the caller.
        match (self.dy, self.dx.as_ref().map(|dx| unsafe { dx.part(at.clone()) })) {
            (Some(dy), dx) => loops(&self.x[at.clone()], &dy[at], dx.unwrap_or(spare)),
            (None, Some(dx)) => {
                spare.copy_from_slice(dx);
                loops(&self.x[at], spare, dx);
            }
            (None, None) => {}
        }
    }
}

/// dy · x, or nought where x is positive.
#[inline(always)]
fn below<T: Float>(x: T, dy: T) -> T {
    let product = dy * x;
    if x > T::zero() { T::zero() } else { product }
}

vectorized! {
    /// dx of elements with one slope; Σ dy · x over those that are not positive.
    fn one_run[T: Float](x: &[T], dy: &[T], slope: T, dx: &mut [T]) -> T {
        const L: usize = 64;
        let mut acc = [T::zero(); L];
        let ((x, x_tail), (dy, dy_tail), (dx, dx_tail)) = (x.as_chunks::<L>(), dy.as_chunks::<L>(), dx.as_chunks_mut::<L>());
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            for l in 0..L {
                acc[l] += below(x[l], dy[l]);
                dx[l] = leaky_gradient(x[l], dy[l], slope);
            }
        }
        for (((acc, &x), &dy), dx) in acc.iter_mut().zip(x_tail).zip(dy_tail).zip(dx_tail) {
            *acc += below(x, dy);
            *dx = leaky_gradient(x, dy, slope);
        }
        halves(acc)
    }
}

vectorized! {
    /// dx of a row of an element a channel, whose dy · x are added to `sums` where they are not positive.
    fn each_row[T: Float](x: &[T], dy: &[T], slopes: &[T], dx: &mut [T], sums: &mut [T]) {
        for ((((&x, &dy), &slope), dx), sum) in x.iter().zip(dy).zip(slopes).zip(dx).zip(sums) {
            *sum += below(x, dy);
            *dx = leaky_gradient(x, dy, slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_bits_on_any_threads};

    #[test]
    fn every_layout_is_what_its_elements_say() {
        for (outer, channels, inner) in
            [(3, 5, 7), (130, 3, 1), (2, 5000, 1), (1, 2, 9000), (4, 6, 1), (0, 3, 2), (2, 1, 150_000)]
        {
            let axes = Axes3::new(outer, channels, inner);
            let (x, dy): (Vec<f64>, Vec<f64>) = (noise(axes.count(), 1), noise(axes.count(), 2));
            for count in [channels, 1] {
                let slopes: Vec<f64> = noise(count, 3);
                let factor = |i: usize| if x[i] > 0.0 { 1.0 } else { slopes[i / inner % channels % count] };
                let (mut y, mut in_place) = (vec![7.0; x.len()], x.clone());
                forward(Some(&x), &slopes, axes, &mut y);
                forward(None, &slopes, axes, &mut in_place);
                assert!(y == in_place && (0..x.len()).all(|i| y[i] == factor(i) * x[i]), "{axes:?}");
            }
            let slopes: Vec<f64> = noise(channels, 3);
            let (mut dx, mut in_place, mut sums) = (vec![7.0; x.len()], dy.clone(), vec![[7.0; 3]; channels]);
            let runs = [(Some(&dy[..]), Some(&mut dx[..])), (None, Some(&mut in_place[..])), (Some(&dy), None)];
            for (way, (dy, dx)) in runs.into_iter().enumerate() {
                let mut found = vec![7.0; channels];
                backward(&x, dy, &slopes, axes, dx, &mut found);
                sums.iter_mut().zip(found).for_each(|(sums, found)| sums[way] = found);
            }
            let factor = |i: usize| if x[i] > 0.0 { 1.0 } else { slopes[i / inner % channels] };
            assert!(dx == in_place && (0..x.len()).all(|i| dx[i] == factor(i) * dy[i]), "{axes:?}");
            for (c, sums) in sums.into_iter().enumerate() {
                let of_channel = (0..x.len()).filter(|i| i / inner % channels == c && x[*i] <= 0.0);
                let want: f64 = of_channel.map(|i| x[i] * dy[i]).sum();
                assert!((sums[0] - want).abs() < 1e-9 && sums == [sums[0]; 3], "{axes:?}: {sums:?} for {want}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        for axes in [Axes3::new(300, 500, 1), Axes3::new(20, 30, 100), Axes3::new(1, 1, 200_000)] {
            let (x, dy): (Vec<f32>, Vec<f32>) = (noise(axes.count(), 1), noise(axes.count(), 2));
            same_bits_on_any_threads(|| {
                let (mut dx, mut sums) = (vec![0.0; x.len()], vec![0.0f32; axes.channels]);
                backward(&x, Some(&dy), &vec![0.25; axes.channels], axes, Some(&mut dx), &mut sums);
                sums.extend(dx);
                sums
            });
        }
    }
}
