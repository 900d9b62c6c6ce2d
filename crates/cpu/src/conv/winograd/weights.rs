//! The gradient of the weights: at each frequency, the product of the gradient's tiles and the input's.

use super::tile::{self, LANES};
use super::{Blocks, Channels, FREQUENCIES, IN, OUT, Plane, Spread, Tiling, spaced};
use crate::Float;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Elements of transformed input and gradient held at a time.
const HELD: usize = 4 << 20;
/// Tiles summed over in one pass of the products.
const DEPTH: usize = 192;

/// dw += gradient, tiles summed in the order of the batch.
#[allow(clippy::too_many_arguments)]
pub(in crate::conv) fn backward_weights<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    groups: usize,
    out_channels: usize,
    batch: usize,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let (c, o) = (plane.channels, out_channels / groups);
    for g in 0..groups {
        let (from, to) = (Channels::of_group(g, groups, c), Channels::of_group(g, groups, o));
        group(micro, plane, batch, (x, from), (dy, to), &mut dw[g * o * c * 9..(g + 1) * o * c * 9]);
    }
}

fn group<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    batch: usize,
    (x, from): (&[T], Channels),
    (dy, to): (&[T], Channels),
    dw: &mut [T],
) {
    let blocks = Blocks::new(batch, plane.oh, plane.ow, 32);
    let (pitch_x, pitch_y) = (spaced(from.count), spaced(to.count));
    let held = (HELD / (FREQUENCIES * blocks.most * (pitch_x + pitch_y))).clamp(1, blocks.count);
    let room = held * blocks.most;
    let (stride_x, stride_y) = (room * pitch_x + LANES, room * pitch_y + LANES);
    let spread_x = Spread::<T, IN> {
        micro,
        tiling: Tiling { h: plane.h, w: plane.w, top: plane.ph, left: plane.pw, wide: blocks.wide },
        blocks: &blocks,
        channels: from,
        data: x,
        stride: stride_x,
        pitch: pitch_x,
    };
    let spread_y = Spread::<T, OUT> {
        micro,
        tiling: Tiling { h: plane.oh, w: plane.ow, top: 0, left: 0, wide: blocks.wide },
        blocks: &blocks,
        channels: to,
        data: dy,
        stride: stride_y,
        pitch: pitch_y,
    };
    let mut v = Scratch::<T>::new(FREQUENCIES * stride_x);
    let mut e = Scratch::<T>::new(FREQUENCIES * stride_y);
    let columns = spaced(from.count);
    let mut products = Scratch::<T>::new(FREQUENCIES * to.count * columns);
    for first in (0..blocks.count).step_by(held) {
        let count = held.min(blocks.count - first);
        let (shared_v, shared_e) = (Shared::new(&mut v), Shared::new(&mut e));
        let (vectors_x, vectors_y) = (from.vectors(), to.vectors());
        // Tiles of every block but the last are as many as the most, so blocks lie one behind the other.
        tasks(count * (vectors_x + vectors_y), true, |t| {
            let (block, vector) = (t / (vectors_x + vectors_y), t % (vectors_x + vectors_y));
            if vector < vectors_x {
                let at = starts(&blocks, first, block) * pitch_x;
                spread_x.run(first + block, vector..vector + 1, &shared_v, at);
            } else {
                let at = starts(&blocks, first, block) * pitch_y;
                spread_y.run(first + block, vector - vectors_x..vector - vectors_x + 1, &shared_e, at);
            }
        });
        let tiles = starts(&blocks, first, count);
        let shared = Shared::new(&mut products);
        tasks(FREQUENCIES, true, |f| {
            let (v, e) = (&v[f * stride_x..][..stride_x], &e[f * stride_y..][..stride_y]);
            // SAFETY: a frequency belongs to one task.
            let out = unsafe { shared.part(f * to.count * columns..(f + 1) * to.count * columns) };
            multiply(micro, (v, pitch_x, from.count), (e, pitch_y, to.count), tiles, first > 0, out, columns);
        });
    }
    collect(micro, &products, columns, from.count, to.count, dw);
}

/// Tiles of the blocks from `first` up to `first + block`.
fn starts(blocks: &Blocks, first: usize, block: usize) -> usize {
    (first..first + block).map(|b| blocks.tiles(b)).sum()
}

/// out (+)= eᵀ·v over `tiles` tiles: channels of y by channels of x.
fn multiply<T: Float>(
    micro: &Micro<T>,
    (v, pitch_x, inputs): (&[T], usize, usize),
    (e, pitch_y, outputs): (&[T], usize, usize),
    tiles: usize,
    accumulate: bool,
    out: &mut [T],
    ldc: usize,
) {
    let panels = Panels::new(outputs, micro.mr);
    let out = Shared::new(out);
    for p in (0..tiles).step_by(DEPTH) {
        let depth = DEPTH.min(tiles - p);
        for j in (0..inputs).step_by(micro.nr) {
            let width = micro.nr.min(inputs - j);
            let b = &v[p * pitch_x + j..][..(depth - 1) * pitch_x + width];
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let a = &e[p * pitch_y + start..][..(depth - 1) * pitch_y + height];
                let args = TileArgs {
                    k: depth,
                    a: a.as_ptr(),
                    a_row: 1,
                    a_step: pitch_y,
                    b: b.as_ptr(),
                    ldb: pitch_x,
                    c: out.at(start * ldc + j, (height - 1) * ldc + width),
                    ldc,
                    alpha: T::one(),
                    accumulate: accumulate || p > 0,
                };
                // SAFETY: the operands hold `depth` steps and the tile of `out` was checked.
                unsafe { (micro.run)(height, width, &args) }
            }
        }
    }
}

/// dw += the weights whose frequencies are `products`.
fn collect<T: Float>(micro: &Micro<T>, products: &[T], columns: usize, inputs: usize, outputs: usize, dw: &mut [T]) {
    crate::for_each_row(&mut dw[..outputs * inputs * 9], inputs * 9, |o, dw| {
        let (mut lanes, mut taps) = ([T::zero(); 9 * LANES], [T::zero(); 9 * LANES]);
        for (q, dw) in dw.chunks_mut(9 * LANES).enumerate() {
            let first = o * columns + q * LANES;
            tile::gather_kernels(products, first, outputs * columns, |i, v| {
                lanes[i * LANES..][..LANES].copy_from_slice(v);
            });
            // SAFETY: nine vectors of LANES in, LANES times nine out.
            unsafe { (micro.transpose)(9, LANES, lanes.as_ptr(), LANES, taps.as_mut_ptr(), 9) }
            for (d, &t) in dw.iter_mut().zip(&taps) {
                *d += t;
            }
        }
    });
}
