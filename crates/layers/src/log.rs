//! Log: y = log_b(a·x + s), with `base` b (e, for which −1 stands too), `scale` a (1) and `shift` s (0).
//!
//! Gradient: dx = dy · a / (ln b · (a·x + s)); backward reads the bottom. Shapes: one top like the bottom. The logarithm
//! of 0 is −∞, that of a negative number none.
//!
//! Source: Caffe's layer of this name. Where we differ: Caffe in place takes the gradient at the top's values; ours keeps
//! the bottom for backward.

use lgm_core::{BuildCx, Float, Node, Result, ensure};
use lgm_cpu::math;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels, log_of_base};

/// The layer; see the module.
pub struct Log {
    /// 1 / ln b.
    unit: f64,
    scale: f64,
    shift: f64,
}

impl Log {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.log_param.unwrap_or_default();
        let log = log_of_base(param.base())?;
        ensure!(log != 0.0, "base must not be 1: no power of 1 is another number");
        let [scale, shift] = pointwise::finite([("scale", param.scale()), ("shift", param.shift())])?;
        ensure!(scale != 0.0 || shift > 0.0, "with scale 0, shift must be positive to have a logarithm, found {shift}");
        pointwise::node(Log { unit: 1.0 / log, scale, shift })
    }

    fn numbers<T: Float>(&self) -> [T; 3] {
        [self.unit, self.scale, self.shift].map(T::of)
    }
}

impl Pointwise for Log {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let [unit, scale, shift] = self.numbers::<T>();
        map.each(|x| unit * math::ln(scale * x + shift));
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let [unit, scale, shift] = self.numbers::<T>();
        let slope = unit * scale;
        gradient.each(|x, dy| dy * slope / (scale * x + shift));
    }

    fn spec(&self) -> Spec {
        let numbers = self.numbers::<f32>().to_vec();
        Spec { numbers, ..Spec::new(kernels!("log"), Reads::Bottom, 4) }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'l' type: 'Log' bottom: 'x' top: 'y' log_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/log_0"),
                Case::golden("layers/log_more_0"),
                Case::golden("layers/log_more_1"),
                Case::new(layer("base: 0.5 scale: -2 shift: 0.5")).bottom_of([3, 4], Fill::Uniform(-2.0, 0.0)),
                Case::new(layer("scale: 0 shift: 2")).bottom([3, 4]),
                Case::new(layer("")).bottom_of([3], Fill::Given(vec![1e-3, 1.0, 1e30])).without_gradients(),
            ],
        );
    }

    #[test]
    fn numbers_without_a_logarithm_are_refused() {
        let refused = |param: &str, needles: &[&str]| {
            config_error(&crate::tests::registry(), &layer(param), &[[2].into()], needles);
        };
        refused("base: -3", &["base must be a positive number", "found -3"]);
        refused("base: 1", &["base must not be 1"]);
        refused("shift: inf", &["shift must be a finite number"]);
        refused("scale: 0 shift: -1", &["scale 0", "found -1"]);
    }
}
