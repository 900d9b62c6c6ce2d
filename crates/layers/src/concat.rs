//! Concat: bottoms laid end to end along one axis.
//!
//! Shapes: bottoms that agree on every axis but `axis` (or `concat_dim`, its older name, which counts from the outermost
//! axis only); one top, whose extent there is the sum of theirs. A single bottom shares its memory with the top.
//! Gradient: each bottom's part of the top's.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_proto::{ConcatParameter, LayerParameter};

use crate::common::rows::{gather, scatter};
use crate::common::view;

mod device;

/// The layer; see the module.
pub struct Concat {
    param: ConcatParameter,
    /// Elements that each bottom gives to one index of the axes before `axis`.
    parts: Vec<usize>,
    /// Indices of the axes before `axis`.
    rows: usize,
    axis: usize,
}

impl Concat {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.concat_param.unwrap_or_default();
        ensure!(
            param.axis.is_none() || param.concat_dim.is_none(),
            "both axis and concat_dim are given; they mean the same: keep axis"
        );
        Node::compute(Concat { param, parts: Vec::new(), rows: 0, axis: 0 })
    }
}

impl Layer for Concat {
    fn arity(&self) -> Arity {
        Arity::range(1..=usize::MAX, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let first = &bottoms[0].shape;
        let axis = match self.param.concat_dim {
            Some(dim) => {
                ensure!((dim as usize) < first.len(), "concat_dim {dim} is out of range for the shape {first}");
                dim as usize
            }
            None => first.axis(self.param.axis())?,
        };
        let with = |n: usize| first.splice(axis..axis + 1, [n]);
        for (i, bottom) in bottoms.iter().enumerate() {
            let agrees = bottom.shape.len() == first.len() && bottom.shape == with(bottom.shape[axis]);
            if !agrees {
                let what = format!("bottom {i} must agree with bottom 0 on every axis but {axis}");
                return Err(Error::Shape { what, expected: first.clone(), found: bottom.shape.clone() });
            }
        }
        if bottoms.len() == 1 {
            return Ok(view::plan(&bottoms[0], first.clone()));
        }
        (self.rows, self.axis) = (first.span(0..axis), axis);
        self.parts = bottoms.iter().map(|b| b.shape.count_from(axis)).collect();
        let extent = bottoms.iter().map(|b| b.shape[axis]).sum();
        Ok(Plan::new(vec![bottoms[0].with_shape(with(extent))]))
    }
}

impl HostLayer for Concat {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.parts.is_empty() {
            return view::forward::<T>(io);
        }
        let bottoms = io.bottoms.iter().enumerate().map(|(i, _)| io.bottom::<T>(i)).collect::<Result<Vec<_>>>()?;
        gather(io.top::<T>(0)?, &bottoms, &self.parts);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.parts.is_empty() {
            return view::backward::<T>(io);
        }
        let dy = io.top_diff::<T>(0)?;
        let mut start = 0;
        for (i, &len) in self.parts.iter().enumerate() {
            if let Some(dx) = io.bottom_diff::<T>(i)? {
                scatter(dx, dy, &self.parts, start);
            }
            start += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str, bottoms: &str) -> String {
        format!("layer {{ name: 'c' type: 'Concat' {bottoms} top: 'y' concat_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let two = "bottom: 'a' bottom: 'b'";
        check(
            &registry(),
            &[
                Case::golden("layers/concat_0"),
                Case::golden("layers/concat_1"),
                Case::new(layer("axis: -1", two)).bottom([2, 3]).bottom([2, 1]),
                Case::new(layer("concat_dim: 0", two)).bottom([1, 3]).bottom([2, 3]),
                Case::new(layer("", "bottom: 'a'")).bottom([2, 3]),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let two = |param| layer(param, "bottom: 'a' bottom: 'b'");
        let same = [[2, 3].into(), [2, 3].into()];
        config_error(&registry(), &two("axis: 2"), &same, &["axis 2", "out of range"]);
        config_error(&registry(), &two("concat_dim: 2"), &same, &["concat_dim 2"]);
        config_error(&registry(), &two("axis: 1 concat_dim: 1"), &same, &["axis and concat_dim"]);
        config_error(&registry(), &two(""), &[[2, 3].into(), [4, 3].into()], &["bottom 1", "(2, 3)", "(4, 3)"]);
        config_error(&registry(), &two(""), &[[2, 3].into(), [2, 3, 1].into()], &["(2, 3)", "(2, 3, 1)"]);
    }
}
