//! Pooling on a device.

use lgm_core::{Arg, Bwd, Device, DeviceQueue, Format, Formats, Fwd, Layout, Offer, Plan, Result, Run, args, kernel};

use super::{Method, Pooling};
use crate::on_device::{extent, row_grid};

impl Pooling {
    /// Launches a kernel over planes of `area` elements; the geometry comes after its own arguments.
    fn launch(
        &self,
        queue: &dyn DeviceQueue,
        format: Format,
        kernel: &'static str,
        area: usize,
        own: &[Arg],
    ) -> Result<()> {
        let g = &self.geometry;
        let mut args = own.to_vec();
        let (rows, wide, channels) = match format.layout {
            Layout::ChannelsFirst => (self.planes, area, 0),
            Layout::ChannelsLast => (self.planes / self.channels.max(1) * area, self.channels, self.channels),
        };
        for n in [rows, wide, channels] {
            args.push(extent(n)?.into());
        }
        for pair in [g.input, g.output, g.kernel, g.stride, g.pad] {
            for n in pair {
                args.push(extent(n)?.into());
            }
        }
        queue.launch(kernel, row_grid(rows, wide), &args)
    }
}

impl Run<Device> for Pooling {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        if !self.index_top {
            return offer.follow();
        }
        // Indices are whole numbers that bf16 could not tell, in the order that their readers expect.
        let mut formats = offer.follow_channels_first();
        formats.tops[1] = Format::PLAIN;
        formats
    }

    fn prepare(&mut self, _queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        self.planes = plan.tops[0].shape.span(0..2);
        self.channels = plan.tops[0].shape[1];
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let format = io.formats.top(0);
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let area = self.geometry.output_area();
        match self.method {
            Method::Max => {
                let index = if self.index_top { Some(io.top(1)?) } else { io.saved(0) };
                self.launch(queue, format, kernel!(format.element, "pool_max_forward"), area, args![y, index, x])
            }
            Method::Average => {
                self.launch(queue, format, kernel!(format.element, "pool_average_forward"), area, args![y, x])
            }
            Method::Draw => {
                let args = args![y, io.saved(0), x, io.clock, self.stream];
                self.launch(queue, format, kernel!(format.element, "pool_draw_forward"), area, args)
            }
            Method::Expect => {
                self.launch(queue, format, kernel!(format.element, "pool_expect_forward"), area, args![y, x])
            }
        }
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let format = io.formats.top(0);
        let dy = io.top_diff(0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let area = self.geometry.input_area();
        match self.method {
            Method::Max | Method::Draw => {
                let index = if self.index_top { io.top(1)? } else { io.saved(0)? };
                self.launch(queue, format, kernel!(format.element, "pool_index_backward"), area, args![dx, dy, index])
            }
            Method::Average => {
                self.launch(queue, format, kernel!(format.element, "pool_average_backward"), area, args![dx, dy])
            }
            Method::Expect => self.launch(
                queue,
                format,
                kernel!(format.element, "pool_expect_backward"),
                area,
                args![dx, dy, io.bottom(0)?],
            ),
        }
    }
}
