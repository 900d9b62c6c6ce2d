//! What losses share: what their sums are divided by, and how a device adds up.

use lgm_core::{BlobSpec, DeviceCall, DevicePtr, Grid, Result, args};
use lgm_proto::loss_parameter::NormalizationMode;
use lgm_proto::{LayerParameter, LossParameter};

use super::launch::extent;

/// What a probability counts as at the least, in losses that take its logarithm: Caffe's bound.
pub(crate) const LEAST_PROBABILITY: f64 = 1e-20;

/// Z, which a sum over `positions` positions of `batch` items is divided by, unless it is the number of positions that
/// count. It is at least 1. `otherwise` is the mode where the prototxt gives none.
pub(crate) fn fixed_normalizer(
    loss: &LossParameter,
    otherwise: NormalizationMode,
    positions: usize,
    batch: usize,
) -> Option<f64> {
    let mode = match (loss.normalization, loss.normalize) {
        (Some(_), _) => loss.normalization(),
        (None, Some(false)) => NormalizationMode::BatchSize,
        (None, Some(true)) => NormalizationMode::Valid,
        (None, None) => otherwise,
    };
    let z = match mode {
        NormalizationMode::Full => positions as f64,
        NormalizationMode::Valid => return None,
        NormalizationMode::BatchSize => batch as f64,
        NormalizationMode::None => 1.0,
        NormalizationMode::PreFixed => loss.pre_fixed_normalizer().into(),
    };
    Some(z.max(1.0))
}

/// Warns of a `normalization` where a loss divides by the number of items whatever is asked for, as Caffe's does.
pub(crate) fn warn_of_normalization(param: &LayerParameter) {
    let asked = param.loss_param.as_ref().filter(|loss| loss.normalization.is_some());
    if let Some(mode) = asked.map(|loss| loss.normalization().as_str_name()) {
        let (layer, kind) = (param.name(), param.r#type());
        tracing::warn!(
            "layer '{layer}': normalization: {mode} has no effect on {kind}, which divides by the number of items; \
             for another divisor give loss_weight"
        );
    }
}

/// Terms that a kernel adds up block by block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    /// How many there are.
    pub terms: usize,
}

impl Tally {
    const MOST_BLOCKS: usize = 1024;

    fn blocks(self) -> usize {
        self.terms.div_ceil(Grid::THREADS as usize).clamp(1, Self::MOST_BLOCKS)
    }

    /// The grid of the kernel.
    pub fn grid(self) -> Grid {
        Grid::rows(self.blocks(), Grid::THREADS)
    }

    /// Scratch for what its blocks put.
    pub fn scratch(self, like: &BlobSpec) -> BlobSpec {
        like.with_shape([3 * self.blocks()])
    }

    /// Writes the loss, which is what the blocks put over Z (the number of positions that count, where `z` is `None`), and
    /// 1/Z to `share`. Reports a label that names no class.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn finish(
        self,
        call: DeviceCall<'_>,
        (loss, share): (DevicePtr, Option<DevicePtr>),
        partial: DevicePtr,
        labels: Option<DevicePtr>,
        z: Option<f32>,
    ) -> Result<()> {
        let args = args![loss, share, partial, labels, extent(self.blocks())?, z.unwrap_or(0.0), call.fault];
        call.launch("loss_finish", Grid::rows(1, Grid::THREADS), args)
    }
}
