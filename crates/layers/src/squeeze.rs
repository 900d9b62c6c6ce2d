//! Squeeze: the bottom without its axes of extent 1: those that `axis` names, or all.
//!
//! Shapes: bottom [d₀, d₁, …]; top the same without them, a view of the bottom. Gradient: dy.
//! Source: the layer of this name of several forks.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::LayerParameter;

use crate::common::rearrange::{self, Order, Rearrange};

/// The layer; see the module.
pub struct Squeeze {
    axes: Vec<i32>,
}

impl Squeeze {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        rearrange::node(Squeeze { axes: param.squeeze_param.clone().unwrap_or_default().axis })
    }
}

impl Rearrange for Squeeze {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        let named = self.axes.iter().map(|&axis| shape.axis(axis)).collect::<Result<Vec<_>>>()?;
        for &axis in &named {
            ensure!(shape[axis] == 1, "axis {axis} of the bottom {shape} has extent {}, not 1", shape[axis]);
        }
        let goes = |axis: usize| shape[axis] == 1 && (named.is_empty() || named.contains(&axis));
        let top = Shape::new((0..shape.len()).filter(|&axis| !goes(axis)).map(|axis| shape[axis]));
        Ok((top, Order::Same))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 's' type: 'Squeeze' bottom: 'x' top: 'y' squeeze_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::new(layer("")).bottom([2, 1, 3, 1]),
                Case::new(layer("axis: -1")).bottom([2, 1, 3, 1]),
                Case::new(layer("")).bottom([1, 1]),
            ],
        );
        let top = |param: &str| {
            let shapes = [[2, 1, 3, 1].into()];
            let harness = Harness::new(&registry(), &layer(param), Phase::Test, DType::F32, &shapes).unwrap();
            harness.plan.tops[0].shape.clone()
        };
        assert_eq!([top(""), top("axis: 1")], [Shape::from([2, 3]), [2, 3, 1].into()]);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer("axis: 0"), &[[2, 1].into()], &["axis 0", "(2, 1)", "extent 2"]);
        config_error(&registry(), &layer("axis: 2"), &[[2, 1].into()], &["axis 2"]);
    }
}
