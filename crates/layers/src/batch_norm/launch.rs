//! Launches that BatchNorm, BN and their fused forms share.

use lgm_core::{DeviceCall, DevicePtr, Grid, Result, args, kernel};

use crate::common::by_channel::ByChannel;

/// Where statistics go: the mean and the inverse deviation, and copies of them for backward.
pub struct Found {
    pub mean: DevicePtr,
    pub inverse: DevicePtr,
    pub kept_mean: Option<DevicePtr>,
    pub kept_inverse: Option<DevicePtr>,
}

/// μ and 1/√(σ² + ε) of each channel from running sums, over their weight where the last is not null.
pub fn global(call: DeviceCall<'_>, along: ByChannel, to: &Found, sums: [DevicePtr; 3], eps: f32) -> Result<()> {
    let Found { mean, inverse, kept_mean, kept_inverse } = *to;
    let [sum_mean, sum_variance, weight] = sums;
    let channels = along.axes.channels;
    let args = args![mean, inverse, kept_mean, kept_inverse, sum_mean, sum_variance, weight, channels as u32, eps];
    call.launch("bn_global", Grid::elements(channels), args)
}

/// y = γ · (x − μ) / √(σ² + ε) + β + r, and max(y, 0) with a ReLU; what is null is left out.
#[derive(Clone, Copy)]
pub struct DeviceNormalization {
    pub along: ByChannel,
    pub mean: DevicePtr,
    pub inverse: DevicePtr,
    pub gamma: DevicePtr,
    pub beta: DevicePtr,
    pub relu: bool,
}

/// What backward reads: the top's gradient, x, and a top that tells what passed the ReLU, or null.
#[derive(Clone, Copy)]
pub struct Reads {
    pub dy: DevicePtr,
    pub x: DevicePtr,
    pub gate: DevicePtr,
}

/// The sums of each channel that backward takes part of.
pub struct Sums {
    /// Means of dy, and of dy · x̂; or zeros.
    pub means: [DevicePtr; 2],
    /// Scratch for both.
    partial: DevicePtr,
    /// 1 over the elements of a channel, or 0 where the statistics do not depend on the batch.
    share: f32,
    /// The gradients of γ and β, added to.
    params: [Option<DevicePtr>; 2],
}

impl Sums {
    /// Sums whose means take part in dx if the statistics are those `of_batch`.
    pub fn new(
        along: ByChannel,
        means: [DevicePtr; 2],
        partial: DevicePtr,
        of_batch: bool,
        params: [Option<DevicePtr>; 2],
    ) -> Sums {
        let share = if of_batch { 1.0 / (along.axes.outer * along.axes.inner) as f32 } else { 0.0 };
        Sums { means, partial, share, params }
    }
}

impl DeviceNormalization {
    /// y of x and r.
    pub fn forward(&self, call: DeviceCall<'_>, y: DevicePtr, x: DevicePtr, r: DevicePtr) -> Result<()> {
        let DeviceNormalization { mean, inverse, gamma, beta, relu, .. } = *self;
        let (grid, [rows, width, channels]) = self.along.rows()?;
        let args = args![y, x, r, mean, inverse, gamma, beta, u32::from(relu), rows, width, channels];
        call.launch(kernel!("bn_normalize"), grid, args)
    }

    /// The sums, and the gradient of r where it is wanted: dy behind the ReLU.
    pub fn sums(&self, call: DeviceCall<'_>, reads: Reads, to: &Sums, dr: Option<DevicePtr>) -> Result<()> {
        let DeviceNormalization { along, mean, inverse, gamma, beta, relu } = *self;
        let (Reads { dy, x, gate }, partial) = (reads, to.partial);
        let (grid, [outer, channels, inner]) = along.sums()?;
        let args = args![partial, dr, dy, x, gate, mean, inverse, gamma, beta, u32::from(relu), outer, channels, inner];
        call.launch(kernel!("bn_fused_partials"), grid, args)?;
        let ([a, b], [d_gamma, d_beta]) = (to.means, to.params);
        let args = args![a, b, d_gamma, d_beta, partial, along.chunks() as u32, channels, to.share];
        call.launch("bn_fused_finish", along.finish(1024), args)
    }

    /// dx from the channels' means of [`sums`](Self::sums), or without where they are null.
    pub fn backward(&self, call: DeviceCall<'_>, dx: DevicePtr, reads: Reads, means: [DevicePtr; 2]) -> Result<()> {
        let DeviceNormalization { mean, inverse, gamma, beta, relu, .. } = *self;
        let (Reads { dy, x, gate }, [a, b]) = (reads, means);
        let (grid, [rows, width, channels]) = self.along.rows()?;
        let args = args![dx, dy, x, gate, mean, inverse, gamma, beta, a, b, u32::from(relu), rows, width, channels];
        call.launch(kernel!("bn_fused_backward"), grid, args)
    }
}
