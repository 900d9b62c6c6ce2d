//! Threshold: y = 1 where x is above `threshold` (0), else 0.
//!
//! No backward. Shapes: one top like the bottom; runs in place. Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result, ensure, kernel};
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec};

/// The layer; see the module.
pub struct Threshold {
    threshold: f32,
}

impl Threshold {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let threshold = param.threshold_param.unwrap_or_default().threshold();
        ensure!(!threshold.is_nan(), "threshold must be a number, found {threshold}");
        pointwise::node(Threshold { threshold })
    }
}

impl Pointwise for Threshold {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let threshold = T::of(self.threshold.into());
        map.each(|x| if x > threshold { T::one() } else { T::zero() });
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|_, _| T::zero());
    }

    fn spec(&self) -> Spec {
        let spec = Spec::new([kernel!("threshold_forward"); 2], Reads::Nothing, 1);
        Spec { numbers: vec![self.threshold], no_backward: true, ..spec }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 't' type: 'Threshold' bottom: 'x' top: 'y' threshold_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/threshold_0"),
                Case::golden("layers/threshold_more_0"),
                // What equals the threshold is not above it.
                Case::new(layer("threshold: 0.5")).bottom_of([3], Fill::Given(vec![0.5, 0.75, -1.0])),
                Case::new(layer("")).bottom([3, 37]),
            ],
        );
    }

    #[test]
    fn the_threshold_must_be_a_number() {
        let nan = layer("threshold: nan");
        config_error(&crate::tests::registry(), &nan, &[[2].into()], &["threshold must be a number, found NaN"]);
    }
}
