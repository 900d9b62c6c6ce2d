//! Exp: y = bᵃˣ⁺ˢ, with `base` b (e, for which −1 stands too), `scale` a (1) and `shift` s (0).
//!
//! Computed as bˢ · e^(a · ln b · x). Gradient: dx = dy · y · a · ln b; backward reads the top. Shapes: one top like the
//! bottom; runs in place. Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result, ensure};
use lgm_cpu::math;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels, log_of_base};

/// The layer; see the module.
pub struct Exp {
    /// a · ln b.
    inner: f64,
    /// bˢ.
    outer: f64,
}

impl Exp {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.exp_param.unwrap_or_default();
        let (base, log) = (param.base(), log_of_base(param.base())?);
        let [scale, shift] = pointwise::finite([("scale", param.scale()), ("shift", param.shift())])?;
        let (inner, outer) = (log * scale, (log * shift).exp());
        ensure!((outer as f32).is_finite(), "base {base} to the power of shift {shift} is no finite number");
        ensure!((inner as f32).is_finite(), "scale {scale} times the logarithm of base {base} is no finite number");
        pointwise::node(Exp { inner, outer })
    }
}

impl Pointwise for Exp {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let [inner, outer] = [self.inner, self.outer].map(T::of);
        map.each(|x| outer * math::exp(inner * x));
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let inner = T::of(self.inner);
        gradient.each(|y, dy| dy * (y * inner));
    }

    fn spec(&self) -> Spec {
        let numbers = vec![self.inner as f32, self.outer as f32];
        Spec { numbers, ..Spec::new(kernels!("exp"), Reads::Top, 3) }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'e' type: 'Exp' bottom: 'x' top: 'y' exp_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/exp_0"),
                Case::golden("layers/exp_1"),
                Case::golden("layers/exp_more_0"),
                Case::golden("layers/exp_more_1"),
                Case::golden("layers/exp_more_2"),
                Case::new(layer("base: 1 scale: 3")).bottom([3, 4]),
                Case::new(layer("scale: 0 shift: -1")).bottom([3, 4]),
                Case::new(layer("")).bottom_of([4], Fill::Given(vec![-1e4, -20.0, 0.0, 11.0])).precision(1e-5, 1e-6),
            ],
        );
    }

    #[test]
    fn numbers_that_give_none_are_refused() {
        let refused = |param: &str, needles: &[&str]| {
            config_error(&crate::tests::registry(), &layer(param), &[[2].into()], needles);
        };
        refused("base: 0", &["base must be a positive number", "-1", "found 0"]);
        refused("base: -2", &["base must be a positive number", "found -2"]);
        refused("base: inf", &["base must be a positive number", "found inf"]);
        refused("scale: nan", &["scale must be a finite number, found NaN"]);
        refused("base: 10 shift: 100", &["base 10", "shift 100"]);
        refused("base: 1e30 scale: 3e38", &["scale", "base"]);
    }
}
