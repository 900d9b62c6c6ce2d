//! The input gradient as the transpose of the forward pass: as many products as there are tiles of dy, where the rotated
//! kernels need as many as there are tiles of dx. A 5 × 5 kernel on 12 × 12 inputs has 4 of the one and 9 of the other.

use smallvec::SmallVec;

use super::images;
use super::kernels::{Kernels, Source};
use super::tile::{self, LANES};
use super::transformed::{Products, multiply};
use super::{Blocks, Channels, Planar, Plane, Spread, Tiling, spaced};
use crate::Float;
use crate::kernel::Micro;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

const K: usize = 5;
const IN: usize = 8;
const OUT: usize = 4;
/// Tiles of a block, and the most an image may have: its tiles overlap, so they are one task's.
const TILES: usize = 32;

/// Whether this takes fewer products than the rotated kernels, for a convolution that suits the algorithm.
pub(super) fn suits(plane: &Plane) -> bool {
    let tiles = |h: usize, w: usize| h.div_ceil(OUT) * w.div_ceil(OUT);
    let ours = tiles(plane.rows.output, plane.columns.output);
    plane.rows.kernel == K && ours <= TILES && 4 * ours <= 3 * tiles(plane.rows.input, plane.columns.input)
}

/// dx from dy, overwriting dx.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], dx: &mut [T]) {
    let Planar { micro, ref plane, groups, rows: o, batch } = *conv;
    let c = plane.channels;
    let blocks = Blocks::new(batch, plane.rows.output, plane.columns.output, OUT, TILES);
    let dx = Shared::new(dx);
    for g in 0..groups {
        let w = &w[g * o * c * K * K..][..o * c * K * K];
        let (from, to) = (Channels::of_group(g, groups, o), Channels::of_group(g, groups, c));
        let source = Source::<T, K, IN> { micro, w, inner: o, outer: c, transposed: true, rotated: false };
        if images::suits(o, c, plane.columns.output.div_ceil(OUT) * IN * IN, batch) {
            images::adjoint::<T, IN, OUT>(&source, plane, batch, (dy, from), (&dx, to));
            continue;
        }
        let kernels = Kernels::new(&source, c.next_multiple_of(micro.nr.max(LANES)));
        let pitch = spaced(o);
        let stride = blocks.most * pitch + LANES;
        let spread = Spread::<T, OUT, IN> {
            micro,
            tiling: Tiling {
                h: plane.rows.output,
                w: plane.columns.output,
                top: 0,
                left: 0,
                wide: blocks.wide,
                step: OUT,
            },
            blocks: &blocks,
            channels: from,
            data: dy,
            stride,
            pitch,
        };
        tasks(blocks.count, true, |block| {
            let mut v = Scratch::<T>::new(IN * IN * stride);
            spread.run_by(tile::spread_values::<T, OUT, IN>, block, 0..from.vectors(), &Shared::new(&mut v), 0);
            let mut products = Products::new(blocks.tiles(block), 0..c);
            multiply(micro, &kernels, (&v, stride, pitch), &mut products, 0);
            inputs(micro, plane, &blocks, block, to, &products, &dx);
        });
    }
}

/// dx of the images of a block from its products.
fn inputs<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    blocks: &Blocks,
    block: usize,
    to: Channels,
    products: &Products<T, IN>,
    dx: &Shared<'_, T>,
) {
    let area = plane.area();
    let (top, left, wide) = (plane.rows.pad, plane.columns.pad, blocks.wide);
    let tiling = Tiling::<IN> { h: plane.rows.input, w: plane.columns.input, top, left, wide, step: OUT };
    let mut region = Scratch::<T>::new((area + 1) * LANES);
    let mut places = SmallVec::new();
    let mut work = tile::Work::<T, IN>::new();
    let mut first_tile = 0;
    for segment in blocks.segments(block) {
        // What falls on the padding is added up on a position of its own behind the others.
        let rows = tiling.rows(&segment);
        tiling.places(&segment, area - rows.start * plane.columns.input, &mut places);
        let base = rows.start * plane.columns.input * LANES;
        for v in 0..to.vectors() {
            region.fill(T::zero());
            let (at, channels) = to.vector(segment.image, v, area);
            for (t, places) in places.as_chunks::<IN>().0.chunks_exact(IN).enumerate() {
                let at = (first_tile + t) * products.pitch + v * LANES;
                tile::add_inputs(&mut work, products.from(at), &mut region[base..], places);
            }
            let dst = dx.at(at, (channels - 1) * area + area);
            // SAFETY: the span in dx was checked and the image belongs to this task; the region holds `area` vectors.
            unsafe { (micro.transpose)(area, channels, region.as_ptr(), LANES, dst, area) }
        }
        first_tile += segment.rows.len() * blocks.wide;
    }
}
