//! The gradient of the weights: at each frequency, the product of the gradient's tiles and the input's.

use std::ops::Range;

use super::tile::{self, Frequencies, LANES};
use super::{Blocks, Channels, Planar, Plane, Spread, Tiling, sized, spaced};
use crate::gemm::even_block;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::{Shared, for_blocks, tasks};
use crate::scratch::Scratch;
use crate::{BLOCK, Float, for_each_part};

/// Elements of transformed input and gradient held at a time, about: what stays in the caches.
const HELD: usize = 1 << 20;
/// Fewest tiles held at a time: each time, all products are read and written.
const HELD_TILES: usize = 128;
/// Rows and columns of the products that a task carries through when every tile is held: they stay in a core's cache.
const ROWS: usize = 98;
const COLUMNS: usize = 64;
/// Elements of the products that a task may have of its own, and of the tiles it holds beside them: what stays in a core's
/// cache.
const OWN_PRODUCTS: usize = 1 << 17;
const OWN_HELD: usize = 1 << 17;
/// Tasks with products of their own.
const PARTS: usize = 8;
/// Tiles summed over in one pass of the products.
const DEPTH: usize = 192;

/// dw += gradient, tiles summed in the order of the batch.
pub(in crate::conv) fn backward_weights<T: Float>(conv: &Planar<T>, x: &[T], dy: &[T], dw: &mut [T]) {
    let Planar { ref plane, groups, rows: o, .. } = *conv;
    let c = plane.channels;
    for g in 0..groups {
        let (from, to) = (Channels::of_group(g, groups, c), Channels::of_group(g, groups, o));
        let dw = &mut dw[g * o * c * plane.taps()..][..o * c * plane.taps()];
        sized!(plane, group, (conv, (x, from), (dy, to), dw));
    }
}

fn group<T: Float, const K: usize, const IN: usize, const OUT: usize>(
    conv: &Planar<T>,
    (x, from): (&[T], Channels),
    (dy, to): (&[T], Channels),
    dw: &mut [T],
) {
    let Planar { micro, ref plane, batch, .. } = *conv;
    let per_tile = IN * IN * (spaced(from.count) + spaced(to.count));
    let blocks = |tiles: usize| Blocks::new(batch, plane.rows.output, plane.columns.output, OUT, tiles);
    let dw = &Shared::new(dw);
    let own = blocks((OWN_HELD / per_tile).clamp(8, 32));
    let sides = Sides::<T, K, IN, OUT>::new(micro, plane, &own, (x, from), (dy, to), own.most);
    if Products::new::<IN>(&sides.all()).len() <= OWN_PRODUCTS && own.count >= 2 * PARTS {
        return sides.by_tiles(dw);
    }
    let blocks = blocks(32);
    let held = (HELD / per_tile).max(HELD_TILES).div_ceil(blocks.most).min(blocks.count);
    let sides = Sides::<T, K, IN, OUT>::new(micro, plane, &blocks, (x, from), (dy, to), held * blocks.most);
    if held == blocks.count { sides.by_weights(dw) } else { sides.by_frequencies(held, dw) }
}

/// The transformed tiles of both factors: those of the gradient are the rows of the products and those of the input their
/// columns, or the other way round where that leaves fewer lanes empty.
struct Sides<'a, T, const K: usize, const IN: usize, const OUT: usize> {
    micro: &'a Micro<T>,
    blocks: &'a Blocks,
    x: Spread<'a, T, IN, IN>,
    dy: Spread<'a, T, OUT, IN>,
    /// Whether the rows are the input's.
    swapped: bool,
}

impl<'a, T: Float, const K: usize, const IN: usize, const OUT: usize> Sides<'a, T, K, IN, OUT> {
    /// With room for `room` tiles at a time.
    fn new(
        micro: &'a Micro<T>,
        plane: &Plane,
        blocks: &'a Blocks,
        (x, from): (&'a [T], Channels),
        (dy, to): (&'a [T], Channels),
        room: usize,
    ) -> Self {
        let (wide, step) = (blocks.wide, OUT);
        let (pitch_x, pitch_y) = (spaced(from.count), spaced(to.count));
        let x = Spread {
            micro,
            tiling: Tiling {
                h: plane.rows.input,
                w: plane.columns.input,
                top: plane.rows.pad,
                left: plane.columns.pad,
                wide,
                step,
            },
            blocks,
            channels: from,
            data: x,
            stride: room * pitch_x + LANES,
            pitch: pitch_x,
        };
        let dy = Spread {
            micro,
            tiling: Tiling { h: plane.rows.output, w: plane.columns.output, top: 0, left: 0, wide, step },
            blocks,
            channels: to,
            data: dy,
            stride: room * pitch_y + LANES,
            pitch: pitch_y,
        };
        let swapped = from.count * to.vectors() < to.count * from.vectors();
        Sides { micro, blocks, x, dy, swapped }
    }

    /// All of the weights.
    fn all(&self) -> Part {
        let (x, y) = (0..self.x.channels.count, 0..self.dy.channels.count);
        if self.swapped { Part { rows: x, columns: y } } else { Part { rows: y, columns: x } }
    }

    /// Room for the transformed tiles of x and of dy.
    fn room(&self) -> [Scratch<T>; 2] {
        [self.x.stride, self.dy.stride].map(|stride| Scratch::new(IN * IN * stride))
    }

    /// Tiles of some blocks.
    fn tiles(&self, range: Range<usize>) -> usize {
        range.map(|b| self.blocks.tiles(b)).sum()
    }

    /// The transformed tiles of some blocks.
    fn hold(&self, held: Range<usize>, [v, e]: &mut [Scratch<T>; 2]) {
        let (vectors_x, vectors_y) = (self.x.channels.vectors(), self.dy.channels.vectors());
        let (shared_v, shared_e) = (Shared::new(v), Shared::new(e));
        tasks(held.len() * (vectors_x + vectors_y), true, |t| {
            let (block, vector) = (held.start + t / (vectors_x + vectors_y), t % (vectors_x + vectors_y));
            let tile = self.tiles(held.start..block);
            if vector < vectors_x {
                self.x.run(block, vector..vector + 1, &shared_v, tile * self.x.pitch);
            } else {
                let vector = vector - vectors_x;
                self.dy.run(block, vector..vector + 1, &shared_e, tile * self.dy.pitch);
            }
        });
    }

    /// out (+)= rowsᵀ·columns at one frequency, over the first `tiles` of the transformed tiles.
    fn multiply(
        &self,
        ([v, e], tiles): (&[Scratch<T>; 2], usize),
        f: usize,
        part: &Part,
        accumulate: bool,
        (out, ldc): (&mut [T], usize),
    ) {
        let (v, e) = ((&v[f * self.x.stride..], self.x.pitch), (&e[f * self.dy.stride..], self.dy.pitch));
        let ((left, a_step), (right, ldb)) = if self.swapped { (v, e) } else { (e, v) };
        let (rows, columns) = (part.rows.len(), part.columns.len());
        let panels = Panels::new(rows, self.micro.mr);
        let out = Shared::new(out);
        for p in (0..tiles).step_by(DEPTH) {
            let depth = DEPTH.min(tiles - p);
            for j in (0..columns).step_by(self.micro.nr) {
                let width = self.micro.nr.min(columns - j);
                let b = &right[p * ldb + part.columns.start + j..][..(depth - 1) * ldb + width];
                for i in 0..panels.count {
                    let (start, height) = (panels.start(i), panels.height(i));
                    let a = &left[p * a_step + part.rows.start + start..][..(depth - 1) * a_step + height];
                    let args = TileArgs {
                        k: depth,
                        a: a.as_ptr(),
                        a_row: 1,
                        a_step,
                        b: b.as_ptr(),
                        ldb,
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

    /// Few weights and many tiles: a task carries some of the tiles from x and dy to products of its own.
    fn by_tiles(&self, dw: &Shared<'_, T>) {
        let all = self.all();
        let products = Products::new::<IN>(&all);
        let (size, stride, pitch) = (products.len(), products.stride, products.pitch);
        let mut sums = Scratch::<T>::new(PARTS * size);
        let shared = Shared::new(&mut sums);
        let part = self.blocks.count.div_ceil(PARTS);
        tasks(PARTS, true, |t| {
            // SAFETY: the part is this task's alone.
            let mine = unsafe { shared.part(t * size..(t + 1) * size) };
            let blocks = (t * part).min(self.blocks.count)..((t + 1) * part).min(self.blocks.count);
            if blocks.is_empty() {
                mine.fill(T::zero());
            }
            let mut held = self.room();
            for block in blocks.clone() {
                self.x.run(block, 0..self.x.channels.vectors(), &Shared::new(&mut held[0]), 0);
                self.dy.run(block, 0..self.dy.channels.vectors(), &Shared::new(&mut held[1]), 0);
                for (f, mine) in mine.chunks_exact_mut(stride).enumerate() {
                    self.multiply((&held, self.blocks.tiles(block)), f, &all, block > blocks.start, (mine, pitch));
                }
            }
        });
        let (first, others) = sums.split_at_mut(size);
        for_each_part(first, BLOCK, |b, sum| {
            for other in others.chunks_exact(size) {
                sum.iter_mut().zip(&other[b * BLOCK..]).for_each(|(s, &o)| *s += o);
            }
        });
        self.collect_all(first, &products, dw);
    }

    /// Every tile is at hand: a task carries some of the weights through from their products to their sums.
    fn by_weights(&self, dw: &Shared<'_, T>) {
        let mut held = self.room();
        self.hold(0..self.blocks.count, &mut held);
        let (all, tiles) = (self.all(), self.tiles(0..self.blocks.count));
        let (height, width) = (all.rows.len(), all.columns.len());
        let (down, across) = (even_block(height, ROWS), even_block(width, COLUMNS).next_multiple_of(LANES));
        let (rows, columns) = (height.div_ceil(down), width.div_ceil(across));
        tasks(rows * columns, true, |t| {
            let (r, c) = (t % rows * down, t / rows * across);
            let part = Part { rows: r..(r + down).min(height), columns: c..(c + across).min(width) };
            let products = Products::new::<IN>(&part);
            let mut data = Scratch::<T>::new(products.len());
            for (f, data) in data.chunks_exact_mut(products.stride).enumerate() {
                self.multiply((&held, tiles), f, &part, false, (data, products.pitch));
            }
            for row in part.rows.clone() {
                self.collect(&data, &products, &part, row, dw);
            }
        });
    }

    /// As many blocks at a time as are held, each task some of the frequencies of all weights.
    fn by_frequencies(&self, held: usize, dw: &Shared<'_, T>) {
        let all = self.all();
        let products = Products::new::<IN>(&all);
        let mut sums = Scratch::<T>::new(products.len());
        let mut room = self.room();
        for first in (0..self.blocks.count).step_by(held) {
            let some = first..(first + held).min(self.blocks.count);
            self.hold(some.clone(), &mut room);
            let tiles = self.tiles(some);
            let shared = Shared::new(&mut sums);
            tasks(IN * IN, true, |f| {
                // SAFETY: a frequency belongs to one task.
                let out = unsafe { shared.part(f * products.stride..(f + 1) * products.stride) };
                self.multiply((&room, tiles), f, &all, first > 0, (out, products.pitch));
            });
        }
        self.collect_all(&sums, &products, dw);
    }

    /// [`collect`](Self::collect) for every row.
    fn collect_all(&self, data: &[T], products: &Products, dw: &Shared<'_, T>) {
        let all = self.all();
        for_blocks(all.rows.len(), 4, |rows| {
            for row in rows {
                self.collect(data, products, &all, row, dw);
            }
        });
    }

    /// dw += the weights of a part that belong to a row.
    fn collect(&self, data: &[T], products: &Products, part: &Part, row: usize, dw: &Shared<'_, T>) {
        let area = K * K;
        let (across, down) = (area, self.x.channels.count * area);
        let (row_step, column_step) = if self.swapped { (across, down) } else { (down, across) };
        let mut lanes = [[[T::zero(); LANES]; K]; K];
        let mut taps = Scratch::<T>::new(area * LANES);
        let mut work = tile::Work::<T, IN>::new();
        for column in part.columns.clone().step_by(LANES) {
            let first = (row - part.rows.start) * products.pitch + column - part.columns.start;
            let frequencies = Frequencies { data, first, stride: products.stride };
            tile::gather_kernels(&mut work, frequencies, &mut lanes);
            // SAFETY: `area` vectors of LANES in, LANES times `area` out.
            unsafe { (self.micro.transpose)(area, LANES, lanes.as_ptr().cast(), LANES, taps.as_mut_ptr(), area) }
            for (column, taps) in (column..part.columns.end).zip(taps.chunks_exact(area)) {
                let at = row * row_step + column * column_step;
                // SAFETY: a row of a part belongs to one task.
                let dw = unsafe { dw.part(at..at + area) };
                dw.iter_mut().zip(taps).for_each(|(d, &t)| *d += t);
            }
        }
    }
}

/// Some of the weights.
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// How the products of a part are stored: `[frequency·stride + row·pitch + column]`.
struct Products {
    frequencies: usize,
    pitch: usize,
    stride: usize,
}

impl Products {
    fn new<const IN: usize>(part: &Part) -> Self {
        let pitch = part.columns.len().next_multiple_of(LANES);
        Products { frequencies: IN * IN, pitch, stride: spaced(part.rows.len() * pitch) }
    }

    fn len(&self) -> usize {
        self.frequencies * self.stride
    }
}
