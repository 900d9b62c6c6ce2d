//! HardSwish: y = x · min(max(x + 3, 0), 6) / 6.
//!
//! Gradient: dx = 0 for x ≤ −3, dy for x ≥ 3, dy · (2x + 3) / 6 between; backward reads the bottom. Shapes: one top like
//! the bottom. Source: Howard et al., "Searching for MobileNetV3" (2019); the layer of this name of forks that have it for
//! inference, without a gradient.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct HardSwish;

impl HardSwish {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        pointwise::node(HardSwish)
    }
}

/// Within −3 and 3.
#[inline(always)]
fn inner<T: Float>(x: T) -> T {
    let three = T::of(3.0);
    let x = if x > three { three } else { x };
    if x < -three { -three } else { x }
}

impl Pointwise for HardSwish {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        map.each(|x| x * (inner(x) + T::of(3.0)) * T::of(1.0 / 6.0));
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|x, dy| {
            let within = if x.abs() < T::of(3.0) { x } else { T::zero() };
            dy * (inner(x) + within + T::of(3.0)) * T::of(1.0 / 6.0)
        });
    }

    fn spec(&self) -> Spec {
        Spec::new(kernels!("hard_swish"), Reads::Bottom, 5)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = "layer { name: 'h' type: 'HardSwish' bottom: 'x' top: 'y' }";
        let kinked = |case: Case| case.kink(0, -3.0, 1e-3).kink(0, 3.0, 1e-3);
        check(
            &crate::tests::registry(),
            &[
                kinked(Case::new(layer).bottom_of([4, 9], Fill::Normal(0.0, 4.0))),
                kinked(Case::new(layer).bottom_of([5], Fill::Given(vec![-1e4, -2.9, 0.0, 2.9, 1e4]))),
            ],
        );
    }
}
