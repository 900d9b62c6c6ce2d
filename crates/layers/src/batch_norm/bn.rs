//! BN: each channel normalised, then times a learned scale γ plus a learned shift β: y = γ · (x − μ) / √(σ² + ε) + β.
//!
//! Two forks' layers have this name, and are told apart by the fields of `bn_param`.
//!
//! - yjxiong's, of PSPNet too (`slope_filler`, `bias_filler`, `momentum`, `eps`, `frozen`, or none of them): in TRAIN, μ and σ² are
//!   the mean and biased variance of the channel in this batch; forward then moves the averages, M ← f · M + (1 − f) · μ and likewise
//!   V, f being `momentum` (0.9). In TEST, and everywhere with `frozen`, μ = M and σ² = V; with `frozen`, γ and β stay as they are.
//!   ε is `eps` (1e-5). Parameters: γ, β, M and V, each [1, C, 1, 1]; M starts at 0, V at 0, or 1 with `frozen`;
//!   a `param` entry's rate for M or V counts for nothing, with a warning, and with `frozen` one for γ or β.
//! - SegNet's (`scale_filler`, `shift_filler`, `bn_mode`): LEARN takes the statistics of the batch in both phases, with ε = 1e-9;
//!   INFERENCE has μ = 0 and no division, γ and β being those of a net whose statistics were put into them. Parameters: γ and β,
//!   each [1, C, 1, 1]. A second top is the batch's mean and a third its variance, each [1, C, 1, 1] (LEARN).
//!
//! Shapes: bottom [N, C, …], top like it, in its memory where backward does not need that. Gradient: with x̂ = (x − μ)/√(σ² + ε), dβ = Σdy,
//! dγ = Σ dy·x̂, dx = γ/√(σ² + ε) · (dy − Σdy/m − x̂·Σ(dy·x̂)/m), sums over the m values of the channel; with statistics that are not the
//! batch's dx = γ/√(σ² + ε) · dy. None from the second and third top, as in SegNet's, whose gradients of γ and β replace what
//! other uses of them have; ours are added.
//!
//! Sources: Ioffe and Szegedy (2015); Kendall's caffe-segnet; Xiong's fork, and Zhao's for PSPNet.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Phase, Plan, Result,
    Sharing, ensure,
};
use lgm_cpu::batchnorm::{self, Affine, Normalization, Normalized};
use lgm_proto::{BnParameter, FillerParameter, LayerParameter, bn_parameter::BnMode};

use super::statistics::axes;
use crate::common::diff::diff_source;

mod device;
#[cfg(test)]
mod tests;

/// Where mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    /// The batch; averages of it are kept with this factor, if with any.
    Batch { momentum: Option<f32> },
    /// The averages.
    Averages { frozen: bool },
    /// There are none: γ and β alone.
    Nowhere,
}

/// The layer; see the module.
pub struct Bn {
    from: From,
    eps: f32,
    fillers: [FillerParameter; 2],
    axes: Axes3,
    tops: usize,
}

/// Indices of the parameters.
const SCALE: usize = 0;
const SHIFT: usize = 1;
const MEAN: usize = 2;
const VARIANCE: usize = 3;

impl Bn {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let p = param.bn_param.clone().unwrap_or_default();
        let given = |fields: &[(&'static str, bool)]| {
            let names = fields.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
            names.collect::<Vec<_>>().join(", ")
        };
        let segnet = given(&[
            ("scale_filler", p.scale_filler.is_some()),
            ("shift_filler", p.shift_filler.is_some()),
            ("bn_mode", p.bn_mode.is_some()),
        ]);
        let averaging = given(&[
            ("slope_filler", p.slope_filler.is_some()),
            ("bias_filler", p.bias_filler.is_some()),
            ("momentum", p.momentum.is_some()),
            ("eps", p.eps.is_some()),
            ("frozen", p.frozen.is_some()),
        ]);
        let other = given(&[
            ("var_eps", p.var_eps.is_some()),
            ("moving_average", p.moving_average.is_some()),
            ("decay", p.decay.is_some()),
            ("across_spatial", p.across_spatial.is_some()),
        ]);
        ensure!(
            other.is_empty(),
            "bn_param has {other}, of another fork's BN that is not carried out: for its statistics use BatchNorm and Scale"
        );
        ensure!(
            segnet.is_empty() || averaging.is_empty(),
            "bn_param has fields of two forks' BN: {segnet} of SegNet's, which has no averages, and {averaging} of that with \
             averages; keep those of one"
        );
        let bn = if segnet.is_empty() { Bn::averaging(&p, cx)? } else { Bn::segnet(&p) };
        Node::compute(bn)
    }

    fn averaging(p: &BnParameter, cx: &BuildCx) -> Result<Bn> {
        let (momentum, eps) = (p.momentum(), p.eps());
        ensure!((0.0..=1.0).contains(&momentum), "momentum must lie between 0 and 1, found {momentum}");
        ensure!(eps.is_finite() && eps >= 0.0, "eps must be a number of at least 0, found {eps}");
        let from = if p.frozen() || cx.phase == Phase::Test {
            From::Averages { frozen: p.frozen() }
        } else {
            From::Batch { momentum: Some(momentum) }
        };
        let fillers = [&p.slope_filler, &p.bias_filler].map(|filler| filler.clone().unwrap_or_default());
        Ok(Bn { from, eps, fillers, axes: Axes3::default(), tops: 1 })
    }

    fn segnet(p: &BnParameter) -> Bn {
        let from = match p.bn_mode() {
            BnMode::Learn => From::Batch { momentum: None },
            BnMode::Inference => From::Nowhere,
        };
        let fillers = [&p.scale_filler, &p.shift_filler].map(|filler| filler.clone().unwrap_or_default());
        Bn { from, eps: 1e-9, fillers, axes: Axes3::default(), tops: 1 }
    }

    /// The factor of the averages, where forward moves them.
    fn momentum(&self) -> Option<f32> {
        if let From::Batch { momentum } = self.from { momentum } else { None }
    }

    /// Whether the statistics are those of the batch.
    fn of_batch(&self) -> bool {
        matches!(self.from, From::Batch { .. })
    }

    /// μ and 1/√(σ² + ε) of each channel; `variance` gets σ² where it is the batch's.
    fn statistics<T: Float>(
        &self,
        x: &[T],
        io: &mut Fwd<'_, Host>,
        mean: &mut [T],
        inv_std: &mut [T],
        variance: Option<&mut [T]>,
    ) -> Result<()> {
        match self.from {
            From::Nowhere => {
                mean.fill(T::zero());
                inv_std.fill(T::one());
                return Ok(());
            }
            From::Averages { .. } => {
                mean.copy_from_slice(io.param::<T>(MEAN)?);
                inv_std.copy_from_slice(io.param::<T>(VARIANCE)?);
            }
            From::Batch { momentum } => {
                batchnorm::mean_variance(x, self.axes, mean, inv_std);
                if let Some(variance) = variance {
                    variance.copy_from_slice(inv_std);
                }
                if let Some(momentum) = momentum {
                    let (keep, fresh) = (T::of(momentum.into()), T::of(1.0 - f64::from(momentum)));
                    for (param, new) in [(MEAN, &*mean), (VARIANCE, &*inv_std)] {
                        let averages = io.param_mut::<T>(param)?;
                        averages
                            .iter_mut()
                            .zip(new)
                            .for_each(|(average, &new)| *average = fresh * new + keep * *average);
                    }
                }
            }
        }
        let eps = T::of(self.eps.into());
        inv_std.iter_mut().for_each(|v| *v = (*v + eps).sqrt().recip());
        Ok(())
    }
}

impl Layer for Bn {
    fn arity(&self) -> Arity {
        let most = if self.from == (From::Batch { momentum: None }) { 3 } else { 1 };
        Arity::range(1..=1, 1..=most)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        ensure!(bottom.shape.len() >= 2, "the bottom needs channels, on its second axis; found shape {}", bottom.shape);
        self.axes = axes(&bottom.shape)?;
        self.tops = tops;
        let shape = [1, self.axes.channels, 1, 1];
        let frozen = self.from == (From::Averages { frozen: true });
        let learned = |filler: &FillerParameter| ParamSpec { fixed: frozen, ..ParamSpec::new(shape, Some(filler)) };
        let mut params: Vec<ParamSpec> = self.fillers.iter().map(learned).collect();
        if self.momentum().is_some() || matches!(self.from, From::Averages { .. }) {
            let start = [0.0, if frozen { 1.0 } else { 0.0 }];
            params.extend(start.map(|start| ParamSpec {
                state: true,
                fixed: true,
                ..ParamSpec::constant(shape, start)
            }));
        }
        let channels = bottom.with_shape([self.axes.channels]);
        let statistics = [bottom.clone()].into_iter().chain(vec![bottom.with_shape(shape); tops - 1]);
        Ok(Plan {
            params,
            saved: vec![channels.clone(); 2],
            scratch: vec![channels; 3],
            share_data: vec![(0, 0, Sharing::InPlace)],
            share_diff: vec![(0, 0)],
            backward_bottoms: if frozen { Vec::new() } else { vec![0] },
            flops: 2 * bottom.shape.count() as u64,
            ..Plan::new(statistics.collect())
        })
    }
}

impl HostLayer for Bn {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let (mean, inv_std) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?);
        let variance = if self.tops > 2 { Some(io.top::<T>(2)?) } else { None };
        self.statistics(x.unwrap_or(y), &mut io, mean, inv_std, variance)?;
        if self.tops > 1 {
            io.top::<T>(1)?.copy_from_slice(mean);
        }
        if let (Some(kept_mean), Some(kept_inv_std)) = (io.saved::<T>(0)?, io.saved::<T>(1)?) {
            kept_mean.copy_from_slice(mean);
            kept_inv_std.copy_from_slice(inv_std);
        }
        let affine = Some(Affine { scale: io.param::<T>(SCALE)?, shift: Some(io.param::<T>(SHIFT)?) });
        Normalization { mean, inv_std, affine, relu: false }.apply(x, self.axes, y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (mean, inv_std) = (io.saved::<T>(0)?, io.saved::<T>(1)?);
        let (scale, sum_dy, sum_dy_xhat) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?, io.scratch::<T>(2)?);
        let gamma = io.param::<T>(SCALE)?;
        scale.iter_mut().zip(inv_std).zip(gamma).for_each(|((scale, &i), &g)| *scale = i * g);
        let (own, dx) = (io.top_diff_unless_shared::<T>(0)?, io.bottom_diff::<T>(0)?);
        if self.from == (From::Averages { frozen: true }) {
            if let Some(dx) = dx {
                batchnorm::scale_shift(own, self.axes, scale, None, dx);
            }
            return Ok(());
        }
        let xhat = Normalized::From { x: io.bottom::<T>(0)?, mean, inv_std };
        batchnorm::backward_sums(xhat, diff_source(own, dx.as_deref())?, self.axes, sum_dy, sum_dy_xhat);
        for (param, sums) in [(SCALE, &*sum_dy_xhat), (SHIFT, &*sum_dy)] {
            if let Some(diff) = io.param_diff::<T>(param)? {
                diff.iter_mut().zip(sums).for_each(|(d, &s)| *d += s);
            }
        }
        let Some(dx) = dx else { return Ok(()) };
        if self.of_batch() {
            batchnorm::backward_data(xhat, own, self.axes, scale, sum_dy, sum_dy_xhat, dx);
        } else {
            batchnorm::scale_shift(own, self.axes, scale, None, dx);
        }
        Ok(())
    }
}
