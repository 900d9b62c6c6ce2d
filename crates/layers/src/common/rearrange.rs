//! Layers whose top has the elements of their bottom, in the same order or in another.

use lgm_core::{
    Arity, BlobSpec, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan, Result,
    Shape,
};

use super::strided::Strided;
use super::view;

/// Such a layer.
pub(crate) trait Rearrange: Send + 'static {
    /// The top's shape for a bottom of the given shape, and where its elements come from.
    ///
    /// # Errors
    /// When the layer's parameters do not fit the bottom.
    fn plan(&self, bottom: &Shape) -> Result<(Shape, Order)>;
}

/// The node of the layer.
pub(crate) fn node(layer: impl Rearrange) -> Result<Node> {
    Node::compute(Rearranged { layer, order: Order::Same })
}

/// The order of the top's elements.
#[derive(Debug)]
pub(crate) enum Order {
    /// That of the bottom, whose memory the top may share.
    Same,
    /// Another: the top's elements as they lie in the bottom, and the bottom's as they lie in the top.
    Other(Strided, Strided),
}

struct Rearranged<L> {
    layer: L,
    order: Order,
}

impl<L: Rearrange> Layer for Rearranged<L> {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        let (top, order) = self.layer.plan(&bottom.shape)?;
        self.order = order;
        Ok(match self.order {
            Order::Same => view::plan(bottom, top),
            Order::Other(..) => Plan::new(vec![bottom.with_shape(top)]),
        })
    }
}

impl<L: Rearrange> HostLayer for Rearranged<L> {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let Order::Other(top_in_bottom, _) = &self.order else { return view::forward::<T>(io) };
        top_in_bottom.gather(io.top::<T>(0)?, io.bottom::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Order::Other(_, bottom_in_top) = &self.order else { return view::backward::<T>(io) };
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            bottom_in_top.gather(dx, io.top_diff::<T>(0)?);
        }
        Ok(())
    }
}

impl<L: Rearrange> DeviceLayer for Rearranged<L> {
    fn is_supported(&self) -> bool {
        match &self.order {
            Order::Same => true,
            Order::Other(top_in_bottom, bottom_in_top) => top_in_bottom.is_supported() && bottom_in_top.is_supported(),
        }
    }

    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Order::Other(top_in_bottom, _) = &self.order else { return view::forward_on(io) };
        let y = io.top(0)?;
        top_in_bottom.gather_on(io.call, y, io.bottom(0)?)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Order::Other(_, bottom_in_top) = &self.order else { return view::backward_on(io) };
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        bottom_in_top.gather_on(io.call, dx, io.top_diff(0)?)
    }
}
