//! RNN and LSTM on a device, in single precision: one product for all steps wherever a step does not need the one before it, and
//! for each step a product and a kernel.

use lgm_core::{Axes3, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Format, Fwd, Gemm, Grid, Plan, Result, args};

use super::{Recurrent, param, saved, scratch};
use crate::common::by_channel::ByChannel;
use crate::common::launch::{extent, matmul, row_grid};

/// The sums of biases' gradients in parts, the last scratch memory.
const PARTIAL: usize = 2;

impl Recurrent {
    /// Gates of `rows` streams or of streams at all steps, as biases see them.
    fn along(rows: usize, width: usize) -> ByChannel {
        ByChannel::new(Axes3::new(rows, width, 1), Format::PLAIN)
    }

    /// dst = scale · src for each stream; without a scale, a copy.
    fn scale(&self, queue: &dyn DeviceQueue, dst: DevicePtr, src: DevicePtr, scale: Option<DevicePtr>) -> Result<()> {
        match scale {
            None => queue.copy(src, dst, 4 * self.step()),
            Some(scale) => {
                let args = args![dst, src, scale, extent(self.streams)?, extent(self.units)?];
                queue.launch("recurrent_scale", row_grid(self.streams, self.units), args)
            }
        }
    }
}

/// C += Aᵀ · B, for `rows` rows of A and B.
fn add_outer(
    queue: &dyn DeviceQueue,
    rows: usize,
    c: DevicePtr,
    (a, m): (DevicePtr, usize),
    (b, n): (DevicePtr, usize),
) -> Result<()> {
    queue.gemm(&Gemm { trans_a: true, ..matmul((m, n, rows), (a, m), (b, n), 1.0, (c, n)) })
}

/// C = A · Bᵀ + β · C, for B of `n` rows.
fn times_transposed(
    queue: &dyn DeviceQueue,
    (rows, n, k): (usize, usize, usize),
    c: DevicePtr,
    (a, b): (DevicePtr, DevicePtr),
    beta: f32,
) -> Result<()> {
    queue.gemm(&Gemm { trans_b: true, ..matmul((rows, n, k), (a, k), (b, k), beta, (c, n)) })
}

impl DeviceLayer for Recurrent {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (rows, top) = (self.steps * self.streams, plan.tops[0].clone());
        plan.scratch.push(Self::along(rows, self.gates()).scratch(&top, 2));
        if !self.lstm {
            plan.scratch.push(Self::along(rows, self.units).scratch(&top, 2));
        }
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (t, n, h, g, step) = (self.steps, self.streams, self.units, self.gates(), self.step());
        let (streams, width) = (extent(n)?, extent(h)?);
        extent(t * n)?;
        let queue = io.call.queue;
        let (x, cont, y) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let offsets = io.scratch(scratch::REST)?;
        let spare = io.scratch(scratch::GATES)?;
        let gates = io.saved(saved::GATES).unwrap_or(spare);
        let hidden = io.saved(saved::HIDDEN).unwrap_or(offsets.floats(n * g));
        let cells = io.saved(saved::CELLS).unwrap_or(offsets.floats(n * g + t * step));

        times_transposed(queue, (t * n, g, self.inputs), gates, (x, io.param(param::X)?), 0.0)?;
        let bias = io.param(param::BIAS)?;
        let (offset, each) = match self.statics {
            Some(statics) => {
                let w = io.param(self.w_static())?;
                times_transposed(queue, (n, g, statics), offsets, (io.bottom(2)?, w), 0.0)?;
                Self::along(n, g).affine(queue, offsets, offsets, None, Some(bias), false)?;
                (offsets, 1u32)
            }
            None => (bias, 0),
        };
        let mut last = [DevicePtr::NULL; 2];
        for (i, last) in last.iter_mut().enumerate().take(self.states()) {
            let (first, end) = match self.exposed() {
                true => (io.bottom(self.first_state() + i)?, io.top(1 + i)?),
                false => {
                    let carried = io.param(self.first_carried() + i)?;
                    (carried, carried)
                }
            };
            let (to, scale) = if i == 0 { (hidden, Some(cont)) } else { (cells, None) };
            self.scale(queue, to, first, scale)?;
            *last = end;
        }
        let w = io.param(self.w_hidden())?;
        for s in 0..t {
            let (here, at) = (gates.floats(s * n * g), s * step);
            times_transposed(queue, (n, g, h), here, (hidden.floats(at), w), 1.0)?;
            let (next_cont, next) = match s + 1 < t {
                true => (cont.floats((s + 1) * n), hidden.floats(at + step)),
                false => (DevicePtr::NULL, DevicePtr::NULL),
            };
            if self.lstm {
                let (previous, cell) = (cells.floats(at), cells.floats(at + step));
                let (cont, out) = (cont.floats(s * n), y.floats(at));
                let args = args![here, offset, each, previous, cont, cell, out, next_cont, next, streams, width];
                queue.launch("lstm_forward", row_grid(n, h), args)?;
            } else {
                let args = args![here, offset, each, next_cont, next, streams, width];
                queue.launch("recurrent_tanh_forward", row_grid(n, h), args)?;
            }
        }
        let outputs = if self.lstm { y } else { gates };
        self.scale(queue, last[0], outputs.floats((t - 1) * step), None)?;
        if self.lstm {
            return self.scale(queue, last[1], cells.floats(t * step), None);
        }
        let (w, bias) = (io.param(self.w_output())?, io.param(self.w_output() + 1)?);
        times_transposed(queue, (t * n, h, h), y, (gates, w), 0.0)?;
        let args = args![y, bias, 0u32, DevicePtr::NULL, DevicePtr::NULL, extent(t * n)?, width];
        queue.launch("recurrent_tanh_forward", row_grid(t * n, h), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (t, n, h, g, step) = (self.steps, self.streams, self.units, self.gates(), self.step());
        let (streams, width) = (extent(n)?, extent(h)?);
        let queue = io.call.queue;
        let (cont, mut dy) = (io.bottom(1)?, io.top_diff(0)?);
        let (dgates, doffsets) = (io.scratch(scratch::GATES)?, io.scratch(scratch::REST)?);
        let partial = io.scratch(PARTIAL)?;
        let dh = doffsets.floats(n * g);
        let (dc, dz) = (dh.floats(step), dh.floats(2 * step));
        let (gates, hidden) = (io.saved(saved::GATES)?, io.saved(saved::HIDDEN)?);
        let cells = if self.lstm { io.saved(saved::CELLS)? } else { DevicePtr::NULL };
        if !self.lstm {
            let dout = dz.floats(t * step);
            let args = args![dz, io.top(0)?, dy, (t * step) as i64];
            queue.launch("recurrent_tanh_backward", Grid::elements(t * step), args)?;
            if let Some(dw) = io.param_diff(self.w_output()) {
                add_outer(queue, t * n, dw, (dz, h), (gates, h))?;
            }
            if let Some(db) = io.param_diff(self.w_output() + 1) {
                let partial = io.scratch(PARTIAL + 1)?;
                Self::along(t * n, h).add_sums(queue, (dz, None), (None, Some(db)), true, partial)?;
            }
            queue.gemm(&matmul((t * n, h, h), (dz, h), (io.param(self.w_output())?, h), 0.0, (dout, h)))?;
            dy = dout;
        }

        let w = io.param(self.w_hidden())?;
        for (i, last) in [dh, dc].into_iter().enumerate() {
            match self.exposed() && i < self.states() {
                true => self.scale(queue, last, io.top_diff(1 + i)?, None)?,
                false => queue.zero(last, 4 * step)?,
            }
        }
        for s in (0..t).rev() {
            let at = s * step;
            let (here, of_step) = (gates.floats(s * n * g), dgates.floats(s * n * g));
            let next = if s + 1 < t { cont.floats((s + 1) * n) } else { DevicePtr::NULL };
            let args = args![dh, dy.floats(at), next, streams, width];
            queue.launch("recurrent_join", row_grid(n, h), args)?;
            if self.lstm {
                let (previous, cell, cont) = (cells.floats(at), cells.floats(at + step), cont.floats(s * n));
                let args = args![of_step, dc, here, previous, cell, cont, dh, streams, width];
                queue.launch("lstm_backward", row_grid(n, h), args)?;
            } else {
                queue.launch("recurrent_tanh_backward", Grid::elements(step), args![of_step, here, dh, step as i64])?;
            }
            if s > 0 || self.exposed() {
                queue.gemm(&matmul((n, h, g), (of_step, g), (w, h), 0.0, (dh, h)))?;
            }
        }
        if self.exposed() {
            if let Some(dx) = io.bottom_diff(self.first_state()) {
                self.scale(queue, dx, dh, Some(cont))?;
            }
            if let Some(dx) = io.bottom_diff(self.first_state() + 1).filter(|_| self.lstm) {
                self.scale(queue, dx, dc, None)?;
            }
        }

        if let Some(dw) = io.param_diff(self.w_hidden()) {
            add_outer(queue, t * n, dw, (dgates, g), (hidden, h))?;
        }
        if let Some(dw) = io.param_diff(param::X) {
            add_outer(queue, t * n, dw, (dgates, g), (io.bottom(0)?, self.inputs))?;
        }
        if let Some(db) = io.param_diff(param::BIAS) {
            Self::along(t * n, g).add_sums(queue, (dgates, None), (None, Some(db)), true, partial)?;
        }
        if let Some(dx) = io.bottom_diff(0) {
            let i = self.inputs;
            queue.gemm(&matmul((t * n, i, g), (dgates, g), (io.param(param::X)?, i), 0.0, (dx, i)))?;
        }
        if let Some(statics) = self.statics {
            let args = args![doffsets, dgates, extent(t)?, (n * g) as i64];
            queue.launch("recurrent_sum_steps", Grid::elements(n * g), args)?;
            if let Some(dw) = io.param_diff(self.w_static()) {
                add_outer(queue, n, dw, (doffsets, g), (io.bottom(2)?, statics))?;
            }
            if let Some(dx) = io.bottom_diff(2) {
                let w = (io.param(self.w_static())?, statics);
                queue.gemm(&matmul((n, statics, g), (doffsets, g), w, 0.0, (dx, statics)))?;
            }
        }
        Ok(())
    }
}
