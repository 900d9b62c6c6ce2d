//! Reshape: the bottom's elements, in their order, under other extents.
//!
//! The axes from `axis` on, `num_axes` of them (−1: all), are replaced by the extents of `shape`. There, 0 stands for
//! the bottom's extent at the same place, and −1, once at most, for whatever extent keeps the number of elements. A
//! negative `axis` counts from behind the innermost axis: −1 inserts after the last.
//!
//! Shapes: one bottom of any shape; one top with as many elements. Top and bottom share data and diff memory.
//! Gradient: the top's, unchanged.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::{LayerParameter, ReshapeParameter};

use crate::common::rearrange::{self, Order, Rearrange};

/// The layer; see the module.
pub struct Reshape {
    param: ReshapeParameter,
}

impl Reshape {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        rearrange::node(Reshape { param: param.reshape_param.clone().unwrap_or_default() })
    }
}

impl Rearrange for Reshape {
    fn plan(&self, bottom: &Shape) -> Result<(Shape, Order)> {
        let (axis, num_axes) = (self.param.axis(), self.param.num_axes());
        let axes = bottom.len() as i64;
        let start = if axis < 0 { axis as i64 + axes + 1 } else { axis as i64 };
        ensure!((0..=axes).contains(&start), "axis {axis} is out of range for the {axes}-axis bottom {bottom}");
        ensure!(num_axes >= -1, "num_axes is {num_axes}; it must be at least 0, or -1 for all axes from axis on");
        let end = if num_axes == -1 { axes } else { start + num_axes as i64 };
        ensure!(end <= axes, "axis {axis} + num_axes {num_axes} goes past the {axes}-axis bottom {bottom}");
        let (start, end) = (start as usize, end as usize);

        let dims = self.param.shape.as_ref().map(|s| s.dim.as_slice()).unwrap_or_default();
        ensure!(dims.iter().all(|&d| d >= -1), "shape {dims:?} has an extent below -1");
        ensure!(dims.iter().filter(|&&d| d == -1).count() <= 1, "shape {dims:?} has more than one -1");
        let mut extents = Vec::with_capacity(dims.len());
        for (i, &dim) in dims.iter().enumerate() {
            extents.push(match dim {
                0 => *bottom.get(start + i).ok_or_else(|| {
                    let at = start + i;
                    lgm_core::Error::config(format!("shape {dims:?}: 0 copies axis {at}, which bottom {bottom} lacks"))
                })?,
                -1 => 1,
                _ => dim as usize,
            });
        }
        if let Some(inferred) = dims.iter().position(|&d| d == -1) {
            let rest = bottom.splice(start..end, extents.iter().copied()).count();
            ensure!(
                rest > 0 && bottom.count().is_multiple_of(rest),
                "bottom {bottom} has {} elements, which the other extents of shape {dims:?} ({rest} in all) do not divide",
                bottom.count()
            );
            extents[inferred] = bottom.count() / rest;
        }
        let top = bottom.splice(start..end, extents);
        ensure!(
            top.count() == bottom.count(),
            "bottom {bottom} with {} elements cannot become {top} with {}",
            bottom.count(),
            top.count()
        );
        Ok((top, Order::Same))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'r' type: 'Reshape' bottom: 'x' top: 'y' reshape_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let registry = registry();
        check(
            &registry,
            &[
                Case::golden("layers/reshape_0"),
                Case::golden("layers/reshape_axes"),
                Case::new(layer("shape { dim: 0 dim: -1 }")).bottom([2, 3, 4]),
            ],
        );
    }

    #[test]
    fn extents() {
        let harness = |param: &str, bottom: &[usize]| {
            Harness::new(&registry(), &layer(param), Phase::Train, DType::F32, &[bottom.into()])
                .map(|r| r.plan.tops[0].shape.clone())
        };
        let bottom = [2, 8, 3];
        for (param, want) in [
            ("shape { dim: 2 dim: 2 dim: 4 dim: 3 }", &[2, 2, 4, 3][..]),
            ("shape { dim: 0 dim: 2 dim: 4 dim: -1 }", &[2, 2, 4, 3]),
            ("shape { dim: 2 dim: 4 } axis: 1 num_axes: 1", &[2, 2, 4, 3]),
            ("shape { dim: 4 dim: -1 } axis: -2", &[2, 8, 4][..0]),
            ("shape { dim: 1 } axis: -1 num_axes: 0", &[2, 8, 3, 1]),
            ("shape { dim: 1 } axis: 0 num_axes: 0", &[1, 2, 8, 3]),
            ("shape { dim: -1 }", &[48]),
        ] {
            match want {
                [] => assert!(harness(param, &bottom).is_err(), "{param}"),
                _ => assert_eq!(&*harness(param, &bottom).unwrap(), want, "{param}"),
            }
        }
        assert_eq!(harness("", &[1, 1]).unwrap(), Shape::scalar());
    }

    #[test]
    fn mistakes_are_named() {
        for (param, needles) in [
            ("shape { dim: -1 dim: -1 }", &["more than one -1"][..]),
            ("shape { dim: -2 }", &["below -1"]),
            ("shape { dim: 5 dim: -1 }", &["(2, 3, 4)", "do not divide"]),
            ("shape { dim: 5 }", &["(2, 3, 4)", "(5)", "24"]),
            ("shape { dim: 2 dim: 3 dim: 4 dim: 0 }", &["axis 3", "lacks"]),
            ("axis: 4 shape { dim: 1 }", &["axis 4", "out of range"]),
            ("axis: 2 num_axes: 2 shape { dim: 4 }", &["num_axes 2", "past"]),
            ("num_axes: -2 shape { dim: 24 }", &["num_axes is -2"]),
        ] {
            config_error(&registry(), &layer(param), &[[2, 3, 4].into()], needles);
        }
    }
}
