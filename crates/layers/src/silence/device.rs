//! Silence on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Offer, Result, Run, ViewMut};

use super::Silence;

impl Run<Device> for Silence {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats { bottoms: offer.arriving.into(), ..Formats::default() }
    }

    fn forward(&self, _queue: &(dyn DeviceQueue + 'static), _io: Fwd<'_, Device>) -> Result<()> {
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), io: Bwd<'_, Device>) -> Result<()> {
        let formats = io.formats;
        let zero = |(i, dx): (usize, &Option<ViewMut<'_, Device>>)| match dx {
            Some(dx) => queue.zero(dx.addr(), formats.bottom(i).bytes(dx.shape())),
            None => Ok(()),
        };
        io.bottom_diffs.iter().enumerate().try_for_each(zero)
    }
}
