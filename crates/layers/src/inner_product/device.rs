//! InnerProduct on a device. What blobs are stored as, the products' factors are: where that is not single precision, the
//! weights are rounded to it in scratch memory; their gradient stays in single precision.

use lgm_core::{
    Axes3, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Element, Format, Formats, Fwd, Gemm, Offer, Plan, Result,
    Shape,
};

use super::InnerProduct;
use crate::common::by_channel::ByChannel;
use crate::common::convert::convert;
use crate::common::launch::matmul;

/// Scratch memory, by number.
mod scratch {
    /// Sums in parts.
    pub const PARTIAL: usize = 0;
    /// The weights as products take them, where that is not as they are.
    pub const WEIGHTS: usize = 1;
    /// The weights with rows of unit length, where the layer has such.
    pub const UNIT: usize = 2;
}

impl InnerProduct {
    fn channels(&self, format: Format) -> ByChannel {
        ByChannel::new(Axes3::new(self.rows, self.outputs, 1), format)
    }

    /// The weights as products take them: rounded into `scratch` where that is there.
    fn weights(
        &self,
        queue: &dyn DeviceQueue,
        format: Format,
        w: DevicePtr,
        scratch: Option<DevicePtr>,
    ) -> Result<DevicePtr> {
        let Some(rounded) = scratch else { return Ok(w) };
        convert(queue, (rounded, format), (w, Format::PLAIN), Axes3::new(1, 1, self.inputs * self.outputs), false)?;
        Ok(rounded)
    }
}

impl DeviceLayer for InnerProduct {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats::all(Format { element: offer.storage.element, ..Format::PLAIN }, 1, 1)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (format, top) = (plan.formats.top(0), &plan.tops[0]);
        let weights = Shape::from([self.inputs * self.outputs]);
        let rounded = if format == Format::PLAIN { 1 } else { format.bytes(&weights).div_ceil(4) };
        let unit = self.unit.map(|unit| unit.scratch(top));
        let scratch = [self.channels(format).scratch(top, 2), top.with_shape([rounded])];
        plan.scratch = scratch.into_iter().chain(unit).collect();
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let format = io.format();
        let (factors, result) = (format.element, format.element);
        let rounded = (format != Format::PLAIN).then(|| io.scratch(scratch::WEIGHTS)).transpose()?;
        let mut w = io.param(0)?;
        if let Some(unit) = &self.unit {
            w = unit.forward_on(io.call, w, io.scratch(scratch::UNIT)?)?;
        }
        let w = self.weights(io.queue(), format, w, rounded)?;
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let transpose = self.param.transpose();
        io.queue().gemm(&Gemm {
            trans_b: !transpose,
            ldb: if transpose { n } else { k },
            factors,
            result,
            ..matmul((m, n, k), (x, k), (w, n), 0.0, (y, n))
        })?;
        let b = if self.param.bias_term() { Some(io.param(1)?) } else { None };
        if b.is_some() || self.relu {
            self.channels(format).affine(io.queue(), y, y, None, b, self.relu)?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let transpose = self.param.transpose();
        let format = io.format();
        let factors = format.element;
        let dy = io.top_diff(0)?;
        if let Some(dw) = io.param_diff(0) {
            let x = io.bottom(0)?;
            let gemm = if transpose {
                matmul((k, n, m), (x, k), (dy, n), 1.0, (dw, n))
            } else {
                matmul((n, k, m), (dy, n), (x, k), 1.0, (dw, k))
            };
            io.queue().gemm(&Gemm { trans_a: true, factors, result: Element::F32, ..gemm })?;
        }
        let db = if self.param.bias_term() { io.param_diff(1) } else { None };
        if db.is_some() {
            let partial = io.scratch(scratch::PARTIAL)?;
            self.channels(format).add_sums(io.queue(), (dy, None), (None, db), true, partial)?;
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let ldb = if transpose { n } else { k };
        let rounded = (format != Format::PLAIN).then(|| io.scratch(scratch::WEIGHTS)).transpose()?;
        let mut w = io.param(0)?;
        if let Some(unit) = &self.unit {
            w = unit.backward_on(io.call, w, io.scratch(scratch::UNIT)?)?;
        }
        let w = self.weights(io.queue(), format, w, rounded)?;
        io.queue().gemm(&Gemm {
            trans_b: transpose,
            factors,
            result: factors,
            ..matmul((m, k, n), (dy, n), (w, ldb), 0.0, (dx, k))
        })
    }
}
