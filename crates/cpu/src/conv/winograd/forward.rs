//! The forward pass, and the input gradient as the forward pass of the rotated kernels.

use smallvec::SmallVec;

use super::kernels::{Kernels, Source};
use super::tile::{self, LANES};
use super::transformed::{Products, multiply};
use super::{Blocks, Channels, Epilogue, Planar, Plane, Spread, Tiling, adjoint, images, sized, spaced};
use crate::Float;
use crate::kernel::Micro;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Inner indices whose kernels a task transforms at a time where it transforms its own.
const KERNEL_DEPTH: usize = 128;
/// Tasks that a pass is cut into where the shapes allow.
const TASKS: usize = 8;

/// y = w ∗ x, completed by `epilogue`.
pub(in crate::conv) fn forward<T: Float>(conv: &Planar<T>, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
    let Planar { ref plane, groups, rows: o, .. } = *conv;
    let c = plane.channels;
    for g in 0..groups {
        let w = &w[g * o * c * plane.taps()..][..o * c * plane.taps()];
        let (from, to) = (Channels::of_group(g, groups, c), Channels::of_group(g, groups, o));
        sized!(plane, run, (conv, (w, false), (x, from), (y, to), epilogue));
    }
}

/// dx as the convolution of dy with the kernels rotated half a turn, or as the transpose of the forward pass. Whether it is
/// completed by `epilogue`, which the former does.
pub(in crate::conv) fn backward_data<T: Float>(
    conv: &Planar<T>,
    w: &[T],
    dy: &[T],
    epilogue: Epilogue<'_, T>,
    dx: &mut [T],
) -> bool {
    let Planar { ref plane, groups, rows: o, .. } = *conv;
    if adjoint::suits(plane) {
        adjoint::backward_data(conv, w, dy, dx);
        return false;
    }
    let (c, turned) = (plane.channels, conv.adjoint());
    for g in 0..groups {
        let w = &w[g * o * c * plane.taps()..][..o * c * plane.taps()];
        let (from, to) = (Channels::of_group(g, groups, o), Channels::of_group(g, groups, c));
        sized!(&turned.plane, run, (&turned, (w, true), (dy, from), (dx, to), epilogue));
    }
    true
}

/// Tiles of a block: as many as keep a block's frequencies in the second-level cache, and more where the kernels are so
/// large that reading them is what counts.
fn block_tiles(kernels: usize) -> usize {
    if kernels > 1 << 20 { 64 } else { 32 }
}

/// y = w ∗ x, completed by `epilogue`, for kernels of K × K and tiles of IN × IN inputs and OUT × OUT outputs; the kernels may be rotated.
fn run<T: Float, const K: usize, const IN: usize, const OUT: usize>(
    conv: &Planar<T>,
    (w, rotated): (&[T], bool),
    (x, from): (&[T], Channels),
    (y, to): (&mut [T], Channels),
    epilogue: Epilogue<'_, T>,
) {
    let Planar { micro, ref plane, batch, .. } = *conv;
    let source = &Source::<T, K, IN> { micro, w, inner: from.count, outer: to.count, transposed: rotated, rotated };
    if images::suits(from.count, to.count, plane.columns.output.div_ceil(OUT) * IN * IN, batch) {
        return images::run::<T, K, IN, OUT>(source, plane, batch, (x, from), (y, to), epilogue);
    }
    let blocks =
        Blocks::new(batch, plane.rows.output, plane.columns.output, OUT, block_tiles(from.count * to.count * IN * IN));
    let tiling = Tiling {
        h: plane.rows.input,
        w: plane.columns.input,
        top: plane.rows.pad,
        left: plane.columns.pad,
        wide: blocks.wide,
        step: OUT,
    };
    let pitch = spaced(from.count);
    let stride = blocks.most * pitch + LANES;
    let spread = Spread::<T, IN, IN> { micro, tiling, blocks: &blocks, channels: from, data: x, stride, pitch };
    let y = Shared::new(y);
    let pass = Pass { micro, plane, blocks: &blocks, to, epilogue, y: &y, stride, pitch };
    let (step, size, vectors) = (micro.nr.max(LANES), IN * IN * stride, from.vectors());
    let steps = to.count.div_ceil(step);
    if blocks.count >= TASKS {
        let kernels = Kernels::new(source, steps * step);
        return tasks(blocks.count, true, |block| {
            let mut v = Scratch::<T>::new(size);
            spread.run(block, 0..vectors, &Shared::new(&mut v), 0);
            let mut products = Products::<T, IN>::new(blocks.tiles(block), 0..to.count);
            pass.multiply(&kernels, &v, &mut products, 0);
            pass.outputs::<IN, OUT>(block, &products);
        });
    }
    // Few blocks: they are transformed once for all, and the kernels of some outputs by the task that needs them.
    let mut v = Scratch::<T>::new(blocks.count * size);
    let shared = Shared::new(&mut v);
    tasks(blocks.count * vectors, true, |t| {
        let (block, vector) = (t / vectors, t % vectors);
        spread.run(block, vector..vector + 1, &shared, block * size);
    });
    let parts = TASKS.div_ceil(steps).min(blocks.count);
    let part = blocks.count.div_ceil(parts);
    tasks(steps * parts, true, |t| {
        let (first, from) = (t % steps * step, t / steps * part);
        let mine = from..(from + part).min(blocks.count);
        let columns = first..(first + step).min(to.count);
        let mut products: SmallVec<[Products<T, IN>; TASKS]> =
            mine.clone().map(|block| Products::new(blocks.tiles(block), columns.clone())).collect();
        let mut kernels = Kernels::empty(source, step);
        for p in (0..source.inner).step_by(KERNEL_DEPTH) {
            kernels.fill(source, first, p..(p + KERNEL_DEPTH).min(source.inner));
            for (block, products) in mine.clone().zip(&mut products) {
                pass.multiply(&kernels, &v[block * size..][..size], products, p);
            }
        }
        for (block, products) in mine.zip(&products) {
            pass.outputs::<IN, OUT>(block, products);
        }
    });
}

/// What all blocks of a pass have in common.
struct Pass<'a, T> {
    micro: &'a Micro<T>,
    plane: &'a Plane,
    blocks: &'a Blocks,
    to: Channels,
    epilogue: Epilogue<'a, T>,
    y: &'a Shared<'a, T>,
    /// The distances between frequencies and between tiles of the transformed input.
    stride: usize,
    pitch: usize,
}

impl<T: Float> Pass<'_, T> {
    /// products (+)= v·kernels, the kernels being those of inner indices from `from` on.
    fn multiply<const IN: usize>(&self, kernels: &Kernels<T>, v: &[T], products: &mut Products<T, IN>, from: usize) {
        multiply(self.micro, kernels, (v, self.stride, self.pitch), products, from);
    }

    /// y from the products of a block.
    fn outputs<const IN: usize, const OUT: usize>(&self, block: usize, products: &Products<T, IN>) {
        let (oh, ow, columns) = (self.plane.rows.output, self.plane.columns.output, &products.columns);
        let area = oh * ow;
        let tiling = Tiling::<OUT> { h: oh, w: ow, top: 0, left: 0, wide: self.blocks.wide, step: OUT };
        let mut region = Scratch::<T>::new((self.blocks.rows * OUT * ow + 1) * LANES);
        let mut places = SmallVec::new();
        let mut work = tile::Work::<T, IN>::new();
        let gather = tile::gather_by::<T, OUT, IN>(self.epilogue.relu);
        let mut first_tile = 0;
        for segment in self.blocks.segments(block) {
            // Outputs beyond the image fall on a position of their own behind the others.
            let (top, bottom) = (segment.rows.start * OUT, (segment.rows.end * OUT).min(oh));
            let len = (bottom - top) * ow;
            tiling.places(&segment, len, &mut places);
            for first in columns.clone().step_by(LANES) {
                let bias = self.bias(first);
                let (at, channels) = self.to.vector(segment.image, first / LANES, area);
                for (t, places) in places.as_chunks::<OUT>().0.chunks_exact(OUT).enumerate() {
                    let at = (first_tile + t) * products.pitch + first - columns.start;
                    gather(&mut work, products.from(at), &bias, &mut region, places);
                }
                let dst = self.y.at(at + top * ow, (channels - 1) * area + len);
                // SAFETY: the span in y was checked and its rows belong to this task; the region holds `len` vectors.
                unsafe { (self.micro.transpose)(len, channels, region.as_ptr(), LANES, dst, area) }
            }
            first_tile += segment.rows.len() * self.blocks.wide;
        }
    }

    fn bias(&self, first: usize) -> [T; LANES] {
        let mut lanes = [T::zero(); LANES];
        if let Some(bias) = self.epilogue.bias {
            let bias = &bias[self.to.first..][..self.to.count];
            lanes.iter_mut().zip(&bias[first..]).for_each(|(l, &b)| *l = b);
        }
        lanes
    }
}
