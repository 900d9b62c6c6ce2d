//! Winograd's minimal filtering at stride 1: from 6 × 6 inputs, by 36 products, the 4 × 4 outputs of a 3 × 3 kernel
//! (directly 144) or the 5 × 5 outputs of a 2 × 2 kernel (directly 100); from 5 × 5 inputs, by 25 products, the 4 × 4 outputs of
//! the latter (directly 64); from 8 × 8 inputs, by 64 products, the 4 × 4 outputs of a 5 × 5 kernel (directly 400).
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). With d a tile of the input, g a kernel and
//! e a tile of the output's gradient,
//!
//! y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A and dg = Ãᵀ[(G̃ e G̃ᵀ) ⊙ (Bᵀ d B)]Ã,
//!
//! the products summed over channels and over tiles respectively, so that each of the 36 frequencies is one matrix
//! product. The interpolation points are 0, ±√½, ±√2 and ∞ rather than the customary 0, ±1, ±2 and ∞: the transforms'
//! entries are more even, and the rounding error is about four times smaller. Tiles of 5 × 5 do without 0, those of 8 × 8 have 0, ±½,
//! ±1, ±2 and ∞.
//!
//! The gradient of d is that of y with the kernels rotated, or, where that takes many more tiles, the transpose of all
//! this: B[(G g Gᵀ) ⊙ (A e Aᵀ)]Bᵀ, added up where tiles overlap.
//!
//! Data is transformed [`LANES`] channels at a time, the channels innermost; or as many images, where the channels are few.

use smallvec::SmallVec;

use super::Planar;
use super::epilogue::Epilogue;
use super::patches::Plane;
use crate::Float;
use crate::gemm::even_block;
use crate::kernel::Micro;
use crate::parallel::Shared;
use crate::scratch::Scratch;

mod adjoint;
mod forward;
mod images;
mod kernels;
#[cfg(test)]
mod tests;
mod tile;
mod transformed;
mod weights;

pub(super) use forward::{backward_data, forward};
use tile::LANES;
pub(super) use weights::backward_weights;

/// Outputs of a tile along an axis: those that take the fewest products.
fn outputs(plane: &Plane) -> usize {
    let tiles = |out: usize| plane.rows.output.div_ceil(out) * plane.columns.output.div_ceil(out);
    if plane.rows.kernel == 2 && 36 * tiles(5) < 25 * tiles(4) { 5 } else { 4 }
}

/// Products of an input and an output channel of an image.
pub(super) fn products(plane: &Plane) -> usize {
    let out = outputs(plane);
    let input = out + plane.rows.kernel - 1;
    lgm_core::count(&[input * input, plane.rows.output.div_ceil(out), plane.columns.output.div_ceil(out)])
}

/// Calls a function of this module for the extents of the kernel and of its tiles of inputs and of outputs:
/// `sized!(plane, run, (…))`.
macro_rules! sized {
    ($plane:expr, $run:ident, ($($arg:expr),*)) => {
        match ($plane.rows.kernel, crate::conv::winograd::outputs($plane)) {
            (5, _) => $run::<T, 5, 8, 4>($($arg),*),
            (2, 5) => $run::<T, 2, 6, 5>($($arg),*),
            (2, _) => $run::<T, 2, 5, 4>($($arg),*),
            _ => $run::<T, 3, 6, 4>($($arg),*),
        }
    };
}
use sized;

/// Whether a convolution of these extents can be computed so, and gains by it.
pub(super) fn suits<T: Float>(conv: &Planar<T>) -> bool {
    let Planar { ref plane, rows: out_channels, batch, .. } = *conv;
    let dense = (plane.rows.stride, plane.columns.stride, plane.rows.dilation, plane.columns.dilation) == (1, 1, 1, 1)
        && matches!((plane.rows.kernel, plane.columns.kernel), (2, 2) | (3, 3) | (5, 5));
    if !dense {
        return false;
    }
    let out = outputs(plane);
    let tiles = plane.rows.output.div_ceil(out) * plane.columns.output.div_ceil(out);
    // Few channels leave lanes empty, few tiles do not repay transforming the weights, and outputs that fill less than
    // half of their tiles leave little to gain.
    size_of::<T>() == 4
        && plane.channels >= LANES
        && out_channels >= LANES
        && batch * tiles >= 16
        && 2 * plane.out_area() >= tiles * out * out
}

/// The channels of one group within a blob.
#[derive(Clone, Copy, Debug)]
struct Channels {
    /// Channels of the group.
    count: usize,
    /// First of them.
    first: usize,
    /// Channels of the blob.
    total: usize,
}

impl Channels {
    /// Group `g`, of `count` channels, of `groups`.
    fn of_group(g: usize, groups: usize, count: usize) -> Self {
        Channels { count, first: g * count, total: groups * count }
    }

    /// Vectors of lanes that the channels fill.
    fn vectors(&self) -> usize {
        self.count.div_ceil(LANES)
    }

    /// The first element of a channel in an image of `area` positions, and how far on it is in the next image.
    fn plane(&self, image: usize, channel: usize, area: usize) -> (usize, usize) {
        ((image * self.total + self.first + channel) * area, self.total * area)
    }

    /// The first element of vector `v` in an image of `area` positions, and the channels in it.
    fn vector(&self, image: usize, v: usize, area: usize) -> (usize, usize) {
        let channel = image * self.total + self.first + v * LANES;
        (channel * area, LANES.min(self.count - v * LANES))
    }
}

/// Rows of tiles of one image.
#[derive(Clone, Debug)]
struct TileRows {
    image: usize,
    rows: std::ops::Range<usize>,
}

/// The tiles of a batch, dealt into blocks: some rows of tiles of an image, or several images.
struct Blocks {
    batch: usize,
    /// Tiles down an image.
    high: usize,
    /// Tiles across an image.
    wide: usize,
    images: usize,
    rows: usize,
    /// Number of blocks.
    count: usize,
    /// Most tiles of a block.
    most: usize,
}

impl Blocks {
    /// Blocks of about `most` tiles of `out` × `out` over outputs of `oh` × `ow`.
    fn new(batch: usize, oh: usize, ow: usize, out: usize, most: usize) -> Self {
        let (high, wide) = (oh.div_ceil(out), ow.div_ceil(out));
        if high * wide <= most {
            let images = even_block(batch, most / (high * wide));
            let count = batch.div_ceil(images);
            Blocks { batch, high, wide, images, rows: high, count, most: images * high * wide }
        } else {
            let rows = even_block(high, (most / wide).max(1));
            let count = batch * high.div_ceil(rows);
            Blocks { batch, high, wide, images: 1, rows, count, most: rows * wide }
        }
    }

    fn segments(&self, block: usize) -> SmallVec<[TileRows; 8]> {
        if self.rows == self.high {
            let images = block * self.images..((block + 1) * self.images).min(self.batch);
            return images.map(|image| TileRows { image, rows: 0..self.high }).collect();
        }
        let per_image = self.high.div_ceil(self.rows);
        let from = block % per_image * self.rows;
        let rows = from..(from + self.rows).min(self.high);
        SmallVec::from_iter([TileRows { image: block / per_image, rows }])
    }

    /// Tiles of a block.
    fn tiles(&self, block: usize) -> usize {
        self.segments(block).iter().map(|s| s.rows.len() * self.wide).sum()
    }
}

/// How tiles of N × N positions, one every `step`, cover an image.
#[derive(Clone, Copy)]
struct Tiling<const N: usize> {
    h: usize,
    w: usize,
    /// Rows and columns by which the first tile begins before the image.
    top: isize,
    left: isize,
    wide: usize,
    step: usize,
}

impl<const N: usize> Tiling<N> {
    /// The rows of the image that a segment's tiles touch.
    fn rows(&self, segment: &TileRows) -> std::ops::Range<usize> {
        let clip = |r: isize| r.clamp(0, self.h as isize) as usize;
        let first = (segment.rows.start * self.step) as isize - self.top;
        let last = ((segment.rows.end - 1) * self.step + N) as isize - self.top;
        clip(first)..clip(last)
    }

    /// Most positions that `rows` rows of tiles touch.
    fn most_positions(&self, rows: usize) -> usize {
        ((rows - 1) * self.step + N).min(self.h) * self.w
    }

    /// Where each tile's positions are among those of [`rows`](Self::rows), tile by tile; `outside` for those beyond the image.
    fn places(&self, segment: &TileRows, outside: usize, places: &mut SmallVec<[u32; 2048]>) {
        let first = self.rows(segment).start;
        places.clear();
        for ty in segment.rows.clone() {
            for tx in 0..self.wide {
                for a in 0..N {
                    for b in 0..N {
                        let row = (ty * self.step + a) as isize - self.top;
                        let col = (tx * self.step + b) as isize - self.left;
                        let inside = (0..self.h as isize).contains(&row) && (0..self.w as isize).contains(&col);
                        let at = if inside { (row as usize - first) * self.w + col as usize } else { outside };
                        places.push(at as u32);
                    }
                }
            }
        }
    }
}

/// A function like [`tile::spread`].
type SpreadTile<T, const M: usize, const N: usize> =
    fn(&mut tile::Work<T, N>, &[T], &[[u32; M]], &Shared<'_, T>, usize, usize);

/// The tiles of a blob with their frequencies to be laid out as `out[frequency·stride + tile·pitch + channel]`.
struct Spread<'a, T, const M: usize, const N: usize> {
    micro: &'a Micro<T>,
    tiling: Tiling<M>,
    blocks: &'a Blocks,
    channels: Channels,
    data: &'a [T],
    stride: usize,
    pitch: usize,
}

impl<T: Float, const M: usize, const N: usize> Spread<'_, T, M, N> {
    /// Transforms some vectors of lanes of a block; `first` is where its first tile goes.
    fn run(&self, block: usize, vectors: std::ops::Range<usize>, out: &Shared<'_, T>, first: usize) {
        self.run_by(tile::spread::<T, M, N>, block, vectors, out, first);
    }

    /// [`run`](Self::run) by another transform.
    fn run_by(
        &self,
        spread: SpreadTile<T, M, N>,
        block: usize,
        vectors: std::ops::Range<usize>,
        out: &Shared<'_, T>,
        first: usize,
    ) {
        let area = self.tiling.h * self.tiling.w;
        // One position more than the image has holds the zeros of the padding.
        let zero = self.tiling.most_positions(self.blocks.rows);
        let mut region = Scratch::<T>::new((zero + 1) * LANES);
        let mut places = SmallVec::new();
        let mut work = tile::Work::new();
        let mut base = first;
        for segment in self.blocks.segments(block) {
            self.tiling.places(&segment, zero, &mut places);
            let rows = self.tiling.rows(&segment);
            let (from, positions) = (rows.start * self.tiling.w, rows.len() * self.tiling.w);
            for v in vectors.clone() {
                let (at, channels) = self.channels.vector(segment.image, v, area);
                let clear = if channels < LANES { 0 } else { zero * LANES };
                region[clear..].fill(T::zero());
                self.gather(&self.data[at + from..], area, channels, positions, &mut region);
                for (t, places) in places.as_chunks::<M>().0.chunks_exact(M).enumerate() {
                    let to = base + t * self.pitch + v * LANES;
                    spread(&mut work, &region, places, out, to, self.stride);
                }
            }
            base += segment.rows.len() * self.blocks.wide * self.pitch;
        }
    }

    /// Channels innermost: `region[position·LANES + channel]`.
    fn gather(&self, src: &[T], area: usize, channels: usize, positions: usize, region: &mut [T]) {
        if positions > 0 {
            assert!((channels - 1) * area + positions <= src.len() && positions * LANES <= region.len());
            // SAFETY: both spans were just checked; the table is that of an available instruction set.
            unsafe { (self.micro.transpose)(channels, positions, src.as_ptr(), area, region.as_mut_ptr(), LANES) }
        }
    }
}

/// `len` rounded up to an odd number of cache lines of `f32`, so that rows that far apart use all sets of a cache.
fn spaced(len: usize) -> usize {
    let lines = len.div_ceil(LANES);
    (lines + usize::from(lines.is_multiple_of(2))) * LANES
}
