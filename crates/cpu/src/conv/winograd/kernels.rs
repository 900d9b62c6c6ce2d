//! The transformed kernels, in panels as the micro-kernel reads them.

use std::ops::Range;

use super::spaced;
use super::tile::{self, LANES};
use crate::Float;
use crate::kernel::Micro;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Inner indices fetched at a time.
const FETCH: usize = 32;

/// Kernels of K × K as they are stored: o × c × K².
pub(super) struct Source<'a, T, const K: usize, const IN: usize> {
    pub micro: &'a Micro<T>,
    pub w: &'a [T],
    /// Channels summed over.
    pub inner: usize,
    /// Channels that result.
    pub outer: usize,
    /// Whether the inner channels are those of y; otherwise they are those of x.
    pub transposed: bool,
    /// Whether the kernels are rotated half a turn.
    pub rotated: bool,
}

impl<T: Float, const K: usize, const IN: usize> Source<'_, T, K, IN> {
    const AREA: usize = K * K;

    /// Kernels of `inner` and the outer channels from `first` on: `lanes[(p·K² + tap)·LANES + lane]`.
    fn fetch(&self, first: usize, inner: Range<usize>, lanes: &mut [T]) {
        let count = LANES.min(self.outer - first);
        assert!(
            lanes.len() >= inner.len() * Self::AREA * LANES && self.w.len() == self.inner * self.outer * Self::AREA
        );
        if self.transposed {
            for (p, lanes) in inner.zip(lanes.chunks_exact_mut(Self::AREA * LANES)) {
                let src = &self.w[(p * self.outer + first) * Self::AREA..][..count * Self::AREA];
                // SAFETY: `count` rows of weights, and as many vectors as a row has to put them in.
                unsafe {
                    (self.micro.transpose)(count, Self::AREA, src.as_ptr(), Self::AREA, lanes.as_mut_ptr(), LANES)
                }
            }
        } else {
            let row = self.inner * Self::AREA;
            let src = &self.w[first * row + inner.start * Self::AREA..][..(count - 1) * row + inner.len() * Self::AREA];
            // SAFETY: `count` rows of as many weights, and as many vectors to put them in.
            unsafe {
                (self.micro.transpose)(count, inner.len() * Self::AREA, src.as_ptr(), row, lanes.as_mut_ptr(), LANES);
            }
        }
    }

    /// Transforms the kernels of one vector of outer channels to `out[first_of(p) + frequency·stride..]`.
    fn spread(
        &self,
        vector: usize,
        inner: Range<usize>,
        out: &Shared<'_, T>,
        stride: usize,
        place: impl Fn(usize, usize) -> usize,
    ) {
        let nr = self.micro.nr;
        let tap = |i: usize| if self.rotated { Self::AREA - 1 - i } else { i };
        let mut lanes = Scratch::<T>::new(FETCH * Self::AREA * LANES);
        lanes.fill(T::zero());
        let mut aside = [[[T::zero(); LANES]; IN]; IN];
        let mut work = tile::Work::<T, IN>::new();
        for from in inner.clone().step_by(FETCH) {
            let some = from..(from + FETCH).min(inner.end);
            self.fetch(vector * LANES, some.clone(), &mut lanes);
            for p in some {
                let base = (p - from) * Self::AREA;
                let place_of = |a, b| (base + tap(a * K + b)) as u32;
                let places: [[u32; K]; K] = std::array::from_fn(|a| std::array::from_fn(|b| place_of(a, b)));
                if nr >= LANES {
                    tile::spread(&mut work, &lanes, &places, out, place(p, vector * LANES), stride);
                    continue;
                }
                // Panels narrower than a vector: computed aside, then dealt out.
                tile::spread(
                    &mut work,
                    &lanes,
                    &places,
                    &Shared::new(aside.as_flattened_mut().as_flattened_mut()),
                    0,
                    LANES,
                );
                for (i, piece) in aside.as_flattened().as_flattened().chunks_exact(nr).enumerate() {
                    let at = i * nr / LANES * stride + place(p, vector * LANES + i * nr % LANES);
                    // SAFETY: these columns and inner indices belong to one task.
                    unsafe { out.part(at..at + nr) }.copy_from_slice(piece);
                }
            }
        }
    }
}

/// Transformed kernels in panels of outer channels: `[frequency][panel][inner][nr]`.
pub(super) struct Kernels<T> {
    data: Scratch<T>,
    /// Outer channels of a panel.
    pub nr: usize,
    /// Inner indices that are there.
    pub depth: usize,
    columns: usize,
    stride: usize,
}

impl<T: Float> Kernels<T> {
    /// All of the kernels; `columns` is their number of outer channels, rounded up to whole panels and vectors.
    pub fn new<const K: usize, const IN: usize>(source: &Source<'_, T, K, IN>, columns: usize) -> Self {
        Self::filled(source, Self::empty(source, columns))
    }

    /// All of the kernels, the outer channels side by side.
    pub fn in_one_panel<const K: usize, const IN: usize>(source: &Source<'_, T, K, IN>) -> Self {
        let columns = source.outer.next_multiple_of(LANES);
        Self::filled(source, Kernels { nr: columns, ..Self::empty(source, columns) })
    }

    fn filled<const K: usize, const IN: usize>(source: &Source<'_, T, K, IN>, mut kernels: Self) -> Self {
        kernels.resize(source.inner, IN * IN);
        let (nr, depth, stride) = (kernels.nr, kernels.depth, kernels.stride);
        let (vectors, parts) = (source.outer.div_ceil(LANES), depth.div_ceil(FETCH));
        let shared = Shared::new(&mut kernels.data);
        tasks(vectors * parts, true, |t| {
            let (vector, from) = (t % vectors, t / vectors * FETCH);
            source.spread(vector, from..(from + FETCH).min(depth), &shared, stride, |p, column| {
                column / nr * nr * depth + p * nr + column % nr
            });
        });
        kernels
    }

    /// Room for the kernels of `columns` outer channels.
    pub fn empty<const K: usize, const IN: usize>(source: &Source<'_, T, K, IN>, columns: usize) -> Self {
        Kernels { data: Scratch::new(0), nr: source.micro.nr, depth: 0, columns, stride: 0 }
    }

    fn resize(&mut self, depth: usize, frequencies: usize) {
        let stride = spaced(depth * self.columns);
        if stride > self.stride {
            self.data = Scratch::new(frequencies * stride);
            self.stride = stride;
        }
        self.depth = depth;
    }

    /// Replaces the kernels by those of the outer channels from `first` on and some inner ones.
    pub fn fill<const K: usize, const IN: usize>(
        &mut self,
        source: &Source<'_, T, K, IN>,
        first: usize,
        inner: Range<usize>,
    ) {
        self.resize(inner.len(), IN * IN);
        let (nr, depth, stride) = (self.nr, self.depth, self.stride);
        let shared = Shared::new(&mut self.data);
        for vector in first / LANES..(first + self.columns).min(source.outer).div_ceil(LANES) {
            source.spread(vector, inner.clone(), &shared, stride, |p, column| {
                (column - first) / nr * nr * depth + (p - inner.start) * nr + column % nr
            });
        }
    }

    /// The panel of outer channels from `column` on at a frequency, from inner index `p` on.
    pub fn panel(&self, frequency: usize, column: usize, p: usize) -> &[T] {
        &self.data[frequency * self.stride + column * self.depth + p * self.nr..]
    }
}
