//! Silence on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Offer, Result, ViewMut};

use super::Silence;

impl DeviceLayer for Silence {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats { bottoms: offer.arriving.into(), ..Formats::default() }
    }

    fn forward(&self, _io: Fwd<'_, Device>) -> Result<()> {
        Ok(())
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        let formats = io.call.formats;
        let zero = |(i, dx): (usize, &Option<ViewMut<'_, Device>>)| match dx {
            Some(dx) => io.queue().zero(dx.addr(), formats.bottom(i).bytes(dx.shape())),
            None => Ok(()),
        };
        io.bottom_diffs.iter().enumerate().try_for_each(zero)
    }
}
