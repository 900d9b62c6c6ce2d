//! ELU: y = x for positive x, a · (eˣ − 1) elsewhere, with `alpha` a (1).
//!
//! Gradient: dx = dy for positive x, dy · (y + a) elsewhere. With a ≥ 0 the sign of y tells, so backward reads the top and
//! the layer runs in place; with a < 0 it reads the bottom, and a · eˣ stands for y + a.
//!
//! Shapes: one top like the bottom. Source: Clevert, Unterthiner and Hochreiter (2016); Caffe's layer of this name. Where
//! we differ: with a < 0 Caffe in place takes the wrong branch in backward; ours does not run in place then.

use lgm_core::{BuildCx, Float, Node, Result, ensure};
use lgm_cpu::math::{exp, exp_m1};
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Elu {
    alpha: f32,
}

impl Elu {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let alpha = param.elu_param.unwrap_or_default().alpha();
        ensure!(alpha.is_finite(), "alpha must be a finite number, found {alpha}");
        pointwise::node(Elu { alpha })
    }
}

impl Pointwise for Elu {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let alpha = T::of(self.alpha.into());
        map.each(|x| {
            let below = alpha * exp_m1(if x > T::zero() { T::zero() } else { x });
            if x > T::zero() { x } else { below }
        });
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let alpha = T::of(self.alpha.into());
        if self.alpha >= 0.0 {
            gradient.each(|y, dy| {
                let below = dy * (y + alpha);
                if y > T::zero() { dy } else { below }
            });
        } else {
            gradient.each(|x, dy| {
                let below = dy * alpha * exp(x);
                if x > T::zero() { dy } else { below }
            });
        }
    }

    fn spec(&self) -> Spec {
        let (kernels, reads) =
            if self.alpha >= 0.0 { (kernels!("elu"), Reads::Top) } else { (kernels!("elu_falling"), Reads::Bottom) };
        Spec { numbers: vec![self.alpha], ..Spec::new(kernels, reads, 4) }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn elu(alpha: f32) -> Case {
        Case::new(format!("layer {{ name: 'e' type: 'ELU' bottom: 'x' top: 'y' elu_param {{ alpha: {alpha} }} }}"))
    }

    #[test]
    fn cases() {
        let extremes = Fill::Given(vec![-1e4, -20.0, 1e-3, 1e4]);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/elu_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/elu_more_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/elu_more_1").kink(0, 0.0, 1e-3),
                elu(1.0).bottom([3, 4, 5]).kink(0, 0.0, 1e-3),
                elu(-0.7).bottom([3, 4, 5]).kink(0, 0.0, 1e-3),
                elu(1.5).bottom_of([4], extremes.clone()).kink(0, 1e-3, 1e-4),
                elu(-1.5).bottom_of([4], extremes).kink(0, 1e-3, 1e-4),
            ],
        );
    }

    #[test]
    fn alpha_must_be_finite() {
        let nan = "layer { name: 'e' type: 'ELU' bottom: 'x' top: 'y' elu_param { alpha: nan } }";
        config_error(&crate::tests::registry(), nan, &[[2].into()], &["alpha must be a finite number, found NaN"]);
    }
}
