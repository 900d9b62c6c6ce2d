//! Layers whose top is their bottom, on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Offer, Result, Run};

use super::Reshape;
use crate::flatten::Flatten;

/// Forward: a copy, unless the memory is shared.
pub(crate) fn forward_view(queue: &dyn DeviceQueue, mut io: Fwd<'_, Device>) -> Result<()> {
    let format = io.formats.top(0);
    let bytes = io.tops.first().and_then(Option::as_ref).map(|t| format.bytes(t.shape()));
    match (bytes, io.top_unless_view(0)) {
        (Some(bytes), Some(y)) => queue.copy(io.bottom(0)?, y, bytes),
        _ => Ok(()),
    }
}

/// Backward: likewise.
pub(crate) fn backward_view(queue: &dyn DeviceQueue, mut io: Bwd<'_, Device>) -> Result<()> {
    let dy = io.top_diffs.first().copied().flatten();
    let format = io.formats.top(0);
    match (dy, io.bottom_diff(0)) {
        (Some(dy), Some(dx)) => queue.copy(dy.addr(), dx, format.bytes(dy.shape())),
        _ => Ok(()),
    }
}

impl Run<Device> for Reshape {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), io: Fwd<'_, Device>) -> Result<()> {
        forward_view(queue, io)
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), io: Bwd<'_, Device>) -> Result<()> {
        backward_view(queue, io)
    }
}

impl Run<Device> for Flatten {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), io: Fwd<'_, Device>) -> Result<()> {
        forward_view(queue, io)
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), io: Bwd<'_, Device>) -> Result<()> {
        backward_view(queue, io)
    }
}
