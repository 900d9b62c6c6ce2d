//! ClassDistance on a device. Margins are read there, so that what is recorded follows their schedules; a label that names
//! no class is reported by its item. That variances are small, which the host warns of, is not looked at.

use lgm_core::{
    Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Gemm, Grid, Plan, Result, args,
};
use lgm_proto::class_distance_parameter::Metric;

use super::{ClassDistance, DIAGONAL_FLOOR};
use crate::common::labels;
use crate::common::launch::{extent, matmul, row_grid};
use crate::lgm::Extents;
use crate::lgm::device_pairs::{DevicePairs, Of};

/// Scratch memory, by number.
mod scratch {
    /// What reaches the logits before the margin, [M, N].
    pub const C: usize = 0;
    /// Σ⁻¹ where it is diagonal, shaped like the variances.
    pub const INVERSE: usize = 1;
    /// Sums in parts.
    pub const PARTIAL: usize = 2;
}

impl ClassDistance {
    fn device_pairs<'q>(&self, queue: &'q dyn DeviceQueue, x: DevicePtr, w: DevicePtr) -> DevicePairs<'q> {
        let skip_zero = self.train && self.param.ignore_zero();
        DevicePairs { queue, extents: self.extents, x, w, skip_zero }
    }

    fn isotropic_l2(&self) -> bool {
        self.param.metric() == Metric::L2 && self.param.isotropic()
    }

    /// The kernels' floor of variances: 0 where isotropic.
    fn floor(&self) -> f32 {
        if self.param.isotropic() { 0.0 } else { DIAGONAL_FLOOR as f32 }
    }

    /// The weights of a diagonal metric, put in `inverse`.
    fn weights(&self, queue: &dyn DeviceQueue, sigma: DevicePtr, inverse: DevicePtr) -> Result<Option<DevicePtr>> {
        if self.param.isotropic() {
            return Ok(None);
        }
        let n = self.extents.classes * self.extents.width;
        let args = args![inverse, DevicePtr::NULL, sigma, self.floor(), n as i64];
        queue.launch("lgm_invert", Grid::elements(n), args)?;
        Ok(Some(inverse))
    }

    fn check_labels(&self, call: DeviceCall<'_>, labels: DevicePtr) -> Result<()> {
        let args = args![labels, extent(self.extents.items)?, extent(self.extents.classes)?, call.fault];
        call.launch("lgm_check_labels", Grid::rows(1, Grid::THREADS), args)
    }
}

impl DeviceLayer for ClassDistance {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let logits = plan.tops[0].clone();
        plan.scratch = vec![logits.clone(), plan.scratch[1].clone(), self.extents.partial(&logits)];
        if self.isotropic_l2() && self.param.update_sigma() {
            plan.saved = vec![logits];
        }
        Ok(())
    }

    fn dynamic(&self) -> Vec<f32> {
        let (mul, add) = self.margins.values();
        vec![mul as f32, add as f32]
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.extents.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Extents { items, classes, width } = self.extents;
        let (x, w, sigma, top) = (io.bottom(0)?, io.param(0)?, io.param(1)?, io.top(0)?);
        let (inverse, partial) = (io.scratch(scratch::INVERSE)?, io.scratch(scratch::PARTIAL)?);
        let pairs = self.device_pairs(io.queue(), x, w);
        let labels = if self.labelled && self.train { Some(io.bottom(1)?) } else { None };
        if let Some(labels) = labels {
            self.check_labels(io.call, labels)?;
        }
        let parts = extent(self.extents.feature_parts())?;
        let (sums, parts, factor) = match self.param.metric() {
            Metric::L2 => {
                pairs.squares(self.weights(io.queue(), sigma, inverse)?, partial)?;
                (partial, parts, -0.5f32)
            }
            Metric::Ip => {
                let gemm = matmul((items, classes, width), (x, width), (w, width), 0.0, (top, classes));
                io.queue().gemm(&Gemm { trans_b: true, exact: true, ..gemm })?;
                if labels.is_none() {
                    return Ok(());
                }
                (top, 1, 1.0)
            }
            Metric::L1 => {
                pairs.absolutes(partial)?;
                (partial, parts, -1.0)
            }
        };
        let sigma = self.isotropic_l2().then_some(sigma);
        let (m, n) = (extent(items)?, extent(classes)?);
        let args = args![top, io.saved(0), sums, parts, sigma, factor, labels, io.call.dynamic, m, n];
        io.launch("lgm_logits", row_grid(items, classes), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Extents { items, classes, width } = self.extents;
        let ([m, n, k], metric) = (self.extents.words()?, self.param.metric());
        let (x, w, sigma, dz) = (io.bottom(0)?, io.param(0)?, io.param(1)?, io.top_diff(0)?);
        let (dx, dw) = (io.bottom_diff(0), io.param_diff(0));
        let ds = io.param_diff(1).filter(|_| metric == Metric::L2 && self.param.update_sigma());
        let (c, inverse, partial) =
            (io.scratch(scratch::C)?, io.scratch(scratch::INVERSE)?, io.scratch(scratch::PARTIAL)?);
        let pairs = self.device_pairs(io.queue(), x, w);
        let labels = if self.labelled { Some(io.bottom(1)?) } else { None };
        if let Some(labels) = labels.filter(|_| !self.train) {
            self.check_labels(io.call, labels)?;
        }
        let margins = (!self.param.block_mul_grad()).then_some(io.call.dynamic);
        let coef = (f64::from(self.param.center_coef()) / items as f64) as f32;

        // An isotropic metric pulls along the same differences as the center term, and L1 along the same signs.
        let isotropic = self.isotropic_l2();
        let along = isotropic || metric == Metric::L1;
        let (variances, pull) = (isotropic.then_some(sigma), if along { coef } else { 0.0 });
        let args = args![c, dz, variances, labels, margins, pull, m, n];
        io.launch("lgm_coefficients", row_grid(items, classes), args)?;
        let of = match metric {
            Metric::L2 => Of::Difference(self.weights(io.queue(), sigma, inverse)?),
            Metric::L1 => Of::Sign,
            Metric::Ip => Of::Difference(None),
        };
        if let Some(ds) = ds {
            let (parts, elements) = if isotropic {
                let args = args![partial, dz, io.saved(0)?, labels, margins, m, n];
                io.launch("lgm_distance_class_sums", self.extents.class_sums(), args)?;
                (1, classes)
            } else {
                pairs.squares_over_items(c, None, partial)?;
                (extent(self.extents.item_parts())?, classes * width)
            };
            let args = args![ds, partial, parts, sigma, self.floor(), elements as i64];
            io.launch("lgm_distance_variances", Grid::elements(elements), args)?;
        }
        if metric == Metric::Ip {
            let exact = true;
            if let Some(dx) = dx {
                let gemm = matmul((items, width, classes), (c, classes), (w, width), 0.0, (dx, width));
                io.queue().gemm(&Gemm { exact, ..gemm })?;
            }
            if let Some(dw) = dw {
                let gemm = matmul((classes, width, items), (c, classes), (x, width), 1.0, (dw, width));
                io.queue().gemm(&Gemm { trans_a: true, exact, ..gemm })?;
            }
        } else {
            if let Some(dx) = dx {
                pairs.sum_over_classes(c, of, 1.0, dx, partial)?;
            }
            if let Some(dw) = dw {
                pairs.sum_over_items(c, of, -1.0, dw, partial)?;
            }
        }

        if let Some(labels) = labels.filter(|_| coef != 0.0 && !along) {
            let skip = u32::from(pairs.skip_zero && metric != Metric::Ip);
            if let Some(dx) = dx {
                io.launch("lgm_pull_items", row_grid(items, width), args![dx, x, w, labels, coef, skip, m, n, k])?;
            }
            if let Some(dw) = dw {
                let args = args![dw, x, w, labels, coef, skip, m, n, k];
                io.launch("lgm_pull_centers", row_grid(classes, width), args)?;
            }
        }
        Ok(())
    }
}
