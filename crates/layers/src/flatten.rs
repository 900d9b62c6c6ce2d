//! Flatten: the axes from `axis` to `end_axis`, both included, become one.
//!
//! Shapes: one bottom; one top with as many elements, in the same order. Top and bottom share data and diff memory.
//! Gradient: the top's, unchanged.
//!
//! Source: Caffe's layer of this name. Caffe, given an `end_axis` before `axis`, makes an axis of extent 1; we refuse.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::{FlattenParameter, LayerParameter};

use crate::common::rearrange::{self, Order, Rearrange};

/// The layer; see the module.
pub struct Flatten {
    param: FlattenParameter,
}

impl Flatten {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        rearrange::node(Flatten { param: param.flatten_param.unwrap_or_default() })
    }
}

impl Rearrange for Flatten {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        let (start, end) = (shape.axis(self.param.axis())?, shape.axis(self.param.end_axis())?);
        ensure!(
            start <= end,
            "end_axis {} lies before axis {} in the bottom's shape {shape}",
            self.param.end_axis(),
            self.param.axis()
        );
        Ok((shape.splice(start..end + 1, [shape.span(start..end + 1)]), Order::Same))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'f' type: 'Flatten' bottom: 'x' top: 'y' flatten_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/flatten_0"),
                Case::new(layer("axis: 1 end_axis: 2")).bottom([2, 3, 2, 2]),
                Case::new(layer("axis: 0 end_axis: -2")).bottom([2, 3, 2]),
            ],
        );
    }

    #[test]
    fn extents() {
        for (param, want) in
            [("", &[2, 60][..]), ("axis: 2", &[2, 3, 20]), ("axis: -3 end_axis: -2", &[2, 12, 5]), ("axis: 0", &[120])]
        {
            let bottom = [2, 3, 4, 5].into();
            let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F32, &[bottom]).unwrap();
            assert_eq!(&*harness.plan.tops[0].shape, want);
        }
    }

    #[test]
    fn mistakes_are_named() {
        config_error(
            &registry(),
            &layer("axis: 2 end_axis: 1"),
            &[[2, 3, 4].into()],
            &["end_axis 1", "axis 2", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer("axis: 3"), &[[2, 3, 4].into()], &["axis 3", "out of range"]);
    }
}
