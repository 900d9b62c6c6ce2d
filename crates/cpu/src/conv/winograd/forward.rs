//! The forward pass, and the input gradient as the forward pass of the rotated kernels.

use std::ops::Range;

use smallvec::SmallVec;

use super::tile::{self, LANES};
use super::{Blocks, Channels, FREQUENCIES, IN, OUT, Plane, Spread, Tiling, spaced};
use crate::Float;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Longest inner extent of one pass of the products.
const DEPTH: usize = 512;
/// Tasks that a pass is cut into where the shapes allow.
const TASKS: usize = 8;

/// y = w ∗ x + b.
#[allow(clippy::too_many_arguments)]
pub(in crate::conv) fn forward<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    groups: usize,
    out_channels: usize,
    batch: usize,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    let (c, o) = (plane.channels, out_channels / groups);
    for g in 0..groups {
        let w = &w[g * o * c * 9..(g + 1) * o * c * 9];
        // Transposed, the nine weights of sixteen output channels stand side by side.
        let kernels = Kernels::new(micro, c, o, |inner, first, count, lanes| {
            // SAFETY: `count` rows of 9 weights, c · 9 apart, lie in w, and `lanes` takes 9 vectors.
            let src = &w[(first * c + inner) * 9..][..(count - 1) * c * 9 + 9];
            unsafe { (micro.transpose)(count, 9, src.as_ptr(), c * 9, lanes.as_mut_ptr(), LANES) }
        });
        let (from, to) = (Channels::of_group(g, groups, c), Channels::of_group(g, groups, o));
        run(micro, plane, batch, &kernels, (x, from), (y, to), bias);
    }
}

/// dx as the convolution of dy with the kernels rotated half a turn.
#[allow(clippy::too_many_arguments)]
pub(in crate::conv) fn backward_data<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    groups: usize,
    out_channels: usize,
    batch: usize,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
) {
    let (c, o) = (plane.channels, out_channels / groups);
    let flipped = Plane {
        channels: o,
        h: plane.oh,
        w: plane.ow,
        oh: plane.h,
        ow: plane.w,
        ph: 2 - plane.ph,
        pw: 2 - plane.pw,
        ..*plane
    };
    for g in 0..groups {
        let w = &w[g * o * c * 9..(g + 1) * o * c * 9];
        let kernels = Kernels::new(micro, o, c, |inner, first, count, lanes| {
            let src = &w[(inner * c + first) * 9..][..count * 9];
            // SAFETY: `count` rows of 9 weights lie in w, and `lanes` takes 9 vectors.
            unsafe { (micro.transpose)(count, 9, src.as_ptr(), 9, lanes.as_mut_ptr(), LANES) }
            for tap in 0..4 {
                for l in 0..LANES {
                    lanes.swap(tap * LANES + l, (8 - tap) * LANES + l);
                }
            }
        });
        let (from, to) = (Channels::of_group(g, groups, o), Channels::of_group(g, groups, c));
        run(micro, &flipped, batch, &kernels, (dy, from), (dx, to), None);
    }
}

/// Transformed kernels in panels of outputs: `[frequency][panel][inner][nr]`.
struct Kernels<T> {
    data: Scratch<T>,
    inner: usize,
    /// Outputs, rounded up to whole panels and vectors.
    outer: usize,
    nr: usize,
}

impl<T: Float> Kernels<T> {
    /// Transforms the kernels; `nine(inner, first, count, lanes)` fetches those of `count` outputs from `first` on, as
    /// nine vectors of lanes.
    fn new(micro: &Micro<T>, inner: usize, outer: usize, nine: impl Fn(usize, usize, usize, &mut [T]) + Sync) -> Self {
        const INNER: usize = 32;
        let nr = micro.nr;
        let padded = outer.next_multiple_of(nr.max(LANES));
        let mut kernels = Kernels { data: Scratch::new(FREQUENCIES * inner * padded), inner, outer: padded, nr };
        let shared = Shared::new(&mut kernels.data);
        let (vectors, blocks) = (padded / LANES, inner.div_ceil(INNER));
        let places: [[u32; 3]; 3] = std::array::from_fn(|a| std::array::from_fn(|b| ((a * 3 + b) * LANES) as u32));
        let piece = nr.min(LANES);
        tasks(vectors * blocks, inner * padded >= 1 << 12, |t| {
            let (first, from) = (t % vectors * LANES, t / vectors * INNER);
            let mut lanes = [T::zero(); 9 * LANES];
            for p in from..(from + INNER).min(inner) {
                if first < outer {
                    nine(p, first, LANES.min(outer - first), &mut lanes);
                }
                tile::spread(&lanes, &places, |f, v| {
                    for (q, v) in v.chunks_exact(piece).enumerate() {
                        let column = first + q * piece;
                        let at = f * inner * padded + column / nr * nr * inner + p * nr + column % nr;
                        // SAFETY: these columns and inner indices belong to one task.
                        unsafe { shared.part(at..at + piece) }.copy_from_slice(v);
                    }
                });
            }
        });
        kernels
    }

    /// The panel of outputs from `column` on at a frequency, from inner index `p` on.
    fn panel(&self, frequency: usize, column: usize, p: usize) -> &[T] {
        let at = frequency * self.inner * self.outer + column * self.inner + p * self.nr;
        &self.data[at..]
    }
}

/// Tiles of a block: as many as keep a block's frequencies in the second-level cache, and more where the kernels are so
/// large that reading them is what counts.
fn block_tiles(inner: usize, outer: usize) -> usize {
    if inner * outer * FREQUENCIES > 1 << 20 { 64 } else { 32 }
}

fn run<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    batch: usize,
    kernels: &Kernels<T>,
    (x, from): (&[T], Channels),
    (y, to): (&mut [T], Channels),
    bias: Option<&[T]>,
) {
    let blocks = Blocks::new(batch, plane.oh, plane.ow, block_tiles(from.count, to.count));
    let tiling = Tiling { h: plane.h, w: plane.w, top: plane.ph, left: plane.pw, wide: blocks.wide };
    let pitch = spaced(from.count);
    let stride = blocks.most * pitch + LANES;
    let spread = Spread::<T, IN> { micro, tiling, blocks: &blocks, channels: from, data: x, stride, pitch };
    let y = Shared::new(y);
    let pass = Pass { micro, plane, blocks: &blocks, kernels, to, bias, y: &y, stride, pitch };
    let (step, vectors) = (micro.nr.max(LANES), from.vectors());
    if blocks.count >= TASKS {
        return tasks(blocks.count, true, |block| {
            let mut v = Scratch::<T>::new(FREQUENCIES * stride);
            spread.run(block, 0..vectors, &Shared::new(&mut v), 0);
            pass.run(block, 0..kernels.outer, &v);
        });
    }
    // Few blocks: they are transformed once for all, and their outputs dealt out by channels.
    let size = FREQUENCIES * stride;
    let mut v = Scratch::<T>::new(blocks.count * size);
    let shared = Shared::new(&mut v);
    tasks(blocks.count * vectors, true, |t| {
        let (block, vector) = (t / vectors, t % vectors);
        spread.run(block, vector..vector + 1, &shared, block * size);
    });
    let shares = TASKS.div_ceil(blocks.count).min(kernels.outer / step);
    let share = (kernels.outer / step).div_ceil(shares) * step;
    let shares = kernels.outer.div_ceil(share);
    tasks(blocks.count * shares, true, |t| {
        let (block, first) = (t / shares, t % shares * share);
        pass.run(block, first..(first + share).min(kernels.outer), &v[block * size..][..size]);
    });
}

/// The products of a block's frequencies with the kernels, and their outputs.
struct Pass<'a, T> {
    micro: &'a Micro<T>,
    plane: &'a Plane,
    blocks: &'a Blocks,
    kernels: &'a Kernels<T>,
    to: Channels,
    bias: Option<&'a [T]>,
    y: &'a Shared<'a, T>,
    stride: usize,
    pitch: usize,
}

impl<T: Float> Pass<'_, T> {
    /// Outputs `columns` (a range of whole vectors) of a block.
    fn run(&self, block: usize, columns: Range<usize>, v: &[T]) {
        let tiles = self.blocks.tiles(block);
        let pitch = spaced(columns.len());
        let stride = tiles * pitch + LANES;
        let mut products = Scratch::<T>::new(FREQUENCIES * stride);
        for f in 0..FREQUENCIES {
            let (v, m) = (&v[f * self.stride..][..self.stride], &mut products[f * stride..][..stride]);
            self.multiply(f, tiles, &columns, v, m, pitch);
        }
        let mut positions = SmallVec::<[u32; 2048]>::new();
        let (oh, ow) = (self.plane.oh, self.plane.ow);
        let area = oh * ow;
        let mut region = Scratch::<T>::new((self.blocks.rows * OUT * ow + 1) * LANES);
        let mut first_tile = 0;
        for segment in self.blocks.segments(block) {
            // Outputs beyond the image fall on a position of their own behind the others.
            let (top, bottom) = (segment.rows.start * OUT, (segment.rows.end * OUT).min(oh));
            let len = (bottom - top) * ow;
            let tiling = Tiling::<OUT> { h: oh, w: ow, top: 0, left: 0, wide: self.blocks.wide };
            tiling.places(&segment, len, &mut positions);
            for first in columns.clone().step_by(LANES).take_while(|&c| c < self.to.count) {
                let bias = self.bias(first);
                let (at, channels) = self.to.vector(segment.image, first / LANES, area);
                for (t, places) in positions.chunks_exact(OUT * OUT).enumerate() {
                    let from = (first_tile + t) * pitch + first - columns.start;
                    tile::gather_outputs(&products, from, stride, &bias, |i, v| {
                        region[places[i] as usize..][..LANES].copy_from_slice(v);
                    });
                }
                let dst = self.y.at(at + top * ow, (channels - 1) * area + len);
                // SAFETY: the span in y was checked and its rows belong to this task; the region holds `len` vectors.
                unsafe { (self.micro.transpose)(len, channels, region.as_ptr(), LANES, dst, area) }
            }
            first_tile += segment.rows.len() * self.blocks.wide;
        }
    }

    fn bias(&self, first: usize) -> [T; LANES] {
        std::array::from_fn(|l| match self.bias {
            Some(bias) if first + l < self.to.count => bias[self.to.first + first + l],
            _ => T::zero(),
        })
    }

    /// m = v·kernels at one frequency: tiles × inner by inner × columns.
    fn multiply(&self, f: usize, tiles: usize, columns: &Range<usize>, v: &[T], m: &mut [T], pitch: usize) {
        let (nr, inner) = (self.micro.nr, self.kernels.inner);
        let panels = Panels::new(tiles, self.micro.mr);
        let m = Shared::new(m);
        for p in (0..inner).step_by(DEPTH) {
            let depth = DEPTH.min(inner - p);
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let a = &v[start * self.pitch + p..][..(height - 1) * self.pitch + depth];
                for j in columns.clone().step_by(nr) {
                    let b = &self.kernels.panel(f, j, p)[..depth * nr];
                    let args = TileArgs {
                        k: depth,
                        a: a.as_ptr(),
                        a_row: self.pitch,
                        a_step: 1,
                        b: b.as_ptr(),
                        ldb: nr,
                        c: m.at(start * pitch + j - columns.start, (height - 1) * pitch + nr),
                        ldc: pitch,
                        alpha: T::one(),
                        accumulate: p > 0,
                    };
                    // SAFETY: the operands hold `depth` steps and the tile of m was checked.
                    unsafe { (self.micro.run)(height, nr, &args) }
                }
            }
        }
    }
}
