//! Convolution over any number of spatial axes: y = w ∗ x + b, and the gradients of x, w and b; that of x
//! is the transposed convolution too.
//!
//! Two spatial axes are the fast case. The forward pass is a matrix multiplication W·P, W being O/g × (C/g·Kh·Kw) and P the
//! patches of the input, one column for each output position of each image; P is never stored: each task packs the part
//! it is about to multiply straight into the panels of the micro-kernel ("implicit GEMM"). The gradient of the weights
//! is dY·Pᵀ in the same manner, and with stride 1 the gradient of the input is itself a convolution, of dY with the
//! kernel rotated half a turn. Strided input gradients scatter blocks of Wᵀ·dY. Kernels of 2 × 2, 3 × 3 and 5 × 5 at stride 1, and 4 × 4
//! ones at stride 2, go by Winograd's algorithm. With a kernel as large as the input, each pass
//! is one product for all images. Depthwise convolution has loops of its own, and more than two axes go through [`im2col_nd`].
//!
//! Every task is a block whose bounds follow from the shapes, and each sum is taken in a fixed order.

use std::sync::LazyLock;

use lgm_core::{Result, Window, ensure};
use smallvec::SmallVec;

use crate::kernel::{Kernel, Micro, micro};
use crate::{Float, Gemm, MatMut, MatRef};

mod data;
mod depthwise;
mod epilogue;
mod forward;
mod nd;
mod patches;
mod phases;
mod strided;
#[cfg(test)]
mod tests;
mod weights;
mod winograd;

pub use epilogue::Epilogue;
pub use nd::{col2im_nd, im2col_nd};
use patches::Plane;
use strided::Strided;

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
    /// The kernel along each spatial axis.
    pub windows: Vec<Window>,
}

/// A convolution in at most two dimensions: so many images, each of `groups` planes, and the micro-kernel for it.
#[derive(Clone, Copy)]
struct Planar<T: 'static> {
    micro: &'static Micro<T>,
    plane: Plane,
    groups: usize,
    /// Channels of y in a group: the rows of the product.
    rows: usize,
    batch: usize,
}

impl<T: Float> Planar<T> {
    /// The convolution of dy that is the gradient of x, with the kernel turned round; stride 1 only.
    fn adjoint(&self) -> Planar<T> {
        Planar { plane: self.plane.adjoint(self.rows), rows: self.plane.channels, ..*self }
    }

    /// Whether the kernel covers the whole input, once: then an image is a row of a matrix, and so is what comes of it.
    fn is_product(&self) -> bool {
        let covers = |w: &Window| w.output == 1 && w.kernel == w.input && w.pad == 0;
        self.groups == 1 && covers(&self.plane.rows) && covers(&self.plane.columns)
    }

    /// The weights of such a product: a row for each channel of y.
    fn weights<'a>(&self, w: &'a [T]) -> MatRef<'a, T> {
        MatRef::new(w, self.rows, self.plane.patch_len())
    }

    /// Its dense form, where that suits Winograd's algorithm and this may be used.
    fn strided(&self, algorithm: Algorithm) -> Option<Strided<T>> {
        algorithm.winograd.then(|| Strided::of(self)).flatten()
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.rows == 1 && self.plane.channels == 1
    }
}

/// How a convolution is computed; the results differ by rounding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// The micro-kernels.
    pub kernel: Kernel,
    /// Winograd's algorithm where it suits, in `f32`: 2 × 2, 3 × 3 and 5 × 5 kernels at stride 1, and 4 × 4 ones at stride 2.
    pub winograd: bool,
}

impl Algorithm {
    /// What runs unless asked otherwise.
    pub fn active() -> Self {
        Algorithm { kernel: Kernel::active(), winograd: winograd_enabled() }
    }
}

/// Whether Winograd's algorithm is allowed where it suits: unless the environment has
/// `LGM_WINOGRAD=0`. Its results differ from those of direct convolution by rounding, some 10⁻⁶ of their root mean square.
fn winograd_enabled() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| std::env::var("LGM_WINOGRAD").map_or(true, |v| v != "0"));
    *ENABLED
}

impl ConvGeometry {
    /// The geometry of a convolution with these windows along its spatial axes.
    ///
    /// # Errors
    /// When the groups do not divide the channels.
    pub fn new(in_channels: usize, out_channels: usize, group: usize, windows: Vec<Window>) -> Result<Self> {
        ensure!(group > 0, "group must be positive");
        ensure!(
            in_channels.is_multiple_of(group) && out_channels.is_multiple_of(group),
            "group ({group}) must divide the input channels ({in_channels}) and the outputs ({out_channels})"
        );
        Ok(ConvGeometry { in_channels, out_channels, group, windows })
    }

    /// The geometry whose input gradient is a transposed convolution of `in_channels` channels to `out_channels`; its
    /// windows run over the transposed convolution's output.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn transposed(in_channels: usize, out_channels: usize, group: usize, windows: Vec<Window>) -> Result<Self> {
        let geometry = Self::new(in_channels, out_channels, group, windows)?;
        Ok(ConvGeometry { in_channels: out_channels, out_channels: in_channels, ..geometry })
    }

    /// Elements of one image of x.
    pub fn input_len(&self) -> usize {
        self.in_channels * self.input_area()
    }

    /// Elements of one image of y.
    pub fn output_len(&self) -> usize {
        self.out_channels * self.output_area()
    }

    /// Input positions of one image.
    pub fn input_area(&self) -> usize {
        self.area(|w| w.input)
    }

    /// Output positions of one image.
    pub fn output_area(&self) -> usize {
        self.area(|w| w.output)
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

    /// The product of an extent of every axis.
    fn area(&self, extent: impl Fn(&Window) -> usize) -> usize {
        let extents: SmallVec<[usize; 6]> = self.windows.iter().map(extent).collect();
        lgm_core::count(&extents)
    }

    /// The convolution in two dimensions, if there are one or two axes. Not where the kernel's elements or positions are so
    /// far apart that most of what is between them is never read: patches would copy that too.
    fn planar<T: Float>(&self, algorithm: Algorithm, batch: usize) -> Option<Planar<T>> {
        let (mut rows, mut columns) = match self.windows[..] {
            [columns] => (Window::UNIT, columns),
            [rows, columns] => (rows, columns),
            _ => return None,
        };
        if [rows, columns].iter().all(Window::is_pointwise) {
            // Pointwise: rows of the image follow one another without a seam.
            let all = rows.input * columns.input;
            (rows, columns) = (Window::UNIT, Window { input: all, output: all, ..Window::UNIT });
        }
        let plane = Plane { channels: self.in_channels / self.group, rows, columns };
        let (micro, rows) = (micro(algorithm.kernel), self.out_channels / self.group);
        (!plane.is_sparse()).then_some(Planar { micro, plane, groups: self.group, rows, batch })
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
        match self.planar(algorithm, batch) {
            Some(conv) if conv.is_depthwise() => depthwise::forward(&conv, x, w, epilogue, y),
            Some(conv) if conv.is_product() => {
                let (a, b) = (MatRef::new(x, batch, conv.plane.patch_len()), conv.weights(w).t());
                let c = MatMut::new(y, batch, conv.rows);
                Gemm { alpha: T::one(), a, b, beta: T::zero(), c }.run_on(algorithm.kernel);
                epilogue.apply_to_images(y, conv.rows, 1);
            }
            Some(conv) if algorithm.winograd && winograd::suits(&conv) => winograd::forward(&conv, x, w, epilogue, y),
            Some(conv) => match conv.strided(algorithm) {
                Some(strided) => strided.forward(x, w, epilogue, y),
                None => forward::forward(&conv, x, w, epilogue, y),
            },
            None => nd::forward(self, algorithm, batch, x, w, epilogue, y),
        }
    }

    /// The gradient of x from that of y, overwriting dx.
    ///
    /// # Panics
    /// When a slice is shorter than `batch` images or the weights.
    pub fn backward_data<T: Float>(&self, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
        self.backward_data_with(Algorithm::active(), batch, w, dy, dx);
    }

    /// [`backward_data`](Self::backward_data) by a given algorithm.
    pub fn backward_data_with<T: Float>(&self, algorithm: Algorithm, batch: usize, w: &[T], dy: &[T], dx: &mut [T]) {
        self.forward_transposed_with(algorithm, batch, dy, w, Epilogue::default(), dx);
    }

    /// The transposed convolution of x, which has this one's output's shape, to y, which has its input's: what
    /// [`backward_data`](Self::backward_data) computes, each element completed by `epilogue`, overwriting y.
    ///
    /// # Panics
    /// When a slice is shorter than `batch` images, the weights or the biases, of which there are `in_channels`.
    pub fn forward_transposed<T: Float>(&self, batch: usize, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
        self.forward_transposed_with(Algorithm::active(), batch, x, w, epilogue, y);
    }

    /// [`forward_transposed`](Self::forward_transposed) by a given algorithm.
    pub fn forward_transposed_with<T: Float>(
        &self,
        algorithm: Algorithm,
        batch: usize,
        x: &[T],
        w: &[T],
        epilogue: Epilogue<'_, T>,
        y: &mut [T],
    ) {
        let y = &mut y[..batch * self.input_len()];
        let x = &x[..batch * self.output_len()];
        let w = &w[..self.weights_len()];
        let epilogue = Epilogue { bias: epilogue.bias.map(|b| &b[..self.in_channels]), ..epilogue };
        let complete = |y: &mut [T]| epilogue.apply_to_images(y, self.in_channels, self.input_area());
        if x.is_empty() || y.is_empty() {
            y.fill(T::zero());
            return complete(y);
        }
        match self.planar(algorithm, batch) {
            Some(conv) if conv.is_depthwise() => depthwise::backward_data(&conv, w, x, epilogue, y),
            Some(conv) if conv.is_product() => {
                let (a, b) = (MatRef::new(x, batch, conv.rows), conv.weights(w));
                let c = MatMut::new(y, batch, conv.plane.patch_len());
                Gemm { alpha: T::one(), a, b, beta: T::zero(), c }.run_on(algorithm.kernel);
                complete(y);
            }
            Some(conv) if algorithm.winograd && winograd::suits(&conv) => {
                if !winograd::backward_data(&conv, w, x, epilogue, y) {
                    complete(y);
                }
            }
            Some(conv) if forward::suits_backward_data(&conv.plane) => forward::backward_data(&conv, w, x, epilogue, y),
            Some(conv) => match conv.strided(algorithm) {
                Some(strided) => strided.backward_data(w, x, epilogue, y),
                None => data::backward_data(&conv, w, x, epilogue, y),
            },
            None => {
                nd::backward_data(self, algorithm, batch, w, x, y);
                complete(y);
            }
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
        match self.planar(algorithm, batch) {
            Some(conv) if conv.is_depthwise() => depthwise::backward_weights(&conv, x, dy, dw),
            Some(conv) if conv.is_product() => {
                let (a, b) = (MatRef::new(dy, batch, conv.rows).t(), MatRef::new(x, batch, conv.plane.patch_len()));
                let c = MatMut::new(dw, conv.rows, conv.plane.patch_len());
                Gemm { alpha: T::one(), a, b, beta: T::one(), c }.run_on(algorithm.kernel);
            }
            Some(conv) if algorithm.winograd && winograd::suits(&conv) => winograd::backward_weights(&conv, x, dy, dw),
            Some(conv) => match conv.strided(algorithm) {
                Some(strided) => strided.backward_weights(x, dy, dw),
                None => weights::backward_weights(&conv, x, dy, dw),
            },
            None => nd::backward_weights(self, algorithm, batch, x, dy, dw),
        }
    }
}
