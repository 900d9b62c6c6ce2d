//! Sums of rows on a device, in parts whose number follows from the shape.

use lgm_core::{DevicePtr, DeviceQueue, Grid, Result, args};

use super::launch::extent;

/// What is summed, as the kernels number it.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// x.
    Sum = 0,
    /// ∣x∣.
    Absolute = 1,
    /// x².
    Squares = 2,
}

/// Parts that each of `rows` rows of `width` elements is summed in.
pub(crate) fn parts(rows: usize, width: usize) -> usize {
    1024usize.div_ceil(rows.max(1)).min(width.div_ceil(4096)).max(1)
}

/// y = coeff · Σ of each row of x − b; `partial` is scratch for a number of each part.
pub(crate) fn sum_rows(
    queue: &dyn DeviceQueue,
    operation: Operation,
    (x, b): (DevicePtr, Option<DevicePtr>),
    y: DevicePtr,
    coeff: f32,
    (rows, width): (usize, usize),
    partial: DevicePtr,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let parts = parts(rows, width);
    let grid = Grid { blocks: [extent(rows)?, parts as u32, 1], threads: [threads(width), 1, 1] };
    queue.launch("reduction_partials", grid, args![partial, x, b, operation as i32, width as i64])?;
    queue.launch("reduction_finish", Grid::elements(rows), args![y, partial, parts as u32, coeff, extent(rows)?])
}

/// Threads for a row: as many warps as it can use.
pub(crate) fn threads(width: usize) -> u32 {
    width.max(1).next_multiple_of(32).min(Grid::THREADS as usize) as u32
}
