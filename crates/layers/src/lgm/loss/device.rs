//! LGMLoss on a device. Margins and λ are read there, so that what is recorded follows their schedules; a label that names no
//! class is reported by its item. That variances are lost, which the host warns of, is not looked at.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::LgmLoss;
use super::remedy::Remedy;
use crate::common::labels;
use crate::common::launch::{extent, row_grid};
use crate::lgm::device_pairs::{DevicePairs, Of};

/// Scratch memory, by number.
mod scratch {
    /// Σ⁻¹ where it is diagonal, shaped like the variances.
    pub const INVERSE: usize = 0;
    /// ½ ln Σ where it is diagonal, shaped like the variances.
    pub const HALF_LOG: usize = 1;
    /// Sums over features, and logits with margin in forward; sums in parts in backward.
    pub const PARTIAL: usize = 2;
    /// The part of h that depends on the item, in parts, in forward; the gradient of d in backward.
    pub const D: usize = 3;
    /// ½ ln |Σ| of each class in forward; the gradient of h in backward.
    pub const H: usize = 4;
    /// How many features of each item are observed, [M].
    pub const COUNTS: usize = 5;
    /// The cross-entropy and the likelihood term of each item, [M, 2].
    pub const ITEMS: usize = 6;
}

/// Rows that a warp each takes, in a block.
const WARPS: usize = 8;
/// Threads of a warp.
const LANES: usize = 32;

impl LgmLoss {
    fn skips(&self) -> bool {
        self.train && self.param.ignore_zero()
    }

    fn device_pairs<'q>(&self, queue: &'q dyn DeviceQueue, x: DevicePtr, w: DevicePtr) -> DevicePairs<'q> {
        DevicePairs { queue, extents: self.extents, x, w, skip_zero: self.skips() }
    }

    /// Counts the observed features of each item, where not all are.
    fn counts(&self, queue: &dyn DeviceQueue, x: DevicePtr, counts: DevicePtr) -> Result<Option<DevicePtr>> {
        if !self.skips() {
            return Ok(None);
        }
        let args = args![counts, x, extent(self.extents.items)?, extent(self.extents.width)?];
        queue.launch("lgm_count_observed", Grid::rows(self.extents.items.div_ceil(WARPS), Grid::THREADS), args)?;
        Ok(Some(counts))
    }
}

impl DeviceLayer for LgmLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (like, sigma, extents) = (plan.saved[0].clone(), plan.scratch[scratch::INVERSE].clone(), self.extents);
        let of = |elements: usize| like.with_shape([elements.max(1)]);
        let pairs = self.extents.items * self.extents.classes;
        let observed = if self.skips() && !self.param.isotropic() { extents.feature_parts() } else { 1 };
        plan.scratch = vec![
            sigma.clone(),
            sigma,
            extents.partial(&like),
            of(observed * pairs),
            of(pairs.max(self.extents.classes)),
            of(self.extents.items),
            of(2 * self.extents.items),
        ];
        if self.param.isotropic() && self.param.update_sigma() {
            plan.saved.push(like);
        }
        Ok(())
    }

    fn dynamic(&self) -> Vec<f32> {
        let (mul, add) = self.margins.values();
        vec![mul as f32, add as f32, self.lambda() as f32]
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.extents.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let [m, n, k] = self.extents.words()?;
        let (x, labels, w, sigma) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?, io.param(1)?);
        let pairs = self.device_pairs(io.queue(), x, w);
        let partial = io.scratch(scratch::PARTIAL)?;
        let (mut counts, mut determinants, mut observed) = (None, None, None);
        let variances = self.param.isotropic().then_some(sigma);
        if variances.is_some() {
            pairs.squares(None, partial)?;
            counts = self.counts(io.queue(), x, io.scratch(scratch::COUNTS)?)?;
        } else {
            let (inverse, half_log) = (io.scratch(scratch::INVERSE)?, io.scratch(scratch::HALF_LOG)?);
            let elements = self.extents.classes * self.extents.width;
            let args = args![inverse, half_log, sigma, self.floor, elements as i64];
            io.launch("lgm_invert", Grid::elements(elements), args)?;
            pairs.squares(Some(inverse), partial)?;
            if self.skips() {
                let h = io.scratch(scratch::D)?;
                pairs.observed(half_log, h)?;
                observed = Some(h);
            } else {
                let h = io.scratch(scratch::H)?;
                let grid = Grid::rows(self.extents.classes.div_ceil(WARPS), Grid::THREADS);
                io.launch("lgm_log_determinants", grid, args![h, half_log, n, k])?;
                determinants = Some(h);
            }
        }

        let logits = if self.tops > 1 { Some(io.top(1)?) } else { None };
        let (probabilities, sums) = (io.saved(0), io.saved(1));
        let of_items = io.scratch(scratch::ITEMS)?;
        let parts = extent(self.extents.feature_parts())?;
        let threads = (self.extents.classes.div_ceil(LANES) * LANES).min(Grid::THREADS as usize) as u32;
        let args = args![
            of_items,
            logits,
            probabilities,
            sums,
            partial,
            parts,
            variances,
            self.floor,
            counts,
            determinants,
            observed,
            labels,
            io.call.dynamic,
            u32::from(self.over_all_classes()),
            m,
            n,
            k
        ];
        io.launch("lgm_loss_rows", Grid::rows(self.extents.items, threads), args)?;
        let likelihood = if self.tops > 2 { Some(io.top(2)?) } else { None };
        let args = args![io.top(0)?, likelihood, of_items, labels, io.call.dynamic, m, n, io.call.fault];
        io.launch("lgm_loss_finish", Grid::rows(1, Grid::THREADS), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let [m, n, k] = self.extents.words()?;
        let (x, labels, w, sigma, p) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?, io.param(1)?, io.saved(0)?);
        let pairs = self.device_pairs(io.queue(), x, w);
        let d_loss = io.top_diff(0)?;
        let d_logits = if self.tops > 1 { Some(io.top_diff(1)?) } else { None };
        let d_likelihood = if self.tops > 2 { Some(io.top_diff(2)?) } else { None };
        let (dd, dh, partial) = (io.scratch(scratch::D)?, io.scratch(scratch::H)?, io.scratch(scratch::PARTIAL)?);
        let isotropic = self.param.isotropic();
        let variances = isotropic.then_some(sigma);
        let with_margin = u32::from(!self.param.block_mul_grad());
        let args = args![
            dd,
            dh,
            p,
            d_loss,
            d_logits,
            d_likelihood,
            variances,
            self.floor,
            labels,
            io.call.dynamic,
            with_margin,
            u32::from(self.over_all_classes()),
            m,
            n
        ];
        io.launch("lgm_loss_coefficients", row_grid(self.extents.items, self.extents.classes), args)?;

        let weights = if isotropic {
            None
        } else {
            let (inverse, elements) = (io.scratch(scratch::INVERSE)?, self.extents.classes * self.extents.width);
            let args = args![inverse, DevicePtr::NULL, sigma, self.floor, elements as i64];
            io.launch("lgm_invert", Grid::elements(elements), args)?;
            Some(inverse)
        };
        if let Some(ds) = io.param_diff(1).filter(|_| self.param.update_sigma()) {
            let (parts, elements) = match weights {
                None => {
                    let counts = self.counts(io.queue(), x, io.scratch(scratch::COUNTS)?)?;
                    let args = args![partial, dd, dh, io.saved(1)?, counts, m, n, k];
                    io.launch("lgm_loss_class_sums", self.extents.class_sums(), args)?;
                    (1, self.extents.classes)
                }
                Some(v) => {
                    pairs.squares_over_items(dd, Some((dh, v)), partial)?;
                    (extent(self.extents.item_parts())?, self.extents.classes * self.extents.width)
                }
            };
            let [floor, damped_below, strongest_pull] = Remedy::limits(self.floor);
            let args = args![ds, partial, parts, sigma, d_loss, floor, damped_below, strongest_pull, elements as i64];
            io.launch("lgm_loss_variances", Grid::elements(elements), args)?;
        }
        if let Some(dx) = io.bottom_diff(0) {
            pairs.sum_over_classes(dd, Of::Difference(weights), -1.0, dx, partial)?;
        }
        if let Some(dw) = io.param_diff(0) {
            pairs.sum_over_items(dd, Of::Difference(weights), 1.0, dw, partial)?;
        }
        Ok(())
    }
}
