//! Patches of a two-dimensional input, laid out as a matrix product wants them.

use std::ops::Range;

use lgm_core::Window;
use smallvec::SmallVec;

use crate::Float;
use crate::kernel::vectorized;

/// A two-dimensional convolution within one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub channels: usize,
    pub rows: Window,
    pub columns: Window,
}

impl Plane {
    /// Elements of one input channel.
    pub fn area(&self) -> usize {
        self.rows.input * self.columns.input
    }

    /// Output positions.
    pub fn out_area(&self) -> usize {
        self.rows.output * self.columns.output
    }

    /// Kernel elements.
    pub fn taps(&self) -> usize {
        self.rows.kernel * self.columns.kernel
    }

    /// Inner extent of the product.
    pub fn patch_len(&self) -> usize {
        self.channels * self.taps()
    }

    /// Length of the blocks that the inner extent is cut into: whole channels where they fit `most`.
    pub fn depth_block(&self, most: usize) -> usize {
        let taps = self.taps();
        if taps <= most {
            crate::gemm::even_block(self.channels, most / taps) * taps
        } else {
            crate::gemm::even_block(self.patch_len(), most)
        }
    }

    /// The plane by which the gradient of the input is a convolution of the `channels` of the output; stride 1 only.
    pub fn adjoint(&self, channels: usize) -> Plane {
        Plane { channels, rows: self.rows.adjoint(), columns: self.columns.adjoint() }
    }

    /// With a column stride and several taps in a row, a window keeps columns of equal remainder together, so that what
    /// a tap takes from a row is contiguous; the number of such phases.
    fn phases(&self) -> usize {
        if self.columns.kernel > 1 { self.columns.stride } else { 1 }
    }

    fn copies(&self) -> bool {
        let exceeds = |w: &Window| w.pad != 0 || w.span() > w.input;
        exceeds(&self.rows) || exceeds(&self.columns) || self.phases() > 1
    }

    /// Whether windows would be many times what is read of them, and of the image.
    pub fn is_sparse(&self) -> bool {
        if self.rows.output == 0 || self.columns.output == 0 || !self.copies() {
            return false;
        }
        let window = lgm_core::count(&[self.rows.span(), self.phases(), self.phase_len()]);
        window / 16 > lgm_core::count(&[self.taps(), self.out_area()]).saturating_add(self.area())
    }

    /// Columns of one phase in a copied window.
    fn phase_len(&self) -> usize {
        self.columns.span().div_ceil(self.phases())
    }

    /// Most elements of scratch that [`window`](Self::window) uses, for `positions` outputs of an image and blocks of
    /// `depth` along the inner extent.
    pub fn window_len(&self, positions: usize, depth: usize) -> usize {
        if !self.copies() {
            return 0;
        }
        let rows = self.rows.output.min(positions.div_ceil(self.columns.output) + 1);
        let channels = self.channels.min(depth.div_ceil(self.taps()) + 1);
        channels * ((rows - 1) * self.rows.stride + self.rows.reach()) * self.phase_len() * self.phases()
    }

    /// The rows of the kernel that inner indices `depth` are of.
    fn kernel_rows(&self, depth: &Range<usize>) -> Range<usize> {
        let (first, last) = (depth.start / self.columns.kernel, (depth.end - 1) / self.columns.kernel);
        let kernel = self.rows.kernel;
        if first / kernel == last / kernel { first % kernel..last % kernel + 1 } else { 0..kernel }
    }

    /// The part of an image (`channels` × h × w) that `positions` and inner indices `depth` need: of the image itself, or
    /// copied into `scratch` with zeros around it and its columns sorted by phase.
    pub fn window<'a, T: Float>(
        &self,
        image: &'a [T],
        positions: &Range<usize>,
        depth: &Range<usize>,
        scratch: &'a mut [T],
    ) -> Patches<'a, T> {
        let taps = self.taps();
        let (c0, c1) = (depth.start / taps, depth.end.div_ceil(taps));
        let (oh0, oh1) = (positions.start / self.columns.output, (positions.end - 1) / self.columns.output);
        if !self.copies() {
            let from = c0 * self.area() + oh0 * self.rows.stride * self.columns.input;
            return Patches {
                data: &image[from..],
                pitch: self.columns.input,
                channel_pitch: self.area(),
                phase_len: 0,
                c0,
            };
        }
        let (phases, phase_len) = (self.phases(), self.phase_len());
        let (rows, pitch) = ((oh1 - oh0) * self.rows.stride + self.rows.reach(), phases * phase_len);
        let top = (oh0 * self.rows.stride) as isize - self.rows.pad;
        let taken = self.kernel_rows(depth);
        // Of a kernel in parts, only the rows that these taps see.
        let seen = |r: usize| {
            taken.len() == self.rows.kernel
                || taken.clone().any(|i| {
                    let at = r.checked_sub(i * self.rows.dilation);
                    at.is_some_and(|at| at.is_multiple_of(self.rows.stride) && at / self.rows.stride <= oh1 - oh0)
                })
        };
        for c in c0..c1 {
            for r in (0..rows).filter(|&r| seen(r)) {
                let dst = &mut scratch[((c - c0) * rows + r) * pitch..][..pitch];
                let ih = top + r as isize;
                if ih < 0 || ih >= self.rows.input as isize {
                    dst.fill(T::zero());
                    continue;
                }
                let src = &image[c * self.area() + ih as usize * self.columns.input..][..self.columns.input];
                for (phase, dst) in dst.chunks_exact_mut(phase_len).enumerate() {
                    copy_phase(src, phase as isize - self.columns.pad, phases, dst);
                }
            }
        }
        Patches { data: &*scratch, pitch, channel_pitch: rows * pitch, phase_len, c0 }
    }

    /// Cuts `positions` into runs along output rows, none crossing a multiple of `cut` columns; the first has column
    /// `column`. `place` maps a column to where it begins in the destination.
    pub fn runs(
        &self,
        positions: Range<usize>,
        column: usize,
        cut: usize,
        pitch: usize,
        place: impl Fn(usize) -> usize,
    ) -> Runs {
        let oh0 = positions.start / self.columns.output;
        let step = if self.phases() > 1 { 1 } else { self.columns.stride };
        let mut runs = Runs::new();
        let mut s = positions.start;
        while s < positions.end {
            let (oh, ow) = (s / self.columns.output, s % self.columns.output);
            let at = column + (s - positions.start);
            let len = (self.columns.output - ow).min(positions.end - s).min(cut - at % cut);
            runs.push(Run { src: (oh - oh0) * self.rows.stride * pitch + ow * step, dst: place(at), len });
            s += len;
        }
        runs
    }
}

/// Input elements of some rows and channels, all that a run reads being there.
pub(super) struct Patches<'a, T> {
    data: &'a [T],
    /// Distance between rows.
    pub pitch: usize,
    channel_pitch: usize,
    /// Columns of a phase; nought in an image, where columns are in order.
    phase_len: usize,
    c0: usize,
}

/// Consecutive outputs of a row, and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    src: usize,
    dst: usize,
    len: usize,
}

/// The runs of a task, on the stack for the usual counts.
pub(super) type Runs = SmallVec<[Run; 64]>;

impl<T: Float> Patches<'_, T> {
    /// Copies the patches' elements: for each inner index k of `depth` and each run, `len` elements to
    /// `dst[run.dst + (k - depth.start) * step..]`.
    pub fn fill(&self, plane: &Plane, depth: Range<usize>, runs: &[Run], step: usize, dst: &mut [T]) {
        let (taps, phases) = (plane.taps(), plane.phases());
        for k in depth.clone() {
            let (c, i, j) = (k / taps, k % taps / plane.columns.kernel, k % plane.columns.kernel);
            let column = j * plane.columns.dilation;
            let column = if phases > 1 { column % phases * self.phase_len + column / phases } else { column };
            let src = &self.data[(c - self.c0) * self.channel_pitch + i * plane.rows.dilation * self.pitch + column..];
            let dst = &mut dst[(k - depth.start) * step..];
            match plane.columns.stride / phases {
                1 => copy_runs(src, runs, dst),
                2 => every_second(src, runs, dst),
                s => {
                    for run in runs {
                        for (t, d) in dst[run.dst..][..run.len].iter_mut().enumerate() {
                            *d = src[run.src + t * s];
                        }
                    }
                }
            }
        }
    }
}

vectorized! {
    /// dst[t] = src[shift + t·step], zero outside of src.
    pub(super) fn copy_phase[T: Float](src: &[T], shift: isize, step: usize, dst: &mut [T]) {
        let first = (-shift).max(0).unsigned_abs().div_ceil(step).min(dst.len());
        let end = (src.len() as isize - shift).max(0).unsigned_abs().div_ceil(step).clamp(first, dst.len());
        dst[..first].fill(T::zero());
        dst[end..].fill(T::zero());
        let dst = &mut dst[first..end];
        if dst.is_empty() {
            return;
        }
        let src = &src[((first * step) as isize + shift) as usize..];
        match step {
            1 => dst.copy_from_slice(&src[..dst.len()]),
            2 => dst.iter_mut().zip(src.chunks(2)).for_each(|(d, s)| *d = s[0]),
            4 => dst.iter_mut().zip(src.chunks(4)).for_each(|(d, s)| *d = s[0]),
            _ => dst.iter_mut().zip(src.chunks(step)).for_each(|(d, s)| *d = s[0]),
        }
    }
}

/// Copies at least N elements and at most 2 · N.
#[inline(always)]
fn ends<T: Float, const N: usize>(src: &[T], dst: &mut [T]) {
    if let (Some(s), Some(d)) = (src.first_chunk::<N>(), dst.first_chunk_mut::<N>()) {
        *d = *s;
    }
    if let (Some(s), Some(d)) = (src.last_chunk::<N>(), dst.last_chunk_mut::<N>()) {
        *d = *s;
    }
}

vectorized! {
    fn copy_runs[T: Float](src: &[T], runs: &[Run], dst: &mut [T]) {
        for run in runs {
            let (s, d) = (&src[run.src..][..run.len], &mut dst[run.dst..][..run.len]);
            // Short lengths as two moves of constant length, which may overlap, rather than a call.
            match run.len {
                16..=32 => ends::<T, 16>(s, d),
                8..16 => ends::<T, 8>(s, d),
                4..8 => ends::<T, 4>(s, d),
                _ => d.copy_from_slice(s),
            }
        }
    }
}

vectorized! {
    fn every_second[T: Float](src: &[T], runs: &[Run], dst: &mut [T]) {
        for run in runs {
            let s = &src[run.src..][..2 * run.len - 1];
            let d = &mut dst[run.dst..][..run.len];
            for (d, s) in d.iter_mut().zip(s.chunks(2)) {
                *d = s[0];
            }
        }
    }
}
