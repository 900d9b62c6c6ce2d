//! Permute: the axes in another order. y has axis `order[0]` of x first, `order[1]` second, …; axes that `order` leaves out
//! follow in their own order.
//!
//! Shapes: bottom [d₀, d₁, …]; top [d of order\[0\], d of order\[1\], …]. Gradient: dy with the axes back in place. Where
//! nothing moves, the top is a view of the bottom.
//!
//! Source: the layer of this name of SSD (Liu et al., 2016) and of the L-GM fork.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::LayerParameter;

use crate::common::rearrange::{self, Order, Rearrange};
use crate::common::strided::Strided;

/// The layer; see the module.
pub struct Permute {
    order: Vec<u32>,
}

impl Permute {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let order = param.permute_param.clone().unwrap_or_default().order;
        for (i, axis) in order.iter().enumerate() {
            ensure!(!order[..i].contains(axis), "order names axis {axis} twice");
        }
        rearrange::node(Permute { order })
    }
}

/// A blob whose axis i is axis `axes[i]` of one of shape `of`.
fn within(of: &Shape, axes: &[usize]) -> Strided {
    Strided::new(axes.iter().map(|&a| (of[a], of.count_from(a + 1))), 0)
}

impl Rearrange for Permute {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        let mut axes: Vec<usize> = self.order.iter().map(|&axis| axis as usize).collect();
        if let Some(axis) = axes.iter().find(|&&axis| axis >= shape.len()) {
            ensure!(false, "order names axis {axis}, which the {}-axis bottom {shape} does not have", shape.len());
        }
        axes.extend((0..shape.len()).filter(|axis| !self.order.contains(&(*axis as u32))));
        let top = Shape::new(axes.iter().map(|&a| shape[a]));
        if axes.is_sorted() {
            return Ok((top, Order::Same));
        }
        let mut back = vec![0; axes.len()];
        axes.iter().enumerate().for_each(|(i, &a)| back[a] = i);
        let order = Order::Other(within(shape, &axes), within(&top, &back));
        Ok((top, order))
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
