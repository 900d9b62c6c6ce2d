//! BatchNorm: each channel less its mean, over its standard deviation; no learned factor (Scale, after it, has that).
//!
//! y = (x − μ) / √(σ² + ε) with `eps` ε. With `use_global_stats` false (the default in TRAIN), μ and σ² are the mean and
//! biased variance of the channel in this batch, over its m values; forward then also moves the running sums
//!
//! M ← f · M + μ, V ← f · V + m/(m−1) · σ² (σ² if m is 1), w ← f · w + 1, f being `moving_average_fraction`.
//!
//! With `use_global_stats` true (the default in TEST), μ = M/w and σ² = V/w (0 if w is 0), and forward leaves them alone.
//!
//! Shapes: bottom `[N, C, …]`, top like it, in its memory if the net wants; a bottom of one axis is one channel. Parameters:
//! M `[C]`, V `[C]`, w `[1]`, all zero at the start and never learned: a `param` entry with a rate for them is refused.
//! Gradient: dx = (dy − Σdy/m − y · Σ(dy·y)/m) / √(σ² + ε), sums over the channel; dy / √(σ² + ε) with global statistics.
//! Backward reads the top and the kept 1/√(σ² + ε), so the bottom's memory is free.
//!
//! With `scale_bias`, or a `scale_filler` or `bias_filler`, the layer has a Scale of its own, as NVIDIA's fork of Caffe: y · γ + β,
//! with parameters γ `[C]`, from `scale_filler` (1), and β `[C]`, from `bias_filler` (0), after the others. A `param` entry's rate for
//! M, V or w then counts for nothing, as there, with a warning. (That fork keeps running averages where Caffe has sums; files of
//! either are read, and its files of before 2017, whose order is another.)
//!
//! Source: Ioffe and Szegedy, "Batch Normalization" (2015); Caffe's layer of this name, which keeps its own copy of y.

use lgm_core::{Arity, Axes3, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result};
use lgm_cpu::batchnorm::{self, Normalization, Normalized};
use lgm_proto::LayerParameter;

use statistics::{Statistics, axes};

mod bn;
mod device;
mod fused;
mod launch;
mod statistics;

pub(crate) use bn::Bn;
pub(crate) use fused::FusedBatchNorm;
#[cfg(test)]
pub(crate) use fused::tests::of_kind;

/// The layer; see the module.
pub struct BatchNorm {
    statistics: Statistics,
    axes: Axes3,
}

impl BatchNorm {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        if fused::has_own_scale(param) {
            return fused::scaled(param, cx);
        }
        let statistics = Statistics::new(param, cx, false)?;
        Node::compute(BatchNorm { statistics, axes: Axes3::default() })
    }
}

impl Layer for BatchNorm {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.axes = axes(&bottoms[0].shape)?;
        let per_channel = bottoms[0].with_shape([self.axes.channels]);
        let mut plan = Plan {
            params: self.statistics.params(self.axes.channels),
            scratch: vec![per_channel.clone(); 2],
            ..Plan::elementwise(&bottoms[0])
        };
        if !self.statistics.global {
            plan.saved = vec![per_channel];
            plan.backward_tops = vec![0];
        }
        Ok(plan)
    }
}

impl HostLayer for BatchNorm {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let (mean, spread) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?);
        self.statistics.forward(x.unwrap_or(y), self.axes, &mut io, mean, spread)?;
        if let Some(kept) = io.saved::<T>(0)? {
            kept.copy_from_slice(spread);
        }
        Normalization { mean, inv_std: spread, affine: None, relu: false }.apply(x, self.axes, y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff_unless_shared::<T>(0)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (a, b) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?);
        if self.statistics.global {
            let unit = Statistics::unit(io.param::<T>(2)?);
            a.iter_mut().zip(io.param::<T>(1)?).for_each(|(a, &sum)| *a = self.statistics.inverse_std(unit * sum));
            batchnorm::scale_shift(dy, self.axes, a, None, dx);
        } else {
            let y = Normalized::Ready(io.top::<T>(0)?);
            batchnorm::backward_sums(y, dy.unwrap_or(dx), self.axes, a, b);
            batchnorm::backward_data(y, dy, self.axes, io.saved::<T>(0)?, a, b, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'bn' type: 'BatchNorm' bottom: 'x' top: 'y' {param} }}")
    }

    #[test]
    fn cases() {
        let statistics = |case: Case| {
            case.param(0, Fill::Normal(0.0, 1.0)).param(1, Fill::Uniform(0.5, 2.0)).param(2, Fill::Given(vec![1.7]))
        };
        check(
            &registry(),
            &[
                Case::golden("layers/bn_train_0"),
                Case::golden("layers/bn_global_0"),
                Case::golden("layers/bn_test_0"),
                Case::new(layer("")).bottom_of([3, 2, 2, 2], Fill::Normal(3.0, 0.5)),
                Case::new(layer("batch_norm_param { eps: 0.1 }")).bottom([5, 3]),
                Case::new(layer("")).bottom([6]),
                statistics(Case::new(layer("")).test_phase()).bottom([3, 2, 2]),
                statistics(Case::new(layer("batch_norm_param { use_global_stats: true }"))).bottom([3, 2]),
                Case::new(layer("batch_norm_param { use_global_stats: true }")).bottom([2, 2]),
                Case::new(layer("batch_norm_param { use_global_stats: false }")).test_phase().bottom([4, 2, 3]),
                Case::new(layer("batch_norm_param { scale_bias: true }")).bottom([3, 2, 2, 2]),
                statistics(Case::new(layer("batch_norm_param { scale_filler { value: 2 } }")))
                    .test_phase()
                    .bottom([3, 2, 2]),
            ],
        );
    }

    #[test]
    fn a_scale_of_its_own_starts_as_its_fillers_say() {
        let filled = |param: &str| {
            let text = layer(&format!("batch_norm_param {{ {param} }}"));
            let harness = Harness::new(&registry(), &text, Phase::Train, DType::F64, &[[2, 2, 2].into()]).unwrap();
            harness.filled().unwrap().concat()
        };
        assert_eq!(filled("scale_bias: true"), [0., 0., 0., 0., 0., 1., 1., 0., 0.]);
        assert_eq!(filled("scale_filler { value: 2 }"), [0., 0., 0., 0., 0., 2., 2., 0., 0.]);
        assert_eq!(filled("bias_filler { value: 3 }"), [0., 0., 0., 0., 0., 1., 1., 3., 3.]);
        assert_eq!(filled("scale_bias: false"), [0.0; 5]);
    }

    #[test]
    fn running_sums_follow_the_batches() {
        let text = layer("batch_norm_param { moving_average_fraction: 0.5 }");
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F64, &[[2, 1, 2].into()]).unwrap();
        assert_eq!(harness.filled().unwrap(), [[0.0], [0.0], [0.0]]);
        let mut inputs = harness.forward_inputs(&[&[1.0, 3.0, 5.0, 7.0]]).unwrap();
        // A batch of mean 4 and unbiased variance 20/3, twice.
        for (mean, variance, weight) in [(4.0, 20.0 / 3.0, 1.0), (6.0, 10.0, 1.5)] {
            inputs.params = harness.run(&inputs).unwrap().params;
            assert_close("sums", &inputs.params.concat(), &[mean, variance, weight], 1e-12);
        }
        let test = Harness::new(&registry(), &text, Phase::Test, DType::F64, &[[2, 1, 2].into()]).unwrap();
        let out = test.run(&inputs).unwrap();
        let want = [1.0, 3.0, 5.0, 7.0].map(|x: f64| (x - 4.0) / (20.0f64 / 3.0 + 1e-5).sqrt());
        assert_close("test", &out.tops[0], &want, 1e-9);
        assert_eq!(out.params, inputs.params);
    }

    #[test]
    fn one_value_a_channel_is_its_own_mean() {
        let harness = Harness::new(&registry(), &layer(""), Phase::Train, DType::F64, &[[1, 2].into()]).unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[3.0, -8.0]]).unwrap()).unwrap();
        assert_eq!(out.tops[0], [0.0, 0.0]);
        assert_eq!(out.params, [vec![3.0, -8.0], vec![0.0, 0.0], vec![1.0]]);
    }

    #[test]
    fn mistakes_are_named() {
        let rate = layer("param { lr_mult: 0 } param { lr_mult: 1 }");
        config_error(&registry(), &rate, &[[2, 2].into()], &["param entry 1", "lr_mult 1", "lr_mult: 0"]);
        config_error(&registry(), &layer(""), &[[0; 0].into()], &["at least one axis"]);
        let fine = layer("param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 decay_mult: 0 }");
        assert!(Harness::new(&registry(), &fine, Phase::Train, DType::F32, &[[2, 2].into()]).is_ok());
    }
}
