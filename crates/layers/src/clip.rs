//! Clip: y = x brought within `min` and `max`.
//!
//! Gradient: dx = dy where min ≤ x ≤ max, else 0; backward reads the bottom. Shapes: one top like the bottom. Source:
//! Caffe's layer of this name. Where we differ: a `min` above `max`, with which Caffe gives `min` for every x, is refused;
//! and what is not a number stays so, where Caffe gives `min`.

use lgm_core::{BuildCx, Error, Float, Node, Result, ensure};
use lgm_proto::{ClipParameter, LayerParameter};

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Clip {
    min: f32,
    max: f32,
}

impl Clip {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let clip = param.clip_param.as_ref();
        let ClipParameter { min, max } =
            *clip.ok_or_else(|| Error::config("clip_param is missing: it gives the bounds, min and max"))?;
        ensure!(min <= max, "min must not be above max, found min {min} and max {max}");
        pointwise::node(Clip { min, max })
    }

    fn bounds<T: Float>(&self) -> [T; 2] {
        [self.min, self.max].map(|v| T::of(v.into()))
    }
}

impl Pointwise for Clip {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let [min, max] = self.bounds::<T>();
        map.each(|x| {
            let x = if x > max { max } else { x };
            if x < min { min } else { x }
        });
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let [min, max] = self.bounds::<T>();
        // Both sides are compared whatever the first gives, or the compiler makes no vectors.
        gradient.each(|x, dy| if (x >= min) & (x <= max) { dy } else { T::zero() });
    }

    fn spec(&self) -> Spec {
        Spec { numbers: vec![self.min, self.max], ..Spec::new(kernels!("clip"), Reads::Bottom, 2) }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'c' type: 'Clip' bottom: 'x' top: 'y' {param} }}")
    }

    #[test]
    fn cases() {
        let golden = |name: &str, min: f64, max: f64| Case::golden(name).kink(0, min, 1e-3).kink(0, max, 1e-3);
        check(
            &crate::tests::registry(),
            &[
                golden("layers/clip_0", -0.5, 0.7),
                golden("layers/clip_more_0", -1.0, 0.0),
                golden("layers/clip_more_1", 0.1, 0.2),
                Case::new(layer("clip_param { min: 0 max: 0 }")).bottom([3, 4]).kink(0, 0.0, 1e-3),
                // Both bounds let the gradient through.
                Case::new(layer("clip_param { min: -1 max: 2 }"))
                    .bottom_of([5], Fill::Given(vec![-1.0, 2.0, 1.5, -7.0, 7.0]))
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |param: &str, needles: &[&str]| {
            config_error(&crate::tests::registry(), &layer(param), &[[2].into()], needles);
        };
        refused("", &["clip_param is missing", "min and max"]);
        refused("clip_param { min: 1 max: -1 }", &["found min 1 and max -1"]);
        refused("clip_param { min: nan max: 1 }", &["min NaN"]);
    }
}
