//! Dropout: y = x · m / (1 − r), with each m drawn 0 with probability r = `dropout_ratio`, else 1. In TEST, y = x.
//!
//! Fields of forks: with `scale_train` false (R-CNN's) y = x · m, and in TEST y = x · (1 − r); with `sample_weights_test` (SegNet's)
//! TEST draws as TRAIN does.
//!
//! Shapes: one bottom of any shape, one top like it. Gradient: dy times what x is, with the same m: element i of
//! forward pass b draws word i mod 4 of counter b · 2³² + ⌊i / 4⌋ of the layer's own stream, so backward draws it again
//! and nothing is kept.
//!
//! Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (2014); Caffe's layer
//! of this name, which keeps the mask. A ratio of 0 is allowed here, and drops nothing.

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Phase, Plan, Result, Step, ensure,
};
use lgm_cpu::{BLOCK, for_each_row};
use lgm_proto::LayerParameter;

use crate::common::view;

mod device;

/// The layer; see the module.
pub struct Dropout {
    /// Elements are dropped with this probability, and the others multiplied.
    ratio: f32,
    scale: f64,
    stream: u64,
    count: usize,
}

impl Dropout {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let p = param.dropout_param.unwrap_or_default();
        let ratio = p.dropout_ratio();
        ensure!((0.0..1.0).contains(&ratio), "dropout_ratio is {ratio}; it must be at least 0 and below 1");
        let stream = stream_id(param.name(), "dropout");
        let kept = 1.0 - f64::from(ratio);
        let (ratio, scale) = match (cx.phase == Phase::Train || p.sample_weights_test(), p.scale_train()) {
            (true, true) => (ratio, 1.0 / kept),
            (true, false) => (ratio, 1.0),
            (false, true) => (0.0, 1.0),
            (false, false) => (0.0, kept),
        };
        Node::compute(Dropout { ratio, scale, stream, count: 0 })
    }

    /// The top is the bottom.
    fn is_view(&self) -> bool {
        self.ratio == 0.0 && self.scale == 1.0
    }

    /// The least random word that keeps an element.
    fn least_kept(&self) -> u32 {
        (self.ratio as f64 * 2f64.powi(32)) as u32
    }

    /// Writes `from` (or `to` itself), dropped and scaled, to `to`.
    fn apply<T: Float>(&self, step: &Step, from: Option<&[T]>, to: &mut [T]) {
        let philox = Philox::new(step.seed, self.stream);
        let least_kept = self.least_kept();
        let scale = T::of(self.scale);
        for_each_row(to, BLOCK, |block, to| {
            let start = block * BLOCK;
            if let Some(from) = from {
                to.copy_from_slice(&from[start..][..to.len()]);
            }
            drop_some(&philox, (step.batch << 32) + (start / 4) as u64, least_kept, scale, to);
        });
    }
}

lgm_cpu::vectorized! {
    /// Scales the elements whose random word is at least `least_kept` and clears the others. Words are drawn from counter
    /// `first` on, four a counter.
    fn drop_some[T: Float](philox: &Philox, first: u64, least_kept: u32, scale: T, to: &mut [T]) {
        for (n, to) in to.chunks_mut(4 * 16).enumerate() {
            let words = philox.at_each::<16>(first + (n * 16) as u64);
            for (x, &word) in to.iter_mut().zip(words.as_flattened()) {
                *x = if word >= least_kept { *x * scale } else { T::zero() };
            }
        }
    }
}

impl Layer for Dropout {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        self.count = bottom.shape.count();
        Ok(if self.is_view() { view::plan(bottom, bottom.shape.clone()) } else { Plan::elementwise(bottom) })
    }
}

impl HostLayer for Dropout {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.is_view() {
            return view::forward::<T>(io);
        }
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        self.apply(io.call.step, x, y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.is_view() {
            return view::backward::<T>(io);
        }
        let dy = io.top_diff_unless_shared::<T>(0)?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.apply(io.call.step, dy, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::DType;
    use lgm_testkit::{Case, Harness, Inputs, check, config_error};

    fn layer(name: &str, param: &str) -> String {
        format!("layer {{ name: '{name}' type: 'Dropout' bottom: 'x' top: 'y' dropout_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::new(layer("d", "")).bottom([3, 7]),
                Case::new(layer("d", "dropout_ratio: 0.2")).bottom([2, 3, 5]),
                Case::new(layer("d", "dropout_ratio: 0")).bottom([5]),
                Case::new(layer("d", "")).test_phase().bottom([3, 4]),
                Case::new(layer("d", "scale_train: false")).bottom([3, 7]),
                Case::new(layer("d", "scale_train: false dropout_ratio: 0.3")).test_phase().bottom([3, 7]),
                Case::new(layer("d", "sample_weights_test: true")).test_phase().bottom([3, 7]),
            ],
        );
    }

    #[test]
    fn the_mask_has_its_ratio_and_changes_with_batch_seed_and_layer_only() {
        let n = 2 * BLOCK + 7;
        let mask = |name: &str, batch: u64, seed: u64| {
            let text = layer(name, "dropout_ratio: 0.3");
            let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[n].into()]).unwrap();
            let inputs = harness.forward_inputs(&[&vec![1.0; n]]).unwrap();
            let step = Step { seed, batch, ..inputs.step };
            harness.run(&Inputs { step, ..inputs }).unwrap().tops.remove(0)
        };
        let first = mask("d", 0, 1);
        let kept = first.iter().filter(|&&v| v != 0.0).count() as f64 / n as f64;
        assert!((kept - 0.7).abs() < 0.01, "{kept}");
        assert!(first.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.7).abs() < 1e-6));
        assert_eq!(first, mask("d", 0, 1));
        for other in [mask("e", 0, 1), mask("d", 1, 1), mask("d", 0, 2)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / n as f64;
            assert!(
                (same - 0.58).abs() < 0.02,
                "two independent masks agree on 0.3² + 0.7² of elements, these on {same}"
            );
        }
    }

    #[test]
    fn fields_of_forks_say_which_phase_scales_and_draws() {
        let values = |param: &str, phase: Phase| {
            let text = layer("d", &format!("dropout_ratio: 0.25 {param}"));
            let harness = Harness::new(&registry(), &text, phase, DType::F64, &[[400].into()]).unwrap();
            let mut found = harness.run(&harness.forward_inputs(&[&[3.0; 400]]).unwrap()).unwrap().tops.remove(0);
            found.sort_by(f64::total_cmp);
            found.dedup();
            found
        };
        assert_eq!(values("", Phase::Train), [0.0, 4.0]);
        assert_eq!(values("", Phase::Test), [3.0]);
        assert_eq!(values("scale_train: false", Phase::Train), [0.0, 3.0]);
        assert_eq!(values("scale_train: false", Phase::Test), [2.25]);
        assert_eq!(values("sample_weights_test: true", Phase::Test), [0.0, 4.0]);
    }

    #[test]
    fn a_dropped_value_leaves_nothing_behind() {
        let text = layer("d", "dropout_ratio: 0.5");
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[64].into()]).unwrap();
        let y = harness.run(&harness.forward_inputs(&[&[f64::INFINITY; 64]]).unwrap()).unwrap();
        assert!(y.tops[0].iter().all(|v| *v == 0.0 || *v == f64::INFINITY));
    }

    #[test]
    fn mistakes_are_named() {
        for ratio in ["1", "-0.1", "nan"] {
            let text = layer("d", &format!("dropout_ratio: {ratio}"));
            config_error(&registry(), &text, &[[4].into()], &["dropout_ratio", "below 1"]);
        }
    }
}
