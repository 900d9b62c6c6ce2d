//! Power: y = (a·x + b)ᵖ, with `scale` a (1), `shift` b (0) and `power` p (1).
//!
//! Gradient: dx = dy · p·a · (a·x + b)ᵖ⁻¹. Where p·a = 0 the top is constant (1 for p = 0, else bᵖ) and the gradient 0,
//! whatever x is. Shapes: one top like the bottom. Linear and constant cases run in place; others read the bottom in
//! backward.
//!
//! Source: Caffe's layer of this name. Where we differ: Caffe divides the top by a·x + b for a power other than 1 and 2,
//! which is 0/0 where that is zero, and in place computes with a bottom already overwritten; ours does neither.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_cpu::math::Exponent;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Power {
    power: f32,
    scale: f32,
    shift: f32,
}

impl Power {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.power_param.unwrap_or_default();
        let (power, scale, shift) = (param.power(), param.scale(), param.shift());
        pointwise::finite([("power", power), ("scale", scale), ("shift", shift)])?;
        pointwise::node(Power { power, scale, shift })
    }

    fn numbers<T: Float>(&self) -> [T; 3] {
        [self.power, self.scale, self.shift].map(|v| T::of(v.into()))
    }
}

#[inline(always)]
fn cube<T: Float>(u: T) -> T {
    u * u * u
}

#[inline(always)]
fn three_quarters<T: Float>(u: T) -> T {
    let root = (u + T::zero()).sqrt();
    root * root.sqrt()
}

/// `body`, where `raise` is the function u ↦ uᵖ: of the usual exponents without a general power, which takes longer.
macro_rules! with_power {
    ($p:expr, |$raise:ident| $body:expr) => {{
        match $p {
            1.0 => with_power!(@ $raise, |u: T| u, $body),
            2.0 => with_power!(@ $raise, |u: T| u * u, $body),
            3.0 => with_power!(@ $raise, cube::<T>, $body),
            -1.0 => with_power!(@ $raise, |u: T| T::one() / u, $body),
            -2.0 => with_power!(@ $raise, |u: T| T::one() / (u * u), $body),
            // Of −0 as of 0.
            0.5 => with_power!(@ $raise, |u: T| (u + T::zero()).sqrt(), $body),
            -0.5 => with_power!(@ $raise, |u: T| T::one() / (u + T::zero()).sqrt(), $body),
            1.5 => with_power!(@ $raise, |u: T| u * (u + T::zero()).sqrt(), $body),
            -1.5 => with_power!(@ $raise, |u: T| cube(T::one() / (u + T::zero()).sqrt()), $body),
            0.25 => with_power!(@ $raise, |u: T| (u + T::zero()).sqrt().sqrt(), $body),
            -0.25 => with_power!(@ $raise, |u: T| T::one() / (u + T::zero()).sqrt().sqrt(), $body),
            0.75 => with_power!(@ $raise, three_quarters::<T>, $body),
            -0.75 => with_power!(@ $raise, |u: T| T::one() / three_quarters(u), $body),
            p => {
                let exponent = Exponent::new(p);
                with_power!(@ $raise, |u: T| exponent.raise(u), $body)
            }
        }
    }};
    (@ $raise:ident, $power:expr, $body:expr) => {{
        let $raise = $power;
        $body
    }};
}

impl Pointwise for Power {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let [_, a, b] = self.numbers::<T>();
        with_power!(f64::from(self.power), |raise| map.each(|x| raise(a * x + b)));
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let [p, a, b] = self.numbers::<T>();
        let slope = p * a;
        if self.power == 1.0 {
            return gradient.each(|_, dy| dy * slope);
        }
        with_power!(f64::from(self.power) - 1.0, |raise| gradient.each(|x, dy| dy * slope * raise(a * x + b)));
    }

    fn spec(&self) -> Spec {
        let numbers = vec![self.power, self.scale, self.shift];
        let spec = match self.power {
            1.0 => Spec::new(kernels!("power_linear"), Reads::Nothing, 2),
            _ => Spec::new(kernels!("power"), Reads::Bottom, 2),
        };
        Spec { numbers, ..spec }
    }

    fn constant<T: Float>(&self) -> Option<T> {
        let [p, _, b] = self.numbers::<T>();
        let constant = if self.power == 0.0 { T::one() } else { b.powf(p) };
        (self.power * self.scale == 0.0).then_some(constant)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn power(fields: &str) -> Case {
        Case::new(format!(r#"layer {{ name: "p" type: "Power" bottom: "x" top: "y" power_param {{ {fields} }} }}"#))
    }

    #[test]
    fn cases() {
        let positive = || Fill::Uniform(0.5, 2.0);
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
                power("power: -0.5 shift: 0.3").bottom_of([3, 4], positive()),
                power("power: 1.5 scale: 1.7").bottom_of([3, 4], positive()),
                power("power: 2.5").bottom_of([3, 4], positive()),
                power("power: 3 scale: -1 shift: 0.1").bottom([3, 4]),
                // Where scale · x + shift is zero, the gradient is too.
                power("power: 3").bottom_of([3], Fill::Given(vec![0.0, 1.0, -2.0])),
            ],
        );
    }

    #[test]
    fn numbers_must_be_finite() {
        let text = r#"layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { shift: inf } }"#;
        config_error(&crate::tests::registry(), text, &[[2].into()], &["shift must be a finite number"]);
    }
}
