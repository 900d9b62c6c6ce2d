//! LRN on a device: across channels in whichever order they come, within them axis by axis.

use lgm_core::{Axes3, Bwd, Device, DeviceLayer, Formats, Fwd, Grid, Layout, Offer, Result, args, kernel};
use lgm_proto::lrn_parameter::NormRegion;

use super::Lrn;
use crate::common::launch::{extent, row_grid};

impl Lrn {
    /// α/n, with n the elements of a neighbourhood.
    fn factor(&self) -> f64 {
        let size = self.constants.size as f64;
        self.constants.alpha / if self.region == NormRegion::WithinChannel { size * size } else { size }
    }

    /// The grid of a kernel that goes over the blob by CHANNEL, and its last three arguments.
    fn rows(&self, layout: Layout) -> Result<(Grid, [u32; 3])> {
        let Axes3 { outer: n, channels, inner: area } = self.axes;
        let (rows, width, along) = match layout {
            Layout::ChannelsFirst => (n * channels, area, channels),
            Layout::ChannelsLast => (n * area, channels, 0),
        };
        Ok((row_grid(rows, width), [extent(rows)?, extent(width)?, extent(along)?]))
    }
}

impl DeviceLayer for Lrn {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        match self.region {
            NormRegion::AcrossChannels => offer.follow(),
            NormRegion::WithinChannel => offer.follow_channels_first(),
        }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let layout = io.format().layout;
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let s = match io.saved(0) {
            Some(saved) => saved,
            None => io.scratch(0)?,
        };
        let (size, factor) = (extent(self.constants.size)?, self.factor() as f32);
        let (k, beta) = (self.constants.k as f32, self.constants.beta as f32);
        let (grid, [rows, width, channels]) = self.rows(layout)?;
        match self.region {
            NormRegion::AcrossChannels => {
                let args = args![y, s, x, size, factor, k, beta, rows, width, channels];
                io.launch(kernel!("lrn_across_forward"), grid, args)
            }
            NormRegion::WithinChannel => {
                let (height, width) = (extent(self.plane.0)?, extent(self.plane.1)?);
                io.launch(kernel!("lrn_within_forward"), grid, args![y, s, x, size, factor, beta, rows, height, width])
            }
        }
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let layout = io.format().layout;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, y, s, dy, ratio) = (io.bottom(0)?, io.top(0)?, io.saved(0)?, io.top_diff(0)?, io.scratch(0)?);
        let beta = self.constants.beta;
        let (size, factor) = (extent(self.constants.size)?, (2.0 * beta * self.factor()) as f32);
        let count = self.axes.count();
        io.launch(kernel!("lrn_ratio"), Grid::elements(count), args![ratio, dy, y, s, count as i64])?;
        let (grid, [rows, width, channels]) = self.rows(layout)?;
        let beta = beta as f32;
        match self.region {
            NormRegion::AcrossChannels => {
                let args = args![dx, dy, x, s, ratio, size, factor, beta, rows, width, channels];
                io.launch(kernel!("lrn_across_backward"), grid, args)
            }
            NormRegion::WithinChannel => {
                let (height, width) = (extent(self.plane.0)?, extent(self.plane.1)?);
                let args = args![dx, dy, x, s, ratio, size, factor, beta, rows, height, width];
                io.launch(kernel!("lrn_within_backward"), grid, args)
            }
        }
    }
}
