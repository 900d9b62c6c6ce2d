//! Bias: y = x + b, with b repeated along the axes it lacks.
//!
//! Shapes: bottom x; b, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (zeros if absent); top like x, in its memory if
//! the net wants. Gradient: dx = dy; db = Σ of dy over the axes that b lacks.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Formats, Fwd, Host, HostLayer, Layer, Node,
    Offer, ParamSpec, Plan, Result,
};
use lgm_proto::{BiasParameter, LayerParameter};

use crate::common::broadcast::{Broadcast, learned_shape};
use crate::common::diff::diff_source;

/// The layer; see the module.
pub struct Bias {
    param: BiasParameter,
    learned: bool,
    along: Broadcast,
}

impl Bias {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.bias_param.clone().unwrap_or_default();
        Node::compute(Bias { param, learned: false, along: Broadcast::default() })
    }
}

impl Layer for Bias {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (axis, num_axes) = (self.param.axis(), self.param.num_axes());
        let mut plan = Plan::elementwise(&bottoms[0]);
        self.learned = bottoms.len() == 1;
        if self.learned {
            let shape = learned_shape(&bottoms[0].shape, axis, num_axes)?;
            self.along = Broadcast::new(&bottoms[0].shape, axis, &shape, "the bias")?;
            plan.params = vec![ParamSpec::new(shape, self.param.filler.as_ref())];
        } else {
            self.along = Broadcast::new(&bottoms[0].shape, axis, &bottoms[1].shape, "bottom 1")?;
        }
        Ok(plan)
    }
}

impl HostLayer for Bias {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let b = if self.learned { io.param::<T>(0)? } else { io.bottom::<T>(1)? };
        self.along.add(io.bottom_unless_shared::<T>(0)?, b, io.top::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        let db = if self.learned { io.param_diff::<T>(0)? } else { io.bottom_diff::<T>(1)? };
        if let Some(db) = db {
            let dy = diff_source(own, dx.as_deref())?;
            if !self.learned {
                db.fill(T::zero());
            }
            self.along.add_sums(dy, None, db);
        }
        if let (Some(dy), Some(dx)) = (own, dx) {
            dx.copy_from_slice(dy);
        }
        Ok(())
    }
}

impl DeviceLayer for Bias {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.along.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.along.by_channel(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let b = if self.learned { io.param(0)? } else { io.bottom(1)? };
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        self.along.by_channel(io.format()).affine(io.queue(), y, x, None, Some(b), false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.by_channel(io.format());
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        let db = if self.learned { io.param_diff(0) } else { io.bottom_diff(1) };
        if db.is_some() {
            along.add_sums(io.queue(), (dy, None), (None, db), self.learned, io.scratch(0)?)?;
        }
        match dx {
            Some(dx) if dx != dy => io.queue().copy(dy, dx, along.element.bytes() * along.axes.count()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 'b' type: 'Bias' {bottoms} top: 'y' bias_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'x'";
    const TWO: &str = "bottom: 'x' bottom: 'b'";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/bias_0"),
                Case::golden("layers/bias_two_bottoms"),
                Case::new(layer(ONE, "num_axes: 0")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: 0 num_axes: -1")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: -2 num_axes: 1")).bottom([2, 3, 11]),
                Case::new(layer(ONE, "axis: -1")).bottom([3, 70]),
                Case::new(layer(TWO, "axis: 0")).bottom([3, 2]).bottom([3]),
                Case::new(layer(TWO, "")).bottom([3, 2]).bottom(Shape::scalar()),
            ],
        );
    }

    #[test]
    fn fillers() {
        let filled = |param: &str| {
            Harness::new(&registry(), &layer(ONE, param), Phase::Train, DType::F32, &[[2, 3].into()])
                .unwrap()
                .filled()
                .unwrap()
        };
        assert_eq!(filled(""), [[0.0; 3]]);
        assert_eq!(filled("filler { value: 2 }"), [[2.0; 3]]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = Shape::from([2, 3, 4]);
        config_error(&registry(), &layer(ONE, "axis: 3"), std::slice::from_ref(&x), &["axis 3", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "axis: 2 num_axes: 2"),
            std::slice::from_ref(&x),
            &["num_axes 2", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(ONE, "num_axes: -2"), std::slice::from_ref(&x), &["num_axes is -2"]);
        let b = Shape::from([4, 3]);
        config_error(&registry(), &layer(TWO, ""), &[x.clone(), b], &["bottom 1", "(2, 3, 4)", "(3, 4)", "(4, 3)"]);
        config_error(&registry(), &layer(TWO, "axis: 2"), &[x, [4, 1].into()], &["bottom 1", "(4, 1)"]);
    }
}
