//! Pooling on a device.

use lgm_core::{
    Arg, Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, DeviceQueue, Format, Formats, Fwd, Grid, Kernel, Layout,
    Offer, Plan, Result, args, count, kernel,
};

use super::{Method, Pooling};
use crate::common::launch::{extent, row_grid, window_args};

/// How a kernel takes the blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// One element at a time.
    Single,
    /// With channels last, 16 bytes at a time: so many elements.
    Vectors(usize),
    /// Windows of 2 × 2 side by side: so many of a row.
    Pairs(usize),
}

/// The kernel for an access.
macro_rules! kernel_of {
    ($access:expr, $name:literal) => {
        match $access {
            Access::Single => kernel!($name),
            Access::Vectors(_) => Kernel { f32: concat!($name, "_packs"), bf16: concat!($name, "_packs_bf16") },
            Access::Pairs(_) => Kernel { f32: concat!($name, "_pairs"), bf16: concat!($name, "_pairs_bf16") },
        }
    };
}

/// The most elements of a window whose winner's place a byte holds, beside that there is none.
const MOST_SLOTS: usize = 255;

impl Pooling {
    /// Whether the places of winners are kept as bytes: kernels' slots.
    fn slots(&self) -> bool {
        matches!(self.method, Method::Max | Method::Draw)
            && !self.index_top
            && count(&self.geometry.windows.map(|w| w.kernel)) <= MOST_SLOTS
    }

    /// Whether each window is a whole plane.
    fn whole(&self) -> bool {
        self.geometry.windows.iter().all(|w| w.output == 1 && w.kernel == w.input && w.pad == 0)
    }

    /// How kernels may take blobs that are at these addresses.
    pub(super) fn access(&self, format: Format, blobs: &[DevicePtr]) -> Access {
        let (windows, vector) = (&self.geometry.windows, 16 / format.element.bytes());
        let by_two = windows.iter().all(|w| (w.kernel, w.stride, w.pad, w.pad_end) == (2, 2, 0, 0));
        let across = &windows[1];
        match format.layout {
            _ if blobs.iter().any(|at| !at.0.is_multiple_of(16)) => Access::Single,
            Layout::ChannelsLast if self.channels.is_multiple_of(vector) => Access::Vectors(vector),
            Layout::ChannelsFirst if by_two && across.input.is_multiple_of(2) => {
                let fits = |n: &usize| 2 * n <= vector && across.output.is_multiple_of(*n);
                Access::Pairs([4, 2].into_iter().find(fits).unwrap_or(1))
            }
            _ => Access::Single,
        }
    }

    /// Launches a kernel over planes of `area` elements; the geometry comes after its own arguments.
    fn launch(&self, call: DeviceCall<'_>, access: Access, kernel: Kernel, area: usize, own: &[Arg]) -> Result<()> {
        let mut args = own.to_vec();
        let (across, along) = match access {
            Access::Single => (1, 1),
            Access::Vectors(n) => (n, 1),
            Access::Pairs(n) => {
                args.push(extent(n)?.into());
                (1, n)
            }
        };
        let (rows, wide, channels) = match call.format().layout {
            Layout::ChannelsFirst => (self.planes, area / along, 0),
            Layout::ChannelsLast => (self.planes / self.channels.max(1) * area, self.channels / across, self.channels),
        };
        for n in [rows, wide, channels] {
            args.push(extent(n)?.into());
        }
        args.extend(window_args(&self.geometry.windows, false)?);
        for window in &self.geometry.windows {
            args.push(extent(window.pad_end.unsigned_abs())?.into());
        }
        args.push(u32::from(!self.geometry.padding_counts).into());
        call.launch(kernel, row_grid(rows, wide), &args)
    }

    /// As [`Pooling::launch`] over the cells of the planes: as many elements as a stride has, from each window's corner on.
    fn launch_cells(&self, call: DeviceCall<'_>, access: Access, kernel: Kernel, own: &[Arg]) -> Result<()> {
        let cells = self.geometry.windows.map(|w| w.input.saturating_add_signed(w.pad).div_ceil(w.stride));
        self.launch(call, access, kernel, count(&cells), own)
    }

    /// Launches a kernel of means of whole planes: of the top and the bottom, whatever direction.
    fn launch_whole(
        &self,
        call: DeviceCall<'_>,
        [first, last, vectors]: [Kernel; 3],
        blobs: [DevicePtr; 2],
    ) -> Result<()> {
        let area = self.geometry.input_area();
        let (to, from) = (blobs[0], blobs[1]);
        if call.format().layout == Layout::ChannelsFirst {
            let args = args![to, from, extent(self.planes)?, extent(area)?];
            return call.launch(first, Grid::elements(8 * self.planes), args);
        }
        let (kernel, vector) = match self.access(call.format(), &blobs) {
            Access::Vectors(n) => (vectors, n),
            _ => (last, 1),
        };
        let (images, across) = (self.planes / self.channels.max(1), self.channels / vector);
        let lanes = across.clamp(1, 32).next_power_of_two();
        let blocks = [extent(across.div_ceil(lanes).max(1))?, images.clamp(1, 65535) as u32, 1];
        let grid = Grid { blocks, threads: [Grid::THREADS, 1, 1] };
        let extents = [images, area, self.channels, lanes].map(extent);
        let [images, area, channels, lanes] = extents;
        call.launch(kernel, grid, args![to, from, images?, area?, channels?, lanes?])
    }
}

impl DeviceLayer for Pooling {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        if !self.index_top {
            return offer.follow();
        }
        // Indices are whole numbers that bf16 could not tell, in the order that their readers expect.
        let mut formats = offer.follow_channels_first();
        formats.tops[1] = Format::PLAIN;
        formats
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let top = &plan.tops[0];
        self.planes = top.shape.span(0..2);
        self.channels = top.shape[1];
        if self.slots() {
            plan.saved = vec![top.with_shape([top.shape.count().div_ceil(4)])];
        }
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let format = io.format();
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let area = self.geometry.output_area();
        match self.method {
            Method::Max if self.slots() => {
                let slots = io.saved(0);
                let access = self.access(format, &[x, y, slots.unwrap_or_default()]);
                let kernel = kernel_of!(access, "pool_winner_forward");
                self.launch(io.call, access, kernel, area, args![y, slots, x])
            }
            Method::Max => {
                let index = if self.index_top { Some(io.top(1)?) } else { io.saved(0) };
                self.launch(io.call, Access::Single, kernel!("pool_max_forward"), area, args![y, index, x])
            }
            Method::Average if self.whole() => {
                let kernels = [
                    kernel!("pool_whole_forward"),
                    kernel!("pool_whole_forward_last"),
                    kernel!("pool_whole_forward_packs"),
                ];
                self.launch_whole(io.call, kernels, [y, x])
            }
            Method::Average => {
                let access = self.access(format, &[x, y]);
                let kernel = kernel_of!(access, "pool_average_forward");
                self.launch(io.call, access, kernel, area, args![y, x])
            }
            Method::Draw => {
                let saved = io.saved(0);
                let (index, slots) = if self.slots() { (None, saved) } else { (saved, None) };
                let args = args![y, index, slots, x, io.call.clock, self.stream];
                self.launch(io.call, Access::Single, kernel!("pool_draw_forward"), area, args)
            }
            Method::Expect => self.launch(io.call, Access::Single, kernel!("pool_expect_forward"), area, args![y, x]),
        }
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let format = io.format();
        let dy = io.top_diff(0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let area = self.geometry.input_area();
        match self.method {
            Method::Max | Method::Draw if self.slots() => {
                let slots = io.saved(0)?;
                let access = self.access(format, &[dx, dy, slots]);
                let kernel = kernel_of!(access, "pool_winner_backward");
                self.launch_cells(io.call, access, kernel, args![dx, dy, slots])
            }
            Method::Max | Method::Draw => {
                let index = if self.index_top { io.top(1)? } else { io.saved(0)? };
                self.launch(io.call, Access::Single, kernel!("pool_index_backward"), area, args![dx, dy, index])
            }
            Method::Average if self.whole() => {
                let kernels = [
                    kernel!("pool_whole_backward"),
                    kernel!("pool_whole_backward_last"),
                    kernel!("pool_whole_backward_packs"),
                ];
                self.launch_whole(io.call, kernels, [dx, dy])
            }
            Method::Average => {
                let access = self.access(format, &[dx, dy]);
                let kernel = kernel_of!(access, "pool_average_backward");
                self.launch_cells(io.call, access, kernel, args![dx, dy])
            }
            Method::Expect => {
                let kernel = kernel!("pool_expect_backward");
                self.launch(io.call, Access::Single, kernel, area, args![dx, dy, io.bottom(0)?])
            }
        }
    }
}
