//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use lgm_core::{Result, Window, ensure};

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

/// The sizes of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// The windows along rows and along columns, of dilation 1.
    pub windows: [Window; 2],
    /// Whether a mean takes padding for zeros; else it is of the elements that there are.
    pub padding_counts: bool,
}

impl PoolGeometry {
    /// [`PoolGeometry::sided`] with the same padding at both sides of each axis, which counts as zeros.
    ///
    /// # Errors
    /// As there.
    pub fn new(
        input: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        pad: [usize; 2],
        round: Round,
    ) -> Result<Self> {
        PoolGeometry::sided(input, kernel, stride, pad.map(|pad| [pad; 2]), round)
    }

    /// The geometry of a pooling, with Caffe's number of windows: rounded as asked, and, where there is padding, without a
    /// last window that would begin beyond the input.
    ///
    /// # Errors
    /// When a kernel or stride is zero, padding is not smaller than the kernel, or the kernel exceeds the padded input.
    pub fn sided(
        input: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        pad: [[usize; 2]; 2],
        round: Round,
    ) -> Result<Self> {
        let mut windows = [Window::UNIT; 2];
        for (d, window) in windows.iter_mut().enumerate() {
            *window = Window::sided(input[d], kernel[d], stride[d], pad[d], 1)?;
            let [before, behind] = pad[d];
            let most = before.max(behind);
            ensure!(most < kernel[d], "the padding ({most}) must be smaller than the kernel ({})", kernel[d]);
            if round == Round::Ceil && window.span() < input[d] + before + behind {
                window.output += 1;
            }
            let padded = pad != [[0; 2]; 2];
            if padded && (window.output - 1) * stride[d] >= input[d] + before {
                window.output -= 1;
            }
        }
        Ok(PoolGeometry { windows, padding_counts: true })
    }

    /// Elements of a plane of x.
    pub fn input_area(&self) -> usize {
        self.windows[0].input * self.windows[1].input
    }

    /// Elements of a plane of y.
    pub fn output_area(&self) -> usize {
        self.windows[0].output * self.windows[1].output
    }

    /// Elements of a window, padding included where it counts; 1 at least along each axis for a window beyond the input, whose mean is 0.
    fn padded_area<T: Float>(&self, window: [usize; 2]) -> T {
        let len = |d: usize| {
            let (along, at) = (&self.windows[d], window[d]);
            if self.padding_counts { along.padded_len(at) } else { along.covered(at).len() }.max(1)
        };
        T::of((len(0) * len(1)) as f64)
    }
}
