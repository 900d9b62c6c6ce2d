//! A convolution on a device: its geometry, its passes and what makes them.

use std::fmt;

use crate::{Element, Format, Layout};

/// A two-dimensional convolution, groups and dilation included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceConvolution {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
    /// Padding on each side.
    pub pad: [usize; 2],
    /// Distance between a filter's taps.
    pub dilation: [usize; 2],
    /// Groups of channels.
    pub groups: usize,
    /// How x, y and w and their gradients are stored; of w, the outputs count as images.
    pub format: Format,
}

impl DeviceConvolution {
    /// Multiply-adds of a pass.
    pub fn multiply_adds(&self) -> usize {
        let taps = self.channels / self.groups.max(1) * self.kernel[0] * self.kernel[1];
        self.batch * self.outputs * self.output[0] * self.output[1] * taps
    }

    /// Whether the filters, stored as the blobs are, lie as the parameter does: in single precision, and axis by axis or
    /// of one tap or one channel, which lie the same in both orders.
    pub fn has_plain_filters(&self) -> bool {
        let first = self.format.layout == Layout::ChannelsFirst;
        self.format.element == Element::F32 && (first || self.kernel == [1, 1] || self.channels == self.groups)
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
        let by = |[h, w]: [usize; 2]| format!("{h}x{w}");
        let DeviceConvolution { batch, channels, outputs, groups, format, .. } = self;
        write!(f, "{batch} images of {channels} channels of {} to {outputs} of {}", by(self.input), by(self.output))?;
        write!(f, ", kernel {}, stride {}, pad {}", by(self.kernel), by(self.stride), by(self.pad))?;
        write!(f, ", dilation {}, groups {groups}, {format}", by(self.dilation))
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
