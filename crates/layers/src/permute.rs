//! Permute: the axes in another order. y has axis `order[0]` of x first, `order[1]` second, …; axes that `order` leaves out
//! follow in their own order.
//!
//! Shapes: bottom [d₀, d₁, …]; top [d of order\[0\], d of order\[1\], …]. Gradient: dy with the axes back in place. Where
//! nothing moves, the top is a view of the bottom.
//!
//! Source: the layer of this name of SSD (Liu et al., 2016) and of the L-GM fork.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan,
    Result, Shape, ensure,
};
use lgm_proto::LayerParameter;

use crate::common::strided::Strided;
use crate::common::view;

/// The layer; see the module.
pub struct Permute {
    order: Vec<u32>,
    moves: Option<Moves>,
}

/// The top within the bottom, and the bottom within the top.
struct Moves {
    top: Strided,
    bottom: Strided,
}

impl Permute {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let order = param.permute_param.clone().unwrap_or_default().order;
        for (i, axis) in order.iter().enumerate() {
            ensure!(!order[..i].contains(axis), "order names axis {axis} twice");
        }
        Node::compute(Permute { order, moves: None })
    }
}

/// A blob whose axis i is axis `axes[i]` of one of shape `of`.
fn within(of: &Shape, axes: &[usize]) -> Strided {
    Strided::new(axes.iter().map(|&a| (of[a], of.count_from(a + 1))), 0)
}

impl Layer for Permute {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let mut axes: Vec<usize> = self.order.iter().map(|&axis| axis as usize).collect();
        if let Some(axis) = axes.iter().find(|&&axis| axis >= shape.len()) {
            ensure!(false, "order names axis {axis}, which the {}-axis bottom {shape} does not have", shape.len());
        }
        axes.extend((0..shape.len()).filter(|axis| !self.order.contains(&(*axis as u32))));
        let top = Shape::new(axes.iter().map(|&a| shape[a]));
        if axes.is_sorted() {
            return Ok(view::plan(&bottoms[0], top));
        }
        let mut back = vec![0; axes.len()];
        axes.iter().enumerate().for_each(|(i, &a)| back[a] = i);
        self.moves = Some(Moves { top: within(shape, &axes), bottom: within(&top, &back) });
        Ok(Plan::new(vec![bottoms[0].with_shape(top)]))
    }
}

impl HostLayer for Permute {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let Some(moves) = &self.moves else { return view::forward::<T>(io) };
        moves.top.gather(io.top::<T>(0)?, io.bottom::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Some(moves) = &self.moves else { return view::backward::<T>(io) };
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            moves.bottom.gather(dx, io.top_diff::<T>(0)?);
        }
        Ok(())
    }
}

impl DeviceLayer for Permute {
    fn is_supported(&self) -> bool {
        self.moves.as_ref().is_none_or(|moves| moves.top.is_supported() && moves.bottom.is_supported())
    }

    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Some(moves) = &self.moves else { return view::forward_on(io) };
        let y = io.top(0)?;
        moves.top.gather_on(io.call, y, io.bottom(0)?)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(moves) = &self.moves else { return view::backward_on(io) };
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        moves.bottom.gather_on(io.call, dx, io.top_diff(0)?)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(order: &[u32]) -> String {
        let order: String = order.iter().map(|axis| format!("order: {axis} ")).collect();
        format!("layer {{ name: 'p' type: 'Permute' bottom: 'x' top: 'y' permute_param {{ {order} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/fork_permute_0"),
                Case::golden("layers/fork_permute_1"),
                Case::new(layer(&[0, 3, 1, 2])).bottom([2, 3, 4, 5]),
                Case::new(layer(&[1, 0])).bottom([33, 65]),
                Case::new(layer(&[3, 2, 1, 0])).bottom([2, 3, 4, 3]),
                Case::new(layer(&[0, 2, 1])).bottom([3, 1, 4]),
                Case::new(layer(&[0, 1])).bottom([3, 2, 4]),
                Case::new(layer(&[])).bottom([3, 4]),
                // More axes than the kernels know: the host's part.
                Case::new(layer(&[6, 5, 4, 3, 2, 1, 0])).bottom([2, 2, 2, 2, 2, 2, 2]),
                Case::new(layer(&[2, 0, 1])).bottom([19, 40, 70]).without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(&[0, 2, 2]), &[[2, 3, 4].into()], &["order names axis 2 twice"]);
        config_error(&registry(), &layer(&[0, 3]), &[[2, 3, 4].into()], &["order names axis 3", "3-axis", "(2, 3, 4)"]);
    }
}
