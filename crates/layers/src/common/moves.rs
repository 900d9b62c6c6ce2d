//! Layers whose top has the bottom's elements in another order.

use lgm_core::{Bwd, Device, Float, Fwd, Host, Result};

use super::strided::Strided;
use super::view;

/// Where each element comes from, and where it goes; nothing where they stay, and the top is a view of the bottom.
#[derive(Debug, Default)]
pub(crate) struct Moves(Option<[Strided; 2]>);

impl Moves {
    /// The top's elements as they lie in the bottom, and the bottom's as they lie in the top.
    pub fn new(top_in_bottom: Strided, bottom_in_top: Strided) -> Moves {
        Moves(Some([top_in_bottom, bottom_in_top]))
    }

    /// Whether the kernels can make them.
    pub fn is_supported(&self) -> bool {
        self.0.iter().flatten().all(Strided::is_supported)
    }

    /// Forward of the layer.
    ///
    /// # Errors
    /// When the call lacks a blob.
    pub fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let Some([top, _]) = &self.0 else { return view::forward::<T>(io) };
        top.gather(io.top::<T>(0)?, io.bottom::<T>(0)?);
        Ok(())
    }

    /// Backward of the layer.
    ///
    /// # Errors
    /// When the call lacks a blob.
    pub fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Some([_, bottom]) = &self.0 else { return view::backward::<T>(io) };
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            bottom.gather(dx, io.top_diff::<T>(0)?);
        }
        Ok(())
    }

    /// Forward on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn forward_on(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Some([top, _]) = &self.0 else { return view::forward_on(io) };
        let y = io.top(0)?;
        top.gather_on(io.call, y, io.bottom(0)?)
    }

    /// Backward on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn backward_on(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some([_, bottom]) = &self.0 else { return view::backward_on(io) };
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        bottom.gather_on(io.call, dx, io.top_diff(0)?)
    }
}

/// The halves of a layer that has its [`Moves`] as `self.moves`.
macro_rules! halves {
    ($layer:ty) => {
        impl lgm_core::HostLayer for $layer {
            fn forward<T: lgm_core::Float>(&self, io: lgm_core::Fwd<'_, lgm_core::Host>) -> Result<()> {
                self.moves.forward::<T>(io)
            }

            fn backward<T: lgm_core::Float>(&self, io: lgm_core::Bwd<'_, lgm_core::Host>) -> Result<()> {
                self.moves.backward::<T>(io)
            }
        }

        impl lgm_core::DeviceLayer for $layer {
            fn is_supported(&self) -> bool {
                self.moves.is_supported()
            }

            fn formats(&self, offer: &lgm_core::Offer<'_>) -> lgm_core::Formats {
                offer.follow_channels_first()
            }

            fn forward(&self, io: lgm_core::Fwd<'_, lgm_core::Device>) -> Result<()> {
                self.moves.forward_on(io)
            }

            fn backward(&self, io: lgm_core::Bwd<'_, lgm_core::Device>) -> Result<()> {
                self.moves.backward_on(io)
            }
        }
    };
}
pub(crate) use halves;
