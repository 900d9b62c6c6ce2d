//! Concat on a device.

use lgm_core::{Bwd, Device, DevicePtr, DeviceQueue, Fwd, Result, Run, args};

use super::Concat;
use crate::on_device::{extent, row_grid};
use crate::reshape::device::{backward_view, forward_view};

/// Copies rows of `width` elements that are one pitch apart to where they are another apart.
pub(crate) fn copy_rows(
    queue: &dyn DeviceQueue,
    rows: usize,
    width: usize,
    (to, to_pitch): (DevicePtr, usize),
    (from, from_pitch): (DevicePtr, usize),
) -> Result<()> {
    let args = args![to, from, extent(rows)?, extent(width)?, to_pitch as i64, from_pitch as i64];
    queue.launch("channels_copy", row_grid(rows, width), args)
}

/// For each part of a row: where it starts, and its length.
pub(crate) fn spans(parts: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    parts.iter().scan(0, |start, &len| {
        *start += len;
        Some((*start - len, len))
    })
}

impl Run<Device> for Concat {
    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return forward_view(queue, io);
        }
        let (y, whole) = (io.top(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(queue, self.rows, len, (y.floats(start), whole), (io.bottom(i)?, len))?;
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return backward_view(queue, io);
        }
        let (dy, whole) = (io.top_diff(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            if let Some(dx) = io.bottom_diff(i) {
                copy_rows(queue, self.rows, len, (dx, len), (dy.floats(start), whole))?;
            }
        }
        Ok(())
    }
}
