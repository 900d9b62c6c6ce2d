//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use std::ops::Range;

use lgm_core::{Result, ensure};

use crate::Float;

mod average;
mod max;
#[cfg(test)]
mod tests;
mod windows;

/// How the number of windows is rounded when they do not fit evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Up: a last window may hang over the edge.
    Ceil,
    /// Down.
    Floor,
}

/// The sizes of a pooling; pairs are rows, then columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Extents of a plane of x.
    pub input: [usize; 2],
    /// Extents of a plane of y.
    pub output: [usize; 2],
    /// Window.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Padding at each side.
    pub pad: [usize; 2],
}

impl PoolGeometry {
    /// The geometry of a pooling, with Caffe's number of windows: rounded as asked, and, where there is padding, without a
    /// last window that would begin beyond the input.
    ///
    /// # Errors
    /// When a kernel or stride is zero, padding is not smaller than the kernel, or the kernel exceeds the padded input.
    pub fn new(
        input: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        pad: [usize; 2],
        round: Round,
    ) -> Result<Self> {
        let mut output = [0; 2];
        for d in 0..2 {
            ensure!(kernel[d] > 0 && stride[d] > 0, "pooling kernel and stride must be positive");
            ensure!(pad[d] < kernel[d], "pooling padding ({}) must be smaller than the kernel ({})", pad[d], kernel[d]);
            let padded = input[d] + 2 * pad[d];
            ensure!(padded >= kernel[d], "pooling kernel ({}) exceeds the padded input ({padded})", kernel[d]);
            let span = padded - kernel[d];
            output[d] = 1 + match round {
                Round::Ceil => span.div_ceil(stride[d]),
                Round::Floor => span / stride[d],
            };
        }
        if pad != [0, 0] {
            for d in 0..2 {
                if (output[d] - 1) * stride[d] >= input[d] + pad[d] {
                    output[d] -= 1;
                }
            }
        }
        Ok(PoolGeometry { input, output, kernel, stride, pad })
    }

    /// Elements of a plane of x.
    pub fn input_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Elements of a plane of y.
    pub fn output_area(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// The input's rows or columns, by axis, that window `i` covers.
    fn covered(&self, d: usize, i: usize) -> Range<usize> {
        let start = (i * self.stride[d]) as isize - self.pad[d] as isize;
        let end = ((start + self.kernel[d] as isize).max(0) as usize).min(self.input[d]);
        (start.max(0) as usize).min(end)..end
    }

    /// The windows, by axis, that cover row or column `i` of the input: the inverse of [`covered`](Self::covered).
    fn covering(&self, d: usize, i: usize) -> Range<usize> {
        let (i, stride) = (i + self.pad[d], self.stride[d]);
        let end = (i / stride + 1).min(self.output[d]);
        ((i + 1).saturating_sub(self.kernel[d]).div_ceil(stride)).min(end)..end
    }

    /// Elements of a window, padding included; 1 at least along each axis for a window beyond the input, whose mean is 0.
    fn padded_area<T: Float>(&self, window: [usize; 2]) -> T {
        let end = |d: usize| self.input[d] + 2 * self.pad[d];
        let len = |d: usize| self.kernel[d].min(end(d).saturating_sub(window[d] * self.stride[d])).max(1);
        T::of((len(0) * len(1)) as f64)
    }
}
