//! Softmax along the channels of a blob, on a device; and where losses keep their probabilities: in their second top, else
//! in saved memory 0, else, in a net that runs no backward, in scratch 0.

use lgm_core::{Axes3, Device, DevicePtr, DeviceQueue, Float, Fwd, Grid, Host, Result, args};

use super::launch::{extent, row_grid};

/// Where forward of a loss puts its probabilities.
pub(crate) fn probabilities<'a, T: Float>(io: &mut Fwd<'a, Host>, in_top: bool) -> Result<&'a mut [T]> {
    if in_top {
        return io.top(1);
    }
    io.saved(0)?.map_or_else(|| io.scratch(0), Ok)
}

/// The same on a device.
pub(crate) fn probabilities_on(io: &mut Fwd<'_, Device>, in_top: bool) -> Result<DevicePtr> {
    if in_top {
        return io.top(1);
    }
    io.saved(0).map_or_else(|| io.scratch(0), Ok)
}

/// y = softmax(x); y may be x.
pub(crate) fn forward_on(axes: Axes3, queue: &dyn DeviceQueue, y: DevicePtr, x: DevicePtr) -> Result<()> {
    let Axes3 { outer, channels, inner } = axes;
    if axes.count() == 0 {
        return Ok(());
    }
    if inner == 1 {
        return queue.launch("softmax_rows_forward", rows(axes), args![y, x, extent(channels)?]);
    }
    let args = args![y, x, extent(outer)?, extent(channels)?, extent(inner)?];
    queue.launch("softmax_columns_forward", row_grid(outer, inner), args)
}

/// dx = y · (dy − Σ dy·y); dx may be dy.
pub(crate) fn backward_on(
    axes: Axes3,
    queue: &dyn DeviceQueue,
    dx: DevicePtr,
    dy: DevicePtr,
    y: DevicePtr,
) -> Result<()> {
    let Axes3 { outer, channels, inner } = axes;
    if axes.count() == 0 {
        return Ok(());
    }
    if inner == 1 {
        return queue.launch("softmax_rows_backward", rows(axes), args![dx, dy, y, extent(channels)?]);
    }
    let args = args![dx, dy, y, extent(outer)?, extent(channels)?, extent(inner)?];
    queue.launch("softmax_columns_backward", row_grid(outer, inner), args)
}

/// A block for each row, of as many warps as it can use.
fn rows(axes: Axes3) -> Grid {
    Grid::rows(axes.outer, (axes.channels.next_multiple_of(32) as u32).min(Grid::THREADS))
}
