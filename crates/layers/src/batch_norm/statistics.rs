//! The statistics that BatchNorm normalises by, on the host and on a device.

use lgm_core::{
    Axes3, BuildCx, Device, DevicePtr, Float, Fwd, Host, ParamSpec, Phase, Result, Shape, args, ensure, kernel,
};
use lgm_cpu::batchnorm;
use lgm_proto::{BatchNormParameter, LayerParameter};

use super::launch::{Found, global};
use crate::common::by_channel::ByChannel;

/// How a channel's mean and deviation come about: from the batch, moving the running sums, or from those sums.
pub struct Statistics {
    pub param: BatchNormParameter,
    /// Whether the running sums are used instead of the batch.
    pub global: bool,
    forgiving: bool,
}

impl Statistics {
    /// `forgiving` takes a `param` entry with a rate for them, which counts for nothing.
    pub fn new(param: &LayerParameter, cx: &BuildCx, forgiving: bool) -> Result<Statistics> {
        for (i, entry) in param.param.iter().take(3).enumerate() {
            ensure!(
                forgiving || entry.lr_mult() == 0.0,
                "param entry {i} has lr_mult {}; BatchNorm's statistics are not learned: give lr_mult: 0, or no entry",
                entry.lr_mult()
            );
        }
        let param = param.batch_norm_param.clone().unwrap_or_default();
        let global = param.use_global_stats.unwrap_or(cx.phase == Phase::Test);
        Ok(Statistics { param, global, forgiving })
    }

    /// M, V and w, for so many channels.
    pub fn params(&self, channels: usize) -> Vec<ParamSpec> {
        let param = |n: usize| ParamSpec { state: true, fixed: self.forgiving, ..ParamSpec::new([n], None) };
        [channels, channels, 1].map(param).into()
    }

    /// Works out μ and 1/√(σ² + ε) of each channel of `x`; M, V and w are the first three parameters.
    pub fn forward<T: Float>(
        &self,
        x: &[T],
        axes: Axes3,
        io: &mut Fwd<'_, Host>,
        mean: &mut [T],
        spread: &mut [T],
    ) -> Result<()> {
        let sums = (io.param_mut::<T>(0)?, io.param_mut::<T>(1)?, io.param_mut::<T>(2)?);
        if self.global {
            let unit = Self::unit(sums.2);
            mean.iter_mut().zip(&*sums.0).for_each(|(mean, &sum)| *mean = unit * sum);
            spread.iter_mut().zip(&*sums.1).for_each(|(s, &sum)| *s = self.inverse_std(unit * sum));
            return Ok(());
        }
        batchnorm::mean_variance(x, axes, mean, spread);
        let keep = T::of(self.param.moving_average_fraction() as f64);
        let m = axes.outer * axes.inner;
        let unbias = if m > 1 { T::of(m as f64 / (m - 1) as f64) } else { T::one() };
        sums.0.iter_mut().zip(&*mean).for_each(|(sum, &mean)| *sum = mean + keep * *sum);
        sums.1.iter_mut().zip(&*spread).for_each(|(sum, &variance)| *sum = unbias * variance + keep * *sum);
        sums.2[0] = T::one() + keep * sums.2[0];
        spread.iter_mut().for_each(|s| *s = self.inverse_std(*s));
        Ok(())
    }

    pub fn inverse_std<T: Float>(&self, variance: T) -> T {
        (variance + T::of(self.param.eps() as f64)).sqrt().recip()
    }

    /// What a running sum is multiplied by to give the statistic.
    pub fn unit<T: Float>(weight: &[T]) -> T {
        if weight[0] == T::zero() { T::zero() } else { weight[0].recip() }
    }
}

/// A bottom as images × channels × positions.
pub fn axes(shape: &Shape) -> Result<Axes3> {
    ensure!(!shape.is_empty(), "the bottom must have at least one axis, found shape {shape}");
    let channels = if shape.len() == 1 { 1 } else { shape[1] };
    Ok(Axes3::new(shape[0], channels, shape.count_from(2)))
}

/// Running statistics that a batch moves: each becomes `fresh` · new + `keep` · itself, the variance times `unbias`; the last, the
/// weight of the sums, 1 + `keep` · itself. Null where there are none.
pub struct Moving {
    pub sums: [DevicePtr; 3],
    pub keep: f32,
    pub fresh: f32,
    pub unbias: f32,
}

/// Works out μ and 1/√(σ² + ε) of each channel of a batch; `partial` is scratch for two sums of each channel.
pub fn batch_on(
    io: &Fwd<'_, Device>,
    x: DevicePtr,
    along: ByChannel,
    to: &Found,
    moving: &Moving,
    partial: DevicePtr,
    eps: f32,
) -> Result<()> {
    let (grid, [outer, channels, inner]) = along.sums()?;
    io.launch(kernel!("bn_statistics"), grid, args![partial, x, outer, channels, inner])?;
    let args = args![
        to.mean,
        to.inverse,
        to.kept_mean,
        to.kept_inverse,
        moving.sums[0],
        moving.sums[1],
        moving.sums[2],
        partial,
        x,
        along.chunks() as u32,
        outer,
        channels,
        inner,
        moving.keep,
        moving.fresh,
        moving.unbias,
        eps,
    ];
    io.launch(kernel!("bn_statistics_finish"), along.finish(512), args)
}

impl Statistics {
    /// As [`Statistics::forward`]; `partial` is scratch for two sums of each channel.
    pub fn forward_on(
        &self,
        x: DevicePtr,
        along: ByChannel,
        io: &mut Fwd<'_, Device>,
        to: &Found,
        partial: DevicePtr,
    ) -> Result<()> {
        let sums = [io.param(0)?, io.param(1)?, io.param(2)?];
        let eps = self.param.eps();
        if self.global {
            return global(io.call, along, to, sums, eps);
        }
        let m = along.axes.outer * along.axes.inner;
        let unbias = if m > 1 { (m as f64 / (m - 1) as f64) as f32 } else { 1.0 };
        let moving = Moving { sums, keep: self.param.moving_average_fraction(), fresh: 1.0, unbias };
        batch_on(io, x, along, to, &moving, partial, eps)
    }
}
