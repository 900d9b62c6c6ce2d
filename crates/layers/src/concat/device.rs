//! Concat on a device.

use lgm_core::{
    Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Element, Format, Formats, Fwd, Layout, Offer, Plan, Result,
    Shape, args, kernel,
};

use super::Concat;
use crate::on_device::{extent, row_grid};
use crate::reshape::device::{backward_view, forward_view};

/// Copies rows of `width` elements that are one pitch apart to where they are another apart.
pub(crate) fn copy_rows(
    queue: &dyn DeviceQueue,
    element: Element,
    (rows, width): (usize, usize),
    (to, to_pitch): (DevicePtr, usize),
    (from, from_pitch): (DevicePtr, usize),
) -> Result<()> {
    let args = args![to, from, extent(rows)?, extent(width)?, to_pitch as i64, from_pitch as i64];
    queue.launch(kernel!(element, "channels_copy"), row_grid(rows, width), args)
}

/// For each part of a row: where it starts, and its length.
pub(crate) fn spans(parts: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    parts.iter().scan(0, |start, &len| {
        *start += len;
        Some((*start - len, len))
    })
}

/// Every blob as the first comes; with its channels last only where it is they that are laid end to end.
pub(crate) fn formats(offer: &Offer<'_>, axis: usize) -> Formats {
    if axis == 1 { offer.follow() } else { offer.follow_channels_first() }
}

/// The rows of a launch, and the parts of each, for a blob in a format: with channels last, every position of an image is
/// a row.
pub(crate) fn rows_in(format: Format, whole: &Shape, rows: usize, parts: &[usize]) -> (usize, Vec<usize>) {
    match format.layout {
        Layout::ChannelsFirst => (rows, parts.to_vec()),
        Layout::ChannelsLast => {
            let inner = whole.count_from(2).max(1);
            (rows * inner, parts.iter().map(|part| part / inner).collect())
        }
    }
}

impl DeviceLayer for Concat {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        formats(offer, self.axis)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        (self.rows, self.parts) = rows_in(plan.formats.top(0), &plan.tops[0].shape, self.rows, &self.parts);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return forward_view(io);
        }
        let element = io.format().element;
        let (y, whole) = (io.top(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(
                io.queue(),
                element,
                (self.rows, len),
                (y.elements(start, element), whole),
                (io.bottom(i)?, len),
            )?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return backward_view(io);
        }
        let element = io.format().element;
        let (dy, whole) = (io.top_diff(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            if let Some(dx) = io.bottom_diff(i) {
                copy_rows(io.queue(), element, (self.rows, len), (dx, len), (dy.elements(start, element), whole))?;
            }
        }
        Ok(())
    }
}
