//! The gradient of the weights: at each frequency, the product of the gradient's tiles and the input's.

use std::ops::Range;

use super::tile::{self, LANES};
use super::{Blocks, Channels, FREQUENCIES, IN, Plane, Spread, Tiling, sized, spaced};
use crate::gemm::even_block;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{BLOCK, Float, for_blocks, for_each_part};

/// Elements of transformed input and gradient held at a time, about: what stays in the caches.
const HELD: usize = 1 << 20;
/// Fewest tiles held at a time: each time, all products are read and written.
const HELD_TILES: usize = 128;
/// Channels of y and of x that a task carries through when every tile is held: their products stay in a core's cache.
const OUTPUTS: usize = 98;
const INPUTS: usize = 64;
/// Elements of the products that a task may have of its own: what stays in a core's cache beside the tiles it holds.
const OWN_PRODUCTS: usize = 1 << 17;
/// Tasks with products of their own.
const PARTS: usize = 8;
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
        let dw = &mut dw[g * o * c * plane.taps()..][..o * c * plane.taps()];
        sized!(plane, group, (micro, plane, batch, (x, from), (dy, to), dw));
    }
}

fn group<T: Float, const K: usize, const OUT: usize>(
    micro: &Micro<T>,
    plane: &Plane,
    batch: usize,
    (x, from): (&[T], Channels),
    (dy, to): (&[T], Channels),
    dw: &mut [T],
) {
    let blocks = Blocks::new(batch, plane.oh, plane.ow, OUT, 32);
    let (pitch_x, pitch_y) = (spaced(from.count), spaced(to.count));
    let held = (HELD / (FREQUENCIES * (pitch_x + pitch_y))).max(HELD_TILES).div_ceil(blocks.most).min(blocks.count);
    let room = held * blocks.most;
    let (stride_x, stride_y) = (room * pitch_x + LANES, room * pitch_y + LANES);
    let spread_x = Spread::<T, IN> {
        micro,
        tiling: Tiling { h: plane.h, w: plane.w, top: plane.ph, left: plane.pw, wide: blocks.wide, step: OUT },
        blocks: &blocks,
        channels: from,
        data: x,
        stride: stride_x,
        pitch: pitch_x,
    };
    let spread_y = Spread::<T, OUT> {
        micro,
        tiling: Tiling { h: plane.oh, w: plane.ow, top: 0, left: 0, wide: blocks.wide, step: OUT },
        blocks: &blocks,
        channels: to,
        data: dy,
        stride: stride_y,
        pitch: pitch_y,
    };
    let (vectors_x, vectors_y) = (from.vectors(), to.vectors());
    let hold = |first: usize, count: usize, v: &mut [T], e: &mut [T]| {
        let (shared_v, shared_e) = (Shared::new(v), Shared::new(e));
        tasks(count * (vectors_x + vectors_y), true, |t| {
            let (block, vector) = (t / (vectors_x + vectors_y), t % (vectors_x + vectors_y));
            let tile = tiles(&blocks, first..first + block);
            if vector < vectors_x {
                spread_x.run(first + block, vector..vector + 1, &shared_v, tile * pitch_x);
            } else {
                let vector = vector - vectors_x;
                spread_y.run(first + block, vector..vector + 1, &shared_e, tile * pitch_y);
            }
        });
    };
    let all = Part { outputs: 0..to.count, inputs: 0..from.count };
    let dw = Shared::new(dw);
    let products = Products::new(&all);
    let (size, stride, pitch) = (products.len(), products.stride, products.pitch);
    if size <= OWN_PRODUCTS && blocks.count >= 2 * PARTS {
        // Few weights and many tiles: a task carries some of the tiles from x and dy to products of its own.
        let mut sums = Scratch::<T>::new(PARTS * size);
        let shared = Shared::new(&mut sums);
        let part = blocks.count.div_ceil(PARTS);
        let (stride_x, stride_y) = (blocks.most * pitch_x + LANES, blocks.most * pitch_y + LANES);
        let spread_x = Spread { stride: stride_x, ..spread_x };
        let spread_y = Spread { stride: stride_y, ..spread_y };
        tasks(PARTS, true, |t| {
            // SAFETY: the part is this task's alone.
            let mine = unsafe { shared.part(t * size..(t + 1) * size) };
            let (mut v, mut e) = (Scratch::new(FREQUENCIES * stride_x), Scratch::new(FREQUENCIES * stride_y));
            mine.fill(T::zero());
            for block in t * part..((t + 1) * part).min(blocks.count) {
                spread_x.run(block, 0..vectors_x, &Shared::new(&mut v), 0);
                spread_y.run(block, 0..vectors_y, &Shared::new(&mut e), 0);
                let tiles = blocks.tiles(block);
                let held = Held { micro, v: &v, e: &e, stride_x, stride_y, pitch_x, pitch_y, tiles };
                for (f, mine) in mine.chunks_exact_mut(stride).enumerate() {
                    held.multiply(f, &all, true, mine, pitch);
                }
            }
        });
        let (first, others) = sums.split_at_mut(size);
        for_each_part(first, BLOCK, |b, sum| {
            for other in others.chunks_exact(size) {
                sum.iter_mut().zip(&other[b * BLOCK..]).for_each(|(s, &o)| *s += o);
            }
        });
        return collect_all::<T, K>(micro, first, &products, &all, from.count, &dw);
    }
    let mut v = Scratch::<T>::new(FREQUENCIES * stride_x);
    let mut e = Scratch::<T>::new(FREQUENCIES * stride_y);
    if held == blocks.count {
        // Every tile is at hand: a task carries some of the weights through from their products to their sums.
        hold(0, held, &mut v, &mut e);
        let held = Held { micro, v: &v, e: &e, stride_x, stride_y, pitch_x, pitch_y, tiles: tiles(&blocks, 0..held) };
        let (down, across) = (even_block(to.count, OUTPUTS), even_block(from.count, INPUTS).next_multiple_of(LANES));
        let (rows, columns) = (to.count.div_ceil(down), from.count.div_ceil(across));
        tasks(rows * columns, true, |t| {
            let (o, c) = (t % rows * down, t / rows * across);
            let part = Part { outputs: o..(o + down).min(to.count), inputs: c..(c + across).min(from.count) };
            let products = Products::new(&part);
            let mut data = Scratch::<T>::new(products.len());
            for (f, data) in data.chunks_exact_mut(products.stride).enumerate() {
                held.multiply(f, &part, false, data, products.pitch);
            }
            for row in part.outputs.clone() {
                collect::<T, K>(micro, &data, &products, &part, row, from.count, &dw);
            }
        });
        return;
    }
    let mut sums = Scratch::<T>::new(size);
    for first in (0..blocks.count).step_by(held) {
        let count = held.min(blocks.count - first);
        hold(first, count, &mut v, &mut e);
        let tiles = tiles(&blocks, first..first + count);
        let held = Held { micro, v: &v, e: &e, stride_x, stride_y, pitch_x, pitch_y, tiles };
        let shared = Shared::new(&mut sums);
        tasks(FREQUENCIES, true, |f| {
            // SAFETY: a frequency belongs to one task.
            let out = unsafe { shared.part(f * stride..(f + 1) * stride) };
            held.multiply(f, &all, first > 0, out, pitch);
        });
    }
    collect_all::<T, K>(micro, &sums, &products, &all, from.count, &dw);
}

/// [`collect`] for every output.
fn collect_all<T: Float, const K: usize>(
    micro: &Micro<T>,
    data: &[T],
    products: &Products,
    part: &Part,
    inputs: usize,
    dw: &Shared<'_, T>,
) {
    for_blocks(part.outputs.len(), 4, |rows| {
        for row in rows {
            collect::<T, K>(micro, data, products, part, row, inputs, dw);
        }
    });
}

/// Tiles of some blocks.
fn tiles(blocks: &Blocks, range: Range<usize>) -> usize {
    range.map(|b| blocks.tiles(b)).sum()
}

/// Some of the weights: channels of y by channels of x.
struct Part {
    outputs: Range<usize>,
    inputs: Range<usize>,
}

/// How the products of a part lie: `[frequency·stride + output·pitch + input]`.
struct Products {
    pitch: usize,
    stride: usize,
}

impl Products {
    fn new(part: &Part) -> Self {
        let pitch = spaced(part.inputs.len());
        Products { pitch, stride: spaced(part.outputs.len() * pitch) }
    }

    fn len(&self) -> usize {
        FREQUENCIES * self.stride
    }
}

/// Transformed tiles of the input and of the gradient.
struct Held<'a, T> {
    micro: &'a Micro<T>,
    v: &'a [T],
    e: &'a [T],
    stride_x: usize,
    stride_y: usize,
    pitch_x: usize,
    pitch_y: usize,
    tiles: usize,
}

impl<T: Float> Held<'_, T> {
    /// out (+)= eᵀ·v at one frequency, over the tiles.
    fn multiply(&self, f: usize, part: &Part, accumulate: bool, out: &mut [T], ldc: usize) {
        let (v, e) = (&self.v[f * self.stride_x..], &self.e[f * self.stride_y..]);
        let (rows, columns) = (part.outputs.len(), part.inputs.len());
        let panels = Panels::new(rows, self.micro.mr);
        let out = Shared::new(out);
        for p in (0..self.tiles).step_by(DEPTH) {
            let depth = DEPTH.min(self.tiles - p);
            for j in (0..columns).step_by(self.micro.nr) {
                let width = self.micro.nr.min(columns - j);
                let b = &v[p * self.pitch_x + part.inputs.start + j..][..(depth - 1) * self.pitch_x + width];
                for i in 0..panels.count {
                    let (start, height) = (panels.start(i), panels.height(i));
                    let a = &e[p * self.pitch_y + part.outputs.start + start..];
                    let a = &a[..(depth - 1) * self.pitch_y + height];
                    let args = TileArgs {
                        k: depth,
                        a: a.as_ptr(),
                        a_row: 1,
                        a_step: self.pitch_y,
                        b: b.as_ptr(),
                        ldb: self.pitch_x,
                        c: out.at(start * ldc + j, (height - 1) * ldc + width),
                        ldc,
                        alpha: T::one(),
                        accumulate: accumulate || p > 0,
                    };
                    // SAFETY: the operands hold `depth` steps and the tile of `out` was checked.
                    unsafe { (self.micro.run)(height, width, &args) }
                }
            }
        }
    }
}

/// dw += the weights of a part that belong to output `row`; dw has `inputs` × K² for each.
fn collect<T: Float, const K: usize>(
    micro: &Micro<T>,
    data: &[T],
    products: &Products,
    part: &Part,
    row: usize,
    inputs: usize,
    dw: &Shared<'_, T>,
) {
    let area = K * K;
    let mut lanes = [[[T::zero(); LANES]; K]; K];
    let mut taps = Scratch::<T>::new(area * LANES);
    let mut work = tile::Work::new();
    let at = (row * inputs + part.inputs.start) * area;
    // SAFETY: a row of a part belongs to one task.
    let dw = unsafe { dw.part(at..at + part.inputs.len() * area) };
    for (q, dw) in dw.chunks_mut(area * LANES).enumerate() {
        let first = (row - part.outputs.start) * products.pitch + q * LANES;
        tile::gather_kernels(&mut work, data, first, products.stride, &mut lanes);
        // SAFETY: `area` vectors of LANES in, LANES times `area` out.
        unsafe { (micro.transpose)(area, LANES, lanes.as_ptr().cast(), LANES, taps.as_mut_ptr(), area) }
        for (d, &t) in dw.iter_mut().zip(&*taps) {
            *d += t;
        }
    }
}
