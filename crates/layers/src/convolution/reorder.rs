//! Filters from one format to another: those of few taps, whose planes are too small for the transposes of blobs, in a kernel
//! of their own.

use lgm_core::{Axes3, DevicePtr, Element, Format, Grid, Layout, Result, args, kernel};

use super::direct::Own;
use super::geometry::filter_extents;
use crate::common::convert::convert;
use crate::common::launch::extent;

/// The most taps that the kernels take, and the channels that a block does: as in `kernels/convolution.cu`.
const TAPS: usize = 49;
const CHANNELS_PER_BLOCK: usize = 64;

impl Own<'_> {
    /// y = x, or y += x with `add`, from one format to another; x and y are filters of the convolution, or their gradients.
    pub fn reorder(&self, (y, to): (DevicePtr, Format), (x, from): (DevicePtr, Format), add: bool) -> Result<()> {
        let axes = filter_extents(self.conv);
        let Axes3 { outer: filters, channels, inner: taps } = axes;
        let few = (2..=TAPS).contains(&taps) && channels > 1;
        let grid = Grid {
            blocks: [extent(channels.div_ceil(CHANNELS_PER_BLOCK))?, filters.clamp(1, 65535) as u32, 1],
            threads: [CHANNELS_PER_BLOCK as u32, 4, 1],
        };
        let args = args![y, x, extent(filters)?, extent(channels)?, extent(taps)?];
        match (from.layout, to.layout) {
            (Layout::ChannelsFirst, Layout::ChannelsLast) if few && !add && from.element == Element::F32 => {
                self.queue.launch(kernel!(to.element, "conv_filters_last"), grid, args)
            }
            (Layout::ChannelsLast, Layout::ChannelsFirst) if few && add && to.element == Element::F32 => {
                self.queue.launch(kernel!(from.element, "conv_filters_add"), grid, args)
            }
            _ => convert(self.queue, (y, to), (x, from), axes, add),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check};

    /// More channels than a block takes and a part of one besides, filters of as many taps as the kernels take and of more.
    #[test]
    fn filters_of_many_channels_and_taps() {
        let layer = |param: &str| {
            let param = format!("convolution_param {{ num_output: 3 {param} }}");
            Case::new(format!("layer {{ name: 'c' type: 'Convolution' bottom: 'x' top: 'y' {param} }}"))
                .without_gradients()
        };
        check(
            &registry(),
            &[
                layer("kernel_size: 3 pad: 1").bottom([2, 64, 3, 3]),
                layer("kernel_size: 2").bottom([1, 130, 3, 3]),
                layer("kernel_size: 7 pad: 3").bottom([1, 5, 4, 4]),
                layer("kernel_size: 8 pad: 4").bottom([1, 5, 4, 4]),
                layer("kernel_size: 3").bottom([2, 1, 4, 4]),
                layer("kernel_size: 1").bottom([2, 5, 4, 4]),
                layer("kernel_size: 1 stride: 2").bottom([2, 5, 4, 4]),
            ],
        );
    }
}
