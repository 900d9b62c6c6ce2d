//! A convolution on a device: its geometry, its passes and what makes them.

use std::fmt;

use crate::{Element, Format, Layout, Shape, Window, count};

/// A convolution along N spatial axes, groups and dilation included; of two unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceConvolution<const N: usize = 2> {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// The windows along the spatial axes, outermost first: with two, along rows and along columns.
    pub windows: [Window; N],
    /// Groups of channels.
    pub groups: usize,
    /// How x, y and w and their gradients are stored; of w, the outputs count as images.
    pub format: Format,
}

impl<const N: usize> DeviceConvolution<N> {
    /// Elements of a channel of the input.
    pub fn input_area(&self) -> usize {
        count(&self.windows.map(|w| w.input))
    }

    /// Elements of a channel of the output.
    pub fn output_area(&self) -> usize {
        count(&self.windows.map(|w| w.output))
    }

    /// Elements of a channel of a filter.
    pub fn kernel_area(&self) -> usize {
        count(&self.windows.map(|w| w.kernel))
    }

    /// Multiply-adds of a pass, [`usize::MAX`] for any greater number.
    pub fn multiply_adds(&self) -> usize {
        let of_group = self.channels / self.groups.max(1);
        count(&[self.batch, self.outputs, self.output_area(), of_group, self.kernel_area()])
    }

    /// Whether the filters, stored as the blobs are, lie as the parameter does: in single precision, and axis by axis or
    /// of one tap or one channel, which lie the same in both orders.
    pub fn has_plain_filters(&self) -> bool {
        let first = self.format.layout == Layout::ChannelsFirst;
        self.format.element == Element::F32 && (first || self.kernel_area() == 1 || self.channels == self.groups)
    }
}

impl DeviceConvolution {
    /// The shapes of x, w and y.
    pub fn shapes(&self) -> [Shape; 3] {
        let blob = |outer, channels, extent: fn(Window) -> usize| {
            let [rows, columns] = self.windows.map(extent);
            Shape::from([outer, channels, rows, columns])
        };
        [
            blob(self.batch, self.channels, |w| w.input),
            blob(self.outputs, self.channels / self.groups.max(1), |w| w.kernel),
            blob(self.batch, self.outputs, |w| w.output),
        ]
    }
}

/// Which pass: forward, input gradient, filter gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvolutionPass {
    /// y from x and w.
    Forward,
    /// dx from dy and w.
    Data,
    /// dw from x and dy: added to what is there where that lies as the parameter does
    /// ([`DeviceConvolution::has_plain_filters`]); else written.
    Filter,
}

impl ConvolutionPass {
    /// All three.
    pub const ALL: [ConvolutionPass; 3] = [ConvolutionPass::Forward, ConvolutionPass::Data, ConvolutionPass::Filter];
}

impl fmt::Display for DeviceConvolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceConvolution { batch, channels, outputs, windows: [h, w], groups, format } = self;
        write!(f, "{batch} images of {channels} channels of {}x{} to {outputs} of ", h.input, w.input)?;
        write!(f, "{}x{}, kernel {}x{}, ", h.output, w.output, h.kernel, w.kernel)?;
        write!(f, "stride {}x{}, pad {}x{}, ", h.stride, w.stride, h.pad, w.pad)?;
        write!(f, "dilation {}x{}, groups {groups}, {format}", h.dilation, w.dilation)
    }
}

impl fmt::Display for ConvolutionPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConvolutionPass::Forward => "forward",
            ConvolutionPass::Data => "data",
            ConvolutionPass::Filter => "filter",
        })
    }
}

/// What makes a pass of a convolution on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// A library's convolution, by [`DeviceQueue::convolution`](crate::DeviceQueue::convolution).
    Library,
    /// A matrix multiplication of the blobs as they are, by [`DeviceQueue::gemm`](crate::DeviceQueue::gemm).
    Product,
    /// Our own kernels, a matrix multiplication of the patches that they gather among them.
    Own,
}

/// A pass of a convolution as a layer makes it on a device.
#[derive(Clone, Copy, Debug)]
pub struct PreparedConvolution {
    /// Which pass.
    pub pass: ConvolutionPass,
    /// What makes it.
    pub maker: Maker,
    /// Its geometry; none with three spatial axes, which no library is asked for.
    pub conv: Option<DeviceConvolution>,
}
