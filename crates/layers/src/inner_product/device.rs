//! InnerProduct on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Fwd, Gemm, Plan, Result, Run};

use super::InnerProduct;
use crate::on_device::{Channels, product};

impl InnerProduct {
    fn channels(&self) -> Channels {
        Channels { outer: self.rows, channels: self.outputs, inner: 1 }
    }
}

impl Run<Device> for InnerProduct {
    fn prepare(&mut self, _queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.channels().scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let (x, w, y) = (io.bottom(0)?, io.param(0)?, io.top(0)?);
        let transpose = self.param.transpose();
        queue.gemm(&Gemm {
            trans_b: !transpose,
            ldb: if transpose { n } else { k },
            ..product((m, n, k), (x, k), (w, n), 0.0, (y, n))
        })?;
        if self.param.bias_term() {
            self.channels().affine(queue, y, y, None, Some(io.param(1)?))?;
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let transpose = self.param.transpose();
        let dy = io.top_diff(0)?;
        if let Some(dw) = io.param_diff(0) {
            let x = io.bottom(0)?;
            queue.gemm(&if transpose {
                Gemm { trans_a: true, ..product((k, n, m), (x, k), (dy, n), 1.0, (dw, n)) }
            } else {
                Gemm { trans_a: true, ..product((n, k, m), (dy, n), (x, k), 1.0, (dw, k)) }
            })?;
        }
        let db = if self.param.bias_term() { io.param_diff(1) } else { None };
        if db.is_some() {
            self.channels().add_sums(queue, (dy, None), (None, db), true, io.scratch(0)?)?;
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let ldb = if transpose { n } else { k };
        queue.gemm(&Gemm {
            trans_b: transpose,
            ..product((m, k, n), (dy, n), (io.param(0)?, ldb), 0.0, (dx, k))
        })
    }
}
