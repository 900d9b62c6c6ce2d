//! Swish: y = x · σ(βx), with `beta` β (1) and σ(z) = 1 / (1 + e⁻ᶻ).
//!
//! Gradient: dx = dy · s · (1 + βx · (1 − s)), where s = σ(βx); backward reads the bottom. Shapes: one top like the bottom.
//!
//! Source: Ramachandran, Zoph and Le, "Searching for Activation Functions" (2017); Caffe's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result, ensure};
use lgm_cpu::math::sigmoid;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Swish {
    beta: f32,
}

impl Swish {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let beta = param.swish_param.unwrap_or_default().beta();
        ensure!(beta.is_finite(), "beta must be a finite number, found {beta}");
        pointwise::node(Swish { beta })
    }
}

impl Pointwise for Swish {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let beta = T::of(self.beta.into());
        map.each(|x| x * sigmoid(beta * x));
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let beta = T::of(self.beta.into());
        gradient.each(|x, dy| {
            let s = sigmoid(beta * x);
            dy * s * (T::one() + beta * x * (T::one() - s))
        });
    }

    fn spec(&self) -> Spec {
        Spec { numbers: vec![self.beta], ..Spec::new(kernels!("swish"), Reads::Bottom, 6) }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 's' type: 'Swish' bottom: 'x' top: 'y' swish_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let extremes = Fill::Given(vec![-1e4, -20.0, 0.0, 1e4]);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/swish_0"),
                Case::new(layer("beta: -1.7")).bottom_of([4, 5], Fill::Normal(0.0, 3.0)),
                Case::new(layer("")).bottom_of([4], extremes),
            ],
        );
    }

    #[test]
    fn beta_must_be_finite() {
        let nan = layer("beta: nan");
        config_error(&crate::tests::registry(), &nan, &[[2].into()], &["beta must be a finite number, found NaN"]);
    }
}
