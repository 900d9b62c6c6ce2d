//! Convolution over any number of spatial axes: y = w ∗ x + b, and the gradients of x, w and b.
//!
//! Two spatial axes are the fast case. The forward pass is a matrix product W·P, W being O/g × (C/g·Kh·Kw) and P the
//! patches of the input, one column for each output position of each image; P is never stored: each task packs the part
//! it is about to multiply straight into the panels of the micro-kernel ("implicit GEMM"). The gradient of the weights
//! is dY·Pᵀ in the same manner, and with stride 1 the gradient of the input is itself a convolution, of dY with the
//! kernel rotated half a turn. Strided input gradients scatter blocks of Wᵀ·dY. Depthwise convolution has loops of its
//! own, and more than two axes go through [`im2col_nd`].
//!
//! Every task is a block whose bounds follow from the shapes, and each sum is taken in a fixed order.

use std::sync::atomic::{AtomicU8, Ordering};

use lgm_core::{Axes3, Result, ensure};

use crate::kernel::{Kernel, micro};
use crate::{Float, elementwise};

mod data;
mod depthwise;
mod epilogue;
mod forward;
mod nd;
mod patches;
#[cfg(test)]
mod tests;
mod weights;
mod winograd;

pub use epilogue::Epilogue;
pub use nd::{col2im_nd, im2col_nd};
use patches::Plane;

/// The sizes of a convolution, spatial axes outermost first.
///
/// x is N × `in_channels` × `input`, y is N × `out_channels` × `output`, and the weights are
/// `out_channels` × `in_channels / group` × `kernel`, all row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Channels of x.
    pub in_channels: usize,
    /// Channels of y.
    pub out_channels: usize,
    /// Number of groups; channels of a group see that group's only.
    pub group: usize,
    /// Spatial extents of x.
    pub input: Vec<usize>,
    /// Spatial extents of y.
    pub output: Vec<usize>,
    /// Kernel extents.
    pub kernel: Vec<usize>,
    /// Strides.
    pub stride: Vec<usize>,
    /// Zeros added at each side.
    pub pad: Vec<usize>,
    /// Distances between kernel elements; 1 is dense.
    pub dilation: Vec<usize>,
}

/// How a convolution is computed; the results differ by rounding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// The micro-kernels.
    pub kernel: Kernel,
    /// Winograd's algorithm where it suits; see [`set_winograd`].
    pub winograd: bool,
}

impl Algorithm {
    /// What runs unless asked otherwise.
    pub fn active() -> Self {
        Algorithm { kernel: Kernel::active(), winograd: winograd_enabled() }
    }
}

/// Whether Winograd's algorithm is allowed: 0 not asked yet, 1 yes, 2 no.
static WINOGRAD: AtomicU8 = AtomicU8::new(0);

/// Allows or forbids Winograd's algorithm for 3 × 3 and 5 × 5 kernels at stride 1 in `f32`, from the next convolution on.
///
/// It is allowed unless the environment has `LGM_WINOGRAD=0`. Its results differ from those of direct convolution by
/// rounding, some 10⁻⁶ of their root mean square.
pub fn set_winograd(allowed: bool) {
    WINOGRAD.store(if allowed { 1 } else { 2 }, Ordering::Relaxed);
}

fn winograd_enabled() -> bool {
    match WINOGRAD.load(Ordering::Relaxed) {
        0 => {
            let allowed = std::env::var("LGM_WINOGRAD").map_or(true, |v| v != "0");
            set_winograd(allowed);
            allowed
        }
        state => state == 1,
    }
}

impl ConvGeometry {
    /// The geometry of a convolution of `input`, with `output` worked out as Caffe does:
    /// ⌊(input + 2·pad − (dilation·(kernel − 1) + 1)) / stride⌋ + 1 along each axis.
    ///
    /// # Errors
    /// When the lists differ in length, an extent that must be positive is zero, the groups do not divide the channels,
    /// or the kernel does not fit the padded input.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        group: usize,
        input: &[usize],
        kernel: &[usize],
        stride: &[usize],
        pad: &[usize],
        dilation: &[usize],
    ) -> Result<Self> {
        let axes = input.len();
        ensure!(
            [kernel, stride, pad, dilation].iter().all(|l| l.len() == axes),
            "a convolution over {axes} axes needs {axes} values each of kernel, stride, pad and dilation, found {}, {}, {} and {}",
            kernel.len(),
            stride.len(),
            pad.len(),
            dilation.len()
        );
        for (name, list) in [("kernel size", kernel), ("stride", stride), ("dilation", dilation)] {
            ensure!(list.iter().all(|&v| v > 0), "every {name} must be positive, found {list:?}");
        }
        ensure!(group > 0, "group must be positive");
        ensure!(
            in_channels.is_multiple_of(group) && out_channels.is_multiple_of(group),
            "group ({group}) must divide the input channels ({in_channels}) and the outputs ({out_channels})"
        );
        let mut output = Vec::with_capacity(axes);
        for i in 0..axes {
            let (padded, reach) = (input[i] + 2 * pad[i], dilation[i] * (kernel[i] - 1) + 1);
            ensure!(
                padded >= reach,
                "the kernel reaches over {reach} positions of axis {i}, but the input has {} with padding {} at each side",
                input[i],
                pad[i]
            );
            output.push((padded - reach) / stride[i] + 1);
        }
        Ok(ConvGeometry {
            in_channels,
            out_channels,
            group,
            input: input.to_vec(),
            output,
            kernel: kernel.to_vec(),
            stride: stride.to_vec(),
            pad: pad.to_vec(),
            dilation: dilation.to_vec(),
        })
    }

    /// Elements of one image of x.
    pub fn input_len(&self) -> usize {
        self.in_channels * self.input_area()
    }

    /// Elements of one image of y.
    pub fn output_len(&self) -> usize {
        self.out_channels * self.output_area()
    }

    /// Output positions of one image.
    pub fn output_area(&self) -> usize {
        lgm_core::count(&self.output)
    }

    /// Elements of the weights.
    pub fn weights_len(&self) -> usize {
        self.out_channels * self.patch_len()
    }

    /// Elements of a patch, the inner extent of the product: C/g · kernel.
    pub fn patch_len(&self) -> usize {
        self.in_channels / self.group * self.taps()
    }

    /// Multiply-adds of one pass over `batch` images, `usize::MAX` for any greater number.
    pub fn multiply_adds(&self, batch: usize) -> usize {
        let factors = [batch, self.out_channels, self.output_area(), self.in_channels / self.group, self.taps()];
        lgm_core::count(&factors)
    }

    fn is_depthwise(&self) -> bool {
        self.group > 1 && self.group == self.in_channels && self.group == self.out_channels
    }

    fn takes_winograd<T: Float>(&self, algorithm: Algorithm, plane: &Plane, batch: usize) -> bool {
        algorithm.winograd && winograd::suits::<T>(plane, self.out_channels / self.group, batch)
    }

    /// The two-dimensional form of one group, if there are at most two axes. Not where the kernel's elements or positions lie
    /// so far apart that most of what is between them is never read: windows would copy that too.
    fn plane(&self) -> Option<Plane> {
        let at = |list: &[usize], axis: usize, none: usize| match list.len() {
            1 if axis == 0 => Some(none),
            1 => Some(list[0]),
            2 => Some(list[axis]),
            _ => None,
        };
        let mut p = Plane {
            channels: self.in_channels / self.group,
            h: at(&self.input, 0, 1)?,
            w: at(&self.input, 1, 1)?,
            oh: at(&self.output, 0, 1)?,
            ow: at(&self.output, 1, 1)?,
            kh: at(&self.kernel, 0, 1)?,
            kw: at(&self.kernel, 1, 1)?,
            sh: at(&self.stride, 0, 1)?,
            sw: at(&self.stride, 1, 1)?,
            ph: at(&self.pad, 0, 0)? as isize,
            pw: at(&self.pad, 1, 0)? as isize,
            dh: at(&self.dilation, 0, 1)?,
            dw: at(&self.dilation, 1, 1)?,
        };
        if (p.kh, p.kw, p.sh, p.sw, p.ph, p.pw) == (1, 1, 1, 1, 0, 0) {
            // Pointwise: rows of the image follow one another without a seam.
            (p.w, p.h) = (p.w * p.h, 1);
            (p.ow, p.oh) = (p.w, 1);
        }
        (!p.is_sparse()).then_some(p)
    }

    /// y = w ∗ x, each output completed by `epilogue`, overwriting y.
    ///
    /// # Panics
    /// When a slice is shorter than `batch` images, the weights or the biases.
    pub fn forward<T: Float>(&self, batch: usize, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
        self.forward_with(Algorithm::active(), batch, x, w, epilogue, y);
    }

    /// [`forward`](Self::forward) by a given algorithm.
    pub fn forward_with<T: Float>(
        &self,
        algorithm: Algorithm,
        batch: usize,
        x: &[T],
        w: &[T],
        epilogue: Epilogue<'_, T>,
        y: &mut [T],
    ) {
        let x = &x[..batch * self.input_len()];
        let y = &mut y[..batch * self.output_len()];
        let w = &w[..self.weights_len()];
        let epilogue = Epilogue { bias: epilogue.bias.map(|b| &b[..self.out_channels]), ..epilogue };
        if x.is_empty() || y.is_empty() {
            return;
        }
        let micro = micro(algorithm.kernel);
        match self.plane() {
            Some(plane) if self.is_depthwise() => depthwise::forward(&plane, self.group, batch, x, w, epilogue, y),
            Some(plane) if self.takes_winograd::<T>(algorithm, &plane, batch) => {
                winograd::forward(micro, &plane, self.group, self.out_channels, batch, x, w, epilogue, y);
            }
            Some(plane) => forward::forward(micro, &plane, self.group, self.out_channels, batch, x, w, epilogue, y),
            None => nd::forward(self, algorithm, batch, x, w, epilogue, y),
        }
    }

    /// The gradient of x from that of y, overwriting dx. Also the forward pass of a deconvolution whose input is `dy`.
    ///
    /// # Panics
    /// When a slice is shorter than `batch` images or the weights.
    pub fn backward_data<T: Float>(&self, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
        self.backward_data_with(Algorithm::active(), batch, w, dy, dx);
    }

    /// [`backward_data`](Self::backward_data) by a given algorithm.
    pub fn backward_data_with<T: Float>(&self, algorithm: Algorithm, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
        let dx = &mut dx[..batch * self.input_len()];
        let dy = &dy[..batch * self.output_len()];
        let w = &w[..self.weights_len()];
        if dx.is_empty() || dy.is_empty() {
            return dx.fill(T::zero());
        }
        let micro = micro(algorithm.kernel);
        match self.plane() {
            Some(plane) if self.is_depthwise() => depthwise::backward_data(&plane, self.group, batch, w, dy, dx),
            Some(plane) if self.takes_winograd::<T>(algorithm, &plane, batch) => {
                winograd::backward_data(micro, &plane, self.group, self.out_channels, batch, w, dy, dx);
            }
            // As a convolution of dy there are products for every input position, else for every output position.
            Some(plane) if plane.sh == 1 && plane.sw == 1 && 4 * plane.area() <= 5 * plane.out_area() => {
                forward::backward_data(micro, &plane, self.group, self.out_channels, batch, w, dy, dx);
            }
            Some(plane) => data::backward_data(micro, &plane, self.group, self.out_channels, batch, w, dy, dx),
            None => nd::backward_data(self, algorithm, batch, w, dy, dx),
        }
    }

    /// Adds to dw the gradient of the weights, the images' contributions in a fixed order.
    ///
    /// # Panics
    /// When a slice is shorter than `batch` images or the weights.
    pub fn backward_weights<T: Float>(&self, batch: usize, x: &[T], dy: &[T], dw: &mut [T]) {
        self.backward_weights_with(Algorithm::active(), batch, x, dy, dw);
    }

    /// [`backward_weights`](Self::backward_weights) by a given algorithm.
    pub fn backward_weights_with<T: Float>(&self, algorithm: Algorithm, batch: usize, x: &[T], dy: &[T], dw: &mut [T]) {
        let x = &x[..batch * self.input_len()];
        let dy = &dy[..batch * self.output_len()];
        let dw = &mut dw[..self.weights_len()];
        if x.is_empty() || dy.is_empty() {
            return;
        }
        let micro = micro(algorithm.kernel);
        match self.plane() {
            Some(plane) if self.is_depthwise() => depthwise::backward_weights(&plane, self.group, batch, x, dy, dw),
            Some(plane) if self.takes_winograd::<T>(algorithm, &plane, batch) => {
                winograd::backward_weights(micro, &plane, self.group, self.out_channels, batch, x, dy, dw);
            }
            Some(plane) => weights::backward_weights(micro, &plane, self.group, self.out_channels, batch, x, dy, dw),
            None => nd::backward_weights(self, algorithm, batch, x, dy, dw),
        }
    }

    /// Adds to db, of `out_channels` elements, the sums of dy over images and positions.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn backward_bias<T: Float>(&self, batch: usize, dy: &[T], db: &mut [T]) {
        elementwise::sum_per_channel(dy, Axes3::new(batch, self.out_channels, self.output_area()), db);
    }
}
