//! LSTMUnit: the gates and cells of one step of an LSTM, `c = κ · σ(f) · c' + σ(i) · tanh(g)`, `h = σ(o) · tanh(c)`.
//!
//! Bottoms: the cells before, c' `[1, N, H]`; the gates (i, f, o, g) `[1, N, 4 H]`; the continuation κ `[1, N]`. Tops: c and h, each
//! `[1, N, H]`. Gradient: that of the formulas by c' and the gates, none by κ. For κ that are neither 0 nor 1 Caffe's gradient by f
//! differs from that of its forward.
//!
//! Source: Caffe's layer of this name; see [`super`].

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DevicePtr, Error, Float, Fwd, Host, HostLayer, Layer, Node,
    Plan, Result, Shape, args, ensure,
};
use lgm_cpu::recurrent::{LstmStep, Offset, lstm_backward, lstm_forward};
use lgm_proto::LayerParameter;

use crate::common::launch::{extent, row_grid};

/// The layer; see the module.
#[derive(Default)]
pub struct LstmUnit {
    streams: usize,
    units: usize,
}

/// Scratch memory, by number.
mod scratch {
    /// The gates, where they are not saved, or their gradients, where they are not wanted.
    pub const GATES: usize = 0;
    /// The gradient of the cells before, where it is not wanted.
    pub const CELLS: usize = 1;
}

impl LstmUnit {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(LstmUnit::default())
    }
}

impl Layer for LstmUnit {
    fn arity(&self) -> Arity {
        Arity::exactly(3, 2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let cells = &bottoms[0];
        ensure!(
            cells.shape.len() == 3 && cells.shape[0] == 1,
            "bottom 0, the cells, must be of shape (1, streams, units), found {}",
            cells.shape
        );
        (self.streams, self.units) = (cells.shape[1], cells.shape[2]);
        let wanted = [
            (1, "the gates", Shape::from([1, self.streams, 4 * self.units])),
            (2, "the continuation", Shape::from([1, self.streams])),
        ];
        for (i, what, expected) in wanted {
            if bottoms[i].shape != expected {
                let found = bottoms[i].shape.clone();
                return Err(Error::Shape { what: format!("bottom {i}, {what},"), expected, found });
            }
        }
        let gates = bottoms[1].clone();
        Ok(Plan {
            saved: vec![gates.clone()],
            scratch: vec![gates, cells.clone()],
            backward_bottoms: vec![0, 2],
            backward_tops: vec![0],
            no_gradient: vec![2],
            flops: 30 * cells.shape.count() as u64,
            ..Plan::new(vec![cells.clone(), cells.clone()])
        })
    }
}

impl HostLayer for LstmUnit {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let gates = match io.saved::<T>(0)? {
            Some(gates) => gates,
            None => io.scratch::<T>(scratch::GATES)?,
        };
        gates.copy_from_slice(io.bottom(1)?);
        let (previous, cont) = (io.bottom::<T>(0)?, io.bottom::<T>(2)?);
        lstm_forward(self.units, (gates, Offset::None), (previous, cont), (io.top(0)?, io.top(1)?), None);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let step =
            LstmStep { gates: io.saved::<T>(0)?, previous: io.bottom(0)?, cell: io.top(0)?, cont: io.bottom(2)? };
        let (spare_gates, spare_cells) = (io.scratch::<T>(scratch::GATES)?, io.scratch::<T>(scratch::CELLS)?);
        let dc = io.bottom_diff::<T>(0)?.unwrap_or(spare_cells);
        dc.copy_from_slice(io.top_diff(0)?);
        let dgates = io.bottom_diff::<T>(1)?.unwrap_or(spare_gates);
        lstm_backward(self.units, step, io.top_diff(1)?, dc, dgates);
        Ok(())
    }
}

impl DeviceLayer for LstmUnit {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let gates = match io.saved(0) {
            Some(gates) => gates,
            None => io.scratch(scratch::GATES)?,
        };
        let (n, h, none) = (self.streams, self.units, DevicePtr::NULL);
        io.queue().copy(io.bottom(1)?, gates, 16 * n * h)?;
        let (previous, cont, cell, hidden) = (io.bottom(0)?, io.bottom(2)?, io.top(0)?, io.top(1)?);
        let args = args![gates, none, 0u32, previous, cont, cell, hidden, none, none, extent(n)?, extent(h)?];
        io.launch("lstm_forward", row_grid(n, h), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (n, h) = (self.streams, self.units);
        let (spare_gates, spare_cells) = (io.scratch(scratch::GATES)?, io.scratch(scratch::CELLS)?);
        let dc = io.bottom_diff(0).unwrap_or(spare_cells);
        let dgates = io.bottom_diff(1).unwrap_or(spare_gates);
        io.queue().copy(io.top_diff(0)?, dc, 4 * n * h)?;
        let (gates, previous, cell, cont) = (io.saved(0)?, io.bottom(0)?, io.top(0)?, io.bottom(2)?);
        let args = args![dgates, dc, gates, previous, cell, cont, io.top_diff(1)?, extent(n)?, extent(h)?];
        io.launch("lstm_backward", row_grid(n, h), args)
    }
}
