//! Patches of a two-dimensional input, laid out as a matrix product wants them.

use smallvec::SmallVec;

use crate::Float;
use crate::kernel::vectorized;

/// A two-dimensional convolution within one group. Padding may be negative: the input is then cropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub channels: usize,
    pub h: usize,
    pub w: usize,
    pub oh: usize,
    pub ow: usize,
    pub kh: usize,
    pub kw: usize,
    pub sh: usize,
    pub sw: usize,
    pub ph: isize,
    pub pw: isize,
    pub dh: usize,
    pub dw: usize,
}

impl Plane {
    /// Elements of one input channel.
    pub fn area(&self) -> usize {
        self.h * self.w
    }

    /// Output positions.
    pub fn out_area(&self) -> usize {
        self.oh * self.ow
    }

    /// Kernel elements.
    pub fn taps(&self) -> usize {
        self.kh * self.kw
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

    /// Input columns that one output row reaches over.
    fn reach_w(&self) -> usize {
        (self.ow - 1) * self.sw + (self.kw - 1) * self.dw + 1
    }

    /// With a column stride and several taps in a row, a window keeps columns of equal remainder together, so that what
    /// a tap takes from a row is contiguous; the number of such phases.
    fn phases(&self) -> usize {
        if self.kw > 1 { self.sw } else { 1 }
    }

    fn copies(&self) -> bool {
        let reach_h = (self.oh - 1) * self.sh + (self.kh - 1) * self.dh + 1;
        (self.ph, self.pw) != (0, 0) || reach_h > self.h || self.reach_w() > self.w || self.phases() > 1
    }

    /// Whether windows would be many times what is read of them, and of the image.
    pub fn is_sparse(&self) -> bool {
        if self.oh == 0 || self.ow == 0 || !self.copies() {
            return false;
        }
        let rows = (self.oh - 1) * self.sh + (self.kh - 1) * self.dh + 1;
        let window = lgm_core::count(&[rows, self.phases(), self.phase_len()]);
        window / 16 > lgm_core::count(&[self.taps(), self.out_area()]).saturating_add(self.area())
    }

    /// Columns of one phase in a copied window.
    fn phase_len(&self) -> usize {
        self.reach_w().div_ceil(self.phases())
    }

    /// Most elements of scratch that [`window`](Self::window) uses, for `positions` outputs of an image and blocks of
    /// `depth` along the inner extent.
    pub fn window_len(&self, positions: usize, depth: usize) -> usize {
        if !self.copies() {
            return 0;
        }
        let rows = self.oh.min(positions.div_ceil(self.ow) + 1);
        let channels = self.channels.min(depth.div_ceil(self.taps()) + 1);
        channels * ((rows - 1) * self.sh + (self.kh - 1) * self.dh + 1) * self.phase_len() * self.phases()
    }

    /// The part of an image (`channels` × h × w) that `positions` and inner indices `depth` need: of the image itself, or
    /// copied into `scratch` with zeros around it and its columns sorted by phase.
    pub fn window<'a, T: Float>(
        &self,
        image: &'a [T],
        positions: &std::ops::Range<usize>,
        depth: &std::ops::Range<usize>,
        scratch: &'a mut [T],
    ) -> Window<'a, T> {
        let taps = self.taps();
        let (c0, c1) = (depth.start / taps, depth.end.div_ceil(taps));
        let (oh0, oh1) = (positions.start / self.ow, (positions.end - 1) / self.ow);
        if !self.copies() {
            let from = c0 * self.area() + oh0 * self.sh * self.w;
            return Window { data: &image[from..], pitch: self.w, channel_pitch: self.area(), phase_len: 0, c0 };
        }
        let (phases, phase_len) = (self.phases(), self.phase_len());
        let (rows, pitch) = ((oh1 - oh0) * self.sh + (self.kh - 1) * self.dh + 1, phases * phase_len);
        let top = (oh0 * self.sh) as isize - self.ph;
        for c in c0..c1 {
            for r in 0..rows {
                let dst = &mut scratch[((c - c0) * rows + r) * pitch..][..pitch];
                let ih = top + r as isize;
                if ih < 0 || ih >= self.h as isize {
                    dst.fill(T::zero());
                    continue;
                }
                let src = &image[c * self.area() + ih as usize * self.w..][..self.w];
                for (phase, dst) in dst.chunks_exact_mut(phase_len).enumerate() {
                    copy_phase(src, phase as isize - self.pw, phases, dst);
                }
            }
        }
        Window { data: &*scratch, pitch, channel_pitch: rows * pitch, phase_len, c0 }
    }

    /// Cuts `positions` into runs along output rows, none crossing a multiple of `cut` columns; the first has column
    /// `column`. `place` maps a column to where it begins in the destination.
    pub fn runs(
        &self,
        positions: std::ops::Range<usize>,
        column: usize,
        cut: usize,
        pitch: usize,
        place: impl Fn(usize) -> usize,
    ) -> Runs {
        let oh0 = positions.start / self.ow;
        let step = if self.phases() > 1 { 1 } else { self.sw };
        let mut runs = Runs::new();
        let mut s = positions.start;
        while s < positions.end {
            let (oh, ow) = (s / self.ow, s % self.ow);
            let at = column + (s - positions.start);
            let len = (self.ow - ow).min(positions.end - s).min(cut - at % cut);
            runs.push(Run { src: (oh - oh0) * self.sh * pitch + ow * step, dst: place(at), len });
            s += len;
        }
        runs
    }
}

/// Input elements of some rows and channels, all that a run reads being there.
pub(super) struct Window<'a, T> {
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

impl<T: Float> Window<'_, T> {
    /// Copies the patches' elements: for each inner index k of `depth` and each run, `len` elements to
    /// `dst[run.dst + (k - depth.start) * step..]`.
    pub fn fill(&self, plane: &Plane, depth: std::ops::Range<usize>, runs: &[Run], step: usize, dst: &mut [T]) {
        let (taps, phases) = (plane.taps(), plane.phases());
        for k in depth.clone() {
            let (c, i, j) = (k / taps, k % taps / plane.kw, k % plane.kw);
            let column = j * plane.dw;
            let column = if phases > 1 { column % phases * self.phase_len + column / phases } else { column };
            let src = &self.data[(c - self.c0) * self.channel_pitch + i * plane.dh * self.pitch + column..];
            let dst = &mut dst[(k - depth.start) * step..];
            match plane.sw / phases {
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
    fn copy_phase[T: Float](src: &[T], shift: isize, step: usize, dst: &mut [T]) {
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
