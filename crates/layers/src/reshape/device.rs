//! Layers whose top is their bottom, on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Offer, Result};

use super::Reshape;
use crate::flatten::Flatten;

/// Forward: a copy, unless the memory is shared.
pub(crate) fn forward_view(mut io: Fwd<'_, Device>) -> Result<()> {
    let format = io.format();
    let bytes = io.tops.first().and_then(Option::as_ref).map(|t| format.bytes(t.shape()));
    match (bytes, io.top_unless_view(0)) {
        (Some(bytes), Some(y)) => io.queue().copy(io.bottom(0)?, y, bytes),
        _ => Ok(()),
    }
}

/// Backward: likewise.
pub(crate) fn backward_view(mut io: Bwd<'_, Device>) -> Result<()> {
    let dy = io.top_diffs.first().copied().flatten();
    let format = io.format();
    match (dy, io.bottom_diff(0)) {
        (Some(dy), Some(dx)) => io.queue().copy(dy.addr(), dx, format.bytes(dy.shape())),
        _ => Ok(()),
    }
}

impl DeviceLayer for Reshape {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, io: Fwd<'_, Device>) -> Result<()> {
        forward_view(io)
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        backward_view(io)
    }
}

impl DeviceLayer for Flatten {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, io: Fwd<'_, Device>) -> Result<()> {
        forward_view(io)
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        backward_view(io)
    }
}
