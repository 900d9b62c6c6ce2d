//! Concat: bottoms laid end to end along one axis.
//!
//! Shapes: bottoms that agree on every axis but `axis` (or `concat_dim`, its older name, which counts from the outermost
//! axis only); one top, whose extent there is the sum of theirs. A single bottom shares its memory with the top.
//! Gradient: each bottom's part of the top's.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Float, Formats, Fwd, Host, HostLayer,
    Layer, Node, Offer, Plan, Result,
};
use lgm_proto::{ConcatParameter, LayerParameter};

use crate::common::rows::{Parts, axis_of, check_names};
use crate::common::view;

/// The layer; see the module.
pub struct Concat {
    param: ConcatParameter,
    /// The bottoms within the top.
    parts: Parts,
}

impl Concat {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.concat_param.unwrap_or_default();
        check_names(param.axis, param.concat_dim, "concat_dim")?;
        Node::compute(Concat { param, parts: Parts::default() })
    }
}

impl Layer for Concat {
    fn arity(&self) -> Arity {
        Arity::range(1..=usize::MAX, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let first = &bottoms[0].shape;
        let axis = axis_of(first, self.param.axis(), self.param.concat_dim, "concat_dim")?;
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
        self.parts = Parts::new(first, axis, bottoms.iter().map(|b| b.shape.count_from(axis)).collect());
        let extent = bottoms.iter().map(|b| b.shape[axis]).sum();
        Ok(Plan::new(vec![bottoms[0].with_shape(with(extent))]))
    }
}

impl HostLayer for Concat {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.parts.is_view() {
            return view::forward::<T>(io);
        }
        let bottoms = io.bottoms.iter().enumerate().map(|(i, _)| io.bottom::<T>(i)).collect::<Result<Vec<_>>>()?;
        self.parts.gather(io.top::<T>(0)?, &bottoms);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.parts.is_view() {
            return view::backward::<T>(io);
        }
        let dy = io.top_diff::<T>(0)?;
        for i in 0..self.parts.len() {
            if let Some(dx) = io.bottom_diff::<T>(i)? {
                self.parts.scatter(i, dx, dy);
            }
        }
        Ok(())
    }
}

impl DeviceLayer for Concat {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.parts.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        self.parts.store_as(plan.formats.top(0), &plan.tops[0].shape);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_view() {
            return view::forward_on(io);
        }
        let y = io.top(0)?;
        (0..self.parts.len()).try_for_each(|i| self.parts.copy_in(io.call, i, y, io.bottom(i)?))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_view() {
            return view::backward_on(io);
        }
        let dy = io.top_diff(0)?;
        for i in 0..self.parts.len() {
            if let Some(dx) = io.bottom_diff(i) {
                self.parts.copy_out(io.call, i, dx, dy)?;
            }
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
