//! Power: y = (a·x + b)ᵖ, with `scale` a (1), `shift` b (0) and `power` p (1).
//!
//! Gradient: dx = dy · p·a · (a·x + b)ᵖ⁻¹. Where p·a = 0 the top is constant (1 for p = 0, else bᵖ) and the gradient 0,
//! whatever x is. Shapes: one top like the bottom. Linear and constant cases run in place; others read the bottom in
//! backward.
//!
//! Source: Caffe's layer of this name. Where we differ: Caffe divides the top by a·x + b for a power other than 1 and 2,
//! which is 0/0 where that is zero, and in place computes with a bottom already overwritten; ours does neither.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::elementwise::map_into;
use lgm_proto::LayerParameter;

use crate::pointwise::map2;

mod device;

/// The layer; see the module.
pub struct Power {
    power: f32,
    scale: f32,
    shift: f32,
    count: usize,
}

impl Power {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.power_param.unwrap_or_default();
        let layer = Power { power: param.power(), scale: param.scale(), shift: param.shift(), count: 0 };
        for (name, value) in [("power", layer.power), ("scale", layer.scale), ("shift", layer.shift)] {
            ensure!(value.is_finite(), "{name} must be a finite number, found {value}");
        }
        Node::compute(layer)
    }

    fn is_constant(&self) -> bool {
        self.power * self.scale == 0.0
    }
}

impl Layer for Power {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.count = bottoms[0].shape.count();
        let mut plan = Plan { flops: 2 * bottoms[0].shape.count() as u64, ..Plan::elementwise(&bottoms[0]) };
        if !self.is_constant() && self.power != 1.0 {
            plan.backward_bottoms = vec![0];
            plan.share_data.clear();
        }
        Ok(plan)
    }
}

impl HostLayer for Power {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let [p, a, b] = [self.power, self.scale, self.shift].map(|v| T::of(v.into()));
        let (src, dst) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        if self.is_constant() {
            dst.fill(if self.power == 0.0 { T::one() } else { b.powf(p) });
        } else if self.power == 1.0 {
            map_into(src, dst, |x| a * x + b);
        } else if self.power == 2.0 {
            map_into(src, dst, |x| (a * x + b) * (a * x + b));
        } else {
            map_into(src, dst, |x| (a * x + b).powf(p));
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let [p, a, b] = [self.power, self.scale, self.shift].map(|v| T::of(v.into()));
        let dy = io.top_diff_unless_shared::<T>(0)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let slope = p * a;
        if self.is_constant() {
            dx.fill(T::zero());
        } else if self.power == 1.0 {
            map_into(dy, dx, |dy| dy * slope);
        } else if self.power == 2.0 {
            map2(io.bottom::<T>(0)?, dy, dx, |x, dy| dy * slope * (a * x + b));
        } else {
            let below = p - T::one();
            map2(io.bottom::<T>(0)?, dy, dx, |x, dy| dy * slope * (a * x + b).powf(below));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Draw, check, config_error};

    fn power(fields: &str) -> Case {
        Case::new(format!(r#"layer {{ name: "p" type: "Power" bottom: "x" top: "y" power_param {{ {fields} }} }}"#))
    }

    #[test]
    fn cases() {
        let positive = || Draw::Uniform(0.5, 2.0);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/power_0"),
                Case::golden("layers/power_1"),
                power("").bottom([3, 4]),
                power("scale: -2 shift: 0.5").bottom([3, 4]),
                power("power: 0").bottom([3, 4]),
                power("power: 3 scale: 0 shift: 2").bottom([3, 4]),
                power("power: 2 scale: 1.5").bottom([3, 4]),
                power("power: 2 shift: -1").bottom([3, 4]),
                power("power: 0.37 scale: 0.83").bottom_of([3, 4], positive()),
                power("power: -1.5 shift: 2.4").bottom_of([3, 4], positive()),
                power("power: 3 scale: -1 shift: 0.1").bottom([3, 4]),
                // Where scale · x + shift is zero, the gradient is too.
                power("power: 3").bottom_of([3], Draw::Given(vec![0.0, 1.0, -2.0])),
            ],
        );
    }

    #[test]
    fn numbers_must_be_finite() {
        let text = r#"layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { shift: inf } }"#;
        config_error(&crate::tests::registry(), text, &[[2].into()], &["shift must be a finite number"]);
    }
}
