//! Scale: y = x · s, plus a learned b with `bias_term`; s and b are repeated along the axes they lack.
//!
//! Shapes: bottom x; s, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (ones if absent); b, the last parameter, has
//! the shape of s and is filled by `bias_filler` (zeros if absent); top like x.
//! Gradient: dx = dy · s; ds = Σ of dy · x, db = Σ of dy, over the axes that they lack.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result};
use lgm_proto::{LayerParameter, ScaleParameter};

use crate::common::broadcast::{Broadcast, learned_shape};
use crate::common::diff::diff_source;

mod device;

/// The layer; see the module.
pub struct Scale {
    param: ScaleParameter,
    learned: bool,
    along: Broadcast,
}

impl Scale {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.scale_param.clone().unwrap_or_default();
        Node::compute(Scale { param, learned: false, along: Broadcast::default() })
    }

    fn bias_index(&self) -> Option<usize> {
        self.param.bias_term().then_some(self.learned as usize)
    }
}

impl Layer for Scale {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (axis, num_axes) = (self.param.axis(), self.param.num_axes());
        let mut plan = Plan::elementwise(&bottoms[0]);
        self.learned = bottoms.len() == 1;
        let shape = if self.learned {
            let shape = learned_shape(&bottoms[0].shape, axis, num_axes)?;
            plan.params.push(match &self.param.filler {
                Some(filler) => ParamSpec::new(shape.clone(), Some(filler)),
                None => ParamSpec::constant(shape.clone(), 1.0),
            });
            plan.backward_bottoms = vec![0];
            shape
        } else {
            plan.backward_bottoms = vec![0, 1];
            bottoms[1].shape.clone()
        };
        self.along =
            Broadcast::new(&bottoms[0].shape, axis, &shape, if self.learned { "the scale" } else { "bottom 1" })?;
        if self.param.bias_term() {
            plan.params.push(ParamSpec::new(shape, self.param.bias_filler.as_ref()));
        }
        Ok(plan)
    }
}

impl HostLayer for Scale {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let s = if self.learned { io.param::<T>(0)? } else { io.bottom::<T>(1)? };
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let b = self.bias_index().map(|i| io.param::<T>(i)).transpose()?;
        self.along.scale_shift(x, s, b, y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        let dy = diff_source(own, dx.as_deref())?;
        let ds = if self.learned { io.param_diff::<T>(0)? } else { io.bottom_diff::<T>(1)? };
        if let Some(ds) = ds {
            let x = io.bottom::<T>(0)?;
            if !self.learned {
                ds.fill(T::zero());
            }
            self.along.add_sums(dy, Some(x), ds);
        }
        let db = self.bias_index().map(|i| io.param_diff::<T>(i)).transpose()?.flatten();
        if let Some(db) = db {
            self.along.add_sums(dy, None, db);
        }
        // Last, because dx may hold dy until then.
        if let Some(dx) = dx {
            let s = if self.learned { io.param::<T>(0)? } else { io.bottom::<T>(1)? };
            self.along.scale_shift(own, s, None, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 's' type: 'Scale' {bottoms} top: 'y' scale_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'x'";
    const TWO: &str = "bottom: 'x' bottom: 's'";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/scale_0"),
                Case::golden("layers/scale_1"),
                Case::golden("layers/scale_2"),
                Case::golden("layers/scale_two_bottoms"),
                Case::new(layer(ONE, "num_axes: 0 bias_term: true")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: -1")).bottom([3, 70]),
                Case::new(layer(ONE, "axis: 0 num_axes: 2 bias_term: true")).bottom([2, 3, 9]),
                Case::new(layer(TWO, "axis: 0 bias_term: true")).bottom([3, 2]).bottom([3]),
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
        assert_eq!(filled("bias_term: true"), [[1.0; 3], [0.0; 3]]);
        assert_eq!(filled("filler { value: 2 } bias_term: true bias_filler { value: 3 }"), [[2.0; 3], [3.0; 3]]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = Shape::from([2, 3, 4]);
        config_error(&registry(), &layer(ONE, "axis: -4"), std::slice::from_ref(&x), &["axis -4", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "num_axes: 3"),
            std::slice::from_ref(&x),
            &["num_axes 3", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(TWO, ""), &[x, [4].into()], &["bottom 1", "(2, 3, 4)", "(3)", "(4)"]);
    }
}
