//! [`LANES`] images side by side instead of as many channels, for channels that would leave many lanes empty.
//!
//! Transformed data is stored as `[frequency][channel][tile][image]`: the product of a frequency has the resulting channels as its
//! rows and the tiles of all those images as its columns, and none of either is there for nothing.

use std::ops::Range;

use smallvec::SmallVec;

use super::kernels::{Kernels, Source};
use super::tile::{self, Frequencies, LANES};
use super::{Channels, Epilogue, Plane, SpreadTile, TileRows, Tiling, spaced};
use crate::Float;
use crate::gemm::even_block;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Elements of transformed data that a task holds, about: what stays in a core's cache beside its products.
const HELD: usize = 1 << 17;
/// Fewest lots of images: tasks that they are shared among.
const LOTS: usize = 4;

/// Whether images fill the lanes so much better than these channels that this is faster; a row of tiles has `row`
/// frequencies.
pub(super) fn suits(inner: usize, outer: usize, row: usize, batch: usize) -> bool {
    let padded = |n: usize| n.next_multiple_of(LANES);
    batch >= LOTS * LANES
        && 8 * padded(batch) <= 9 * batch
        && 2 * padded(inner) * padded(outer) >= 3 * inner * outer
        && row * LANES * inner <= 2 * HELD
}

/// What [`LANES`] images at most are computed with.
struct Lots<'a, T, const IN: usize, const OUT: usize> {
    micro: &'a Micro<T>,
    batch: usize,
    /// The transformed kernels, the outer channels in one panel.
    kernels: Kernels<T>,
    /// Tiles down and across an image.
    high: usize,
    wide: usize,
    /// Rows of tiles taken at a time.
    rows: usize,
}

impl<'a, T: Float, const IN: usize, const OUT: usize> Lots<'a, T, IN, OUT> {
    const FREQUENCIES: usize = IN * IN;

    fn new<const K: usize>(source: &Source<'a, T, K, IN>, batch: usize, (oh, ow): (usize, usize)) -> Self {
        let (high, wide) = (oh.div_ceil(OUT), ow.div_ceil(OUT));
        let most = HELD / (Self::FREQUENCIES * LANES * wide * source.inner);
        let kernels = Kernels::in_one_panel(source);
        Lots { micro: source.micro, batch, kernels, high, wide, rows: even_block(high, most.max(1)) }
    }

    fn count(&self) -> usize {
        self.batch.div_ceil(LANES)
    }

    /// Parts of an image: rows of tiles.
    fn parts(&self) -> impl Iterator<Item = TileRows> + use<'_, T, IN, OUT> {
        let rows = |from: usize| from..(from + self.rows).min(self.high);
        (0..self.high).step_by(self.rows).map(move |from| TileRows { image: 0, rows: rows(from) })
    }

    fn images(&self, lot: usize) -> Range<usize> {
        lot * LANES..((lot + 1) * LANES).min(self.batch)
    }

    /// The distances between the channels and between the frequencies of transformed data.
    fn strides(&self, channels: usize) -> (usize, usize) {
        let pitch = spaced(self.rows * self.wide * LANES);
        (pitch, channels * pitch + LANES)
    }

    /// The frequencies of a part of a lot's images, of every channel.
    fn spread<const N: usize>(
        &self,
        transform: SpreadTile<T, N, IN>,
        tiling: Tiling<N>,
        lot: usize,
        part: &TileRows,
        (data, channels): (&[T], Channels),
    ) -> Scratch<T> {
        let (pitch, stride) = self.strides(channels.count);
        let mut v = Scratch::<T>::new(Self::FREQUENCIES * stride);
        let (images, area) = (self.images(lot), tiling.h * tiling.w);
        let rows = tiling.rows(part);
        // One position more than the image has holds the zeros of the padding.
        let positions = rows.len() * tiling.w;
        let mut region = Scratch::<T>::new((positions + 1) * LANES);
        region.fill(T::zero());
        let mut places = SmallVec::new();
        tiling.places(part, positions, &mut places);
        let mut work = tile::Work::<T, IN>::new();
        let out = Shared::new(&mut v);
        for channel in 0..channels.count {
            if positions > 0 {
                let (at, apart) = channels.plane(images.start, channel, area);
                let src = &data[at + rows.start * tiling.w..][..(images.len() - 1) * apart + positions];
                // SAFETY: the source was cut to what is read, and the region holds `positions` vectors.
                unsafe {
                    (self.micro.transpose)(images.len(), positions, src.as_ptr(), apart, region.as_mut_ptr(), LANES);
                }
            }
            for (t, places) in places.as_chunks::<N>().0.chunks_exact(N).enumerate() {
                transform(&mut work, &region, places, &out, channel * pitch + t * LANES, stride);
            }
        }
        v
    }

    /// The products of some outer channels.
    fn multiply(&self, v: &[T], tiles: usize, outer: Range<usize>, products: &mut [T]) {
        let (inner, nr) = (self.kernels.depth, self.micro.nr);
        let ((pitch, stride), (_, to_stride)) = (self.strides(inner), self.strides(outer.len()));
        let (width, step) = (tiles * LANES, self.kernels.nr);
        let products = Shared::new(products);
        for f in 0..Self::FREQUENCIES {
            let a = &self.kernels.panel(f, 0, 0)[outer.start..][..(inner - 1) * step + outer.len()];
            for j in (0..width).step_by(nr) {
                let columns = nr.min(width - j);
                let b = &v[f * stride + j..][..(inner - 1) * pitch + columns];
                let args = TileArgs {
                    k: inner,
                    a: a.as_ptr(),
                    a_row: 1,
                    a_step: step,
                    b: b.as_ptr(),
                    ldb: pitch,
                    c: products.at(f * to_stride + j, (outer.len() - 1) * pitch + columns),
                    ldc: pitch,
                    alpha: T::one(),
                    accumulate: false,
                };
                // SAFETY: the operands hold `inner` steps and the tile of the products was checked.
                unsafe { (self.micro.run)(outer.len(), columns, &args) }
            }
        }
    }

    /// Calls `use_of(channel, frequencies)` for each outer channel, with those of its first tile; the next tiles' are each
    /// [`LANES`] elements on.
    fn for_each_outer(&self, v: &[T], tiles: usize, outer: usize, mut use_of: impl FnMut(usize, Frequencies<'_, T>)) {
        let panels = Panels::new(outer, self.micro.mr);
        let (pitch, most) = self.strides(panels.height(0));
        let mut products = Scratch::<T>::new(Self::FREQUENCIES * most);
        for i in 0..panels.count {
            let mine = panels.start(i)..panels.start(i + 1);
            let (_, stride) = self.strides(mine.len());
            self.multiply(v, tiles, mine.clone(), &mut products);
            for (row, channel) in mine.enumerate() {
                use_of(channel, Frequencies { data: &products, first: row * pitch, stride });
            }
        }
    }

    /// Writes vectors of a lot's images to rows of a channel of each, from an element of the plane on.
    ///
    /// # Safety
    /// No other task may touch those elements meanwhile.
    unsafe fn scatter(
        &self,
        region: &[T],
        lot: usize,
        (data, channels): (&Shared<'_, T>, Channels),
        (channel, area): (usize, usize),
        elements: Range<usize>,
    ) {
        let images = self.images(lot);
        let (at, apart) = channels.plane(images.start, channel, area);
        let (dst, len) = (data.at(at + elements.start, (images.len() - 1) * apart + elements.len()), elements.len());
        assert!(len * LANES <= region.len());
        // SAFETY: both spans were just checked, and the elements are the caller's.
        unsafe { (self.micro.transpose)(len, images.len(), region.as_ptr(), LANES, dst, apart) }
    }
}

/// y = w ∗ x, completed by `epilogue`, for kernels of K × K and tiles of IN × IN inputs; the kernels may be rotated.
pub(super) fn run<T: Float, const K: usize, const IN: usize, const OUT: usize>(
    source: &Source<'_, T, K, IN>,
    plane: &Plane,
    batch: usize,
    (x, from): (&[T], Channels),
    (y, to): (&mut [T], Channels),
    epilogue: Epilogue<'_, T>,
) {
    let (oh, ow) = (plane.rows.output, plane.columns.output);
    let lots = Lots::<T, IN, OUT>::new(source, batch, (oh, ow));
    let parts: SmallVec<[_; 8]> = lots.parts().collect();
    let wide = lots.wide;
    let inputs = Tiling::<IN> {
        h: plane.rows.input,
        w: plane.columns.input,
        top: plane.rows.pad,
        left: plane.columns.pad,
        wide,
        step: OUT,
    };
    let outputs = Tiling::<OUT> { h: oh, w: ow, top: 0, left: 0, wide, step: OUT };
    let y = Shared::new(y);
    let gather = tile::gather_by::<T, OUT, IN>(epilogue.relu);
    tasks(lots.count() * parts.len(), true, |t| {
        let (lot, part) = (t / parts.len(), &parts[t % parts.len()]);
        let v = lots.spread(tile::spread::<T, IN, IN>, inputs, lot, part, (x, from));
        // Outputs beyond the image fall on a position of their own behind the others.
        let rows = outputs.rows(part);
        let len = rows.len() * ow;
        let mut places = SmallVec::new();
        outputs.places(part, len, &mut places);
        let mut region = Scratch::<T>::new((len + 1) * LANES);
        let mut work = tile::Work::<T, IN>::new();
        lots.for_each_outer(&v, part.rows.len() * wide, to.count, |channel, frequencies| {
            let bias = [epilogue.bias.map_or(T::zero(), |b| b[to.first + channel]); LANES];
            for (t, places) in places.as_chunks::<OUT>().0.chunks_exact(OUT).enumerate() {
                gather(&mut work, frequencies.tile(t), &bias, &mut region, places);
            }
            // SAFETY: these rows of these images are this task's.
            unsafe { lots.scatter(&region, lot, (&y, to), (channel, oh * ow), rows.start * ow..rows.end * ow) };
        });
    });
}

/// dx by the transpose of the forward pass for kernels of 5 × 5, as in [`super::adjoint`].
pub(super) fn adjoint<T: Float, const IN: usize, const OUT: usize>(
    source: &Source<'_, T, 5, IN>,
    plane: &Plane,
    batch: usize,
    (dy, from): (&[T], Channels),
    (dx, to): (&Shared<'_, T>, Channels),
) {
    let lots = Lots::<T, IN, OUT>::new(source, batch, (plane.rows.output, plane.columns.output));
    let (wide, area) = (lots.wide, plane.area());
    let outputs = Tiling::<OUT> { h: plane.rows.output, w: plane.columns.output, top: 0, left: 0, wide, step: OUT };
    let inputs = Tiling::<IN> {
        h: plane.rows.input,
        w: plane.columns.input,
        top: plane.rows.pad,
        left: plane.columns.pad,
        wide,
        step: OUT,
    };
    // Rows of tiles overlap, so an image's are one task's. What falls on the padding is added up on a position behind the
    // plane's.
    let size = (area + 1) * LANES;
    tasks(lots.count(), true, |lot| {
        let mut regions = Scratch::<T>::new(to.count * size);
        regions.fill(T::zero());
        let mut places = SmallVec::new();
        let mut work = tile::Work::<T, IN>::new();
        for part in lots.parts() {
            let v = lots.spread(tile::spread_values::<T, OUT, IN>, outputs, lot, &part, (dy, from));
            let first = inputs.rows(&part).start * plane.columns.input;
            inputs.places(&part, area - first, &mut places);
            lots.for_each_outer(&v, part.rows.len() * wide, to.count, |channel, frequencies| {
                let region = &mut regions[channel * size..][first * LANES..size];
                for (t, places) in places.as_chunks::<IN>().0.chunks_exact(IN).enumerate() {
                    tile::add_inputs(&mut work, frequencies.tile(t), region, places);
                }
            });
        }
        for (channel, region) in regions.chunks_exact(size).enumerate() {
            // SAFETY: these images are this task's.
            unsafe { lots.scatter(region, lot, (dx, to), (channel, area), 0..area) };
        }
    });
}
