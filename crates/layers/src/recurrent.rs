//! RNN and LSTM, unrolled over the time steps of their bottom.
//!
//! For time steps t of N streams, with κ the continuation (0 where a stream begins anew, 1 where it goes on) and x the bottom:
//! - LSTM: gates (i', f', o', g') = W_x · x_t + b + W_s · s + W_h · (κ_t · h_{t−1}); i = σ(i'), f = σ(f'), o = σ(o'),
//!   g = tanh(g'); c_t = κ_t · f · c_{t−1} + i · g; h_t = o · tanh(c_t), which is the top.
//! - RNN: h_t = tanh(W_x · x_t + b + W_s · s + W_h · (κ_t · h_{t−1})); the top is o_t = tanh(W_o · h_t + b_o).
//!
//! Bottoms: x `[T, N, …]`; κ `[T, N]`; a static input s `[N, …]`, if there is one; with `expose_hidden`, h₀ `[1, N, H]` and, of an
//! LSTM, c₀ `[1, N, H]`, H being `num_output`. Tops: `[T, N, H]`; with `expose_hidden` also h_T and, of an LSTM, c_T.
//! Parameters, with G = 4 H gates of an LSTM and H of an RNN: W_x `[G, x's]`, b `[G]`, W_s `[G, s's]` if there is a static input,
//! W_h `[G, H]`; of an RNN also W_o `[H, H]` and b_o `[H]`. `debug_info` has no effect.
//!
//! Without `expose_hidden` a pass begins with what the one before it, of the same net, left: h_T and c_T. They are not learned and
//! stand in no file of weights; a resumed run begins with those of its snapshot.
//!
//! Gradient: that of the formulas through all T steps, and none through κ or what a pass before left. Caffe lets no gradient
//! through h₀, c₀, h_T and c_T that are exposed; here they are bottoms and tops like others. For κ that are neither 0 nor 1 Caffe's
//! gradient by f' differs from that of its forward.
//!
//! Source: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with Gers et al.'s forget gate (2000); Caffe's layers of
//! these names.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result, Shape,
    ensure,
};
use lgm_cpu::recurrent::{
    LstmStep, Next, Offset, join_gradients, lstm_backward, lstm_forward, scale_rows, tanh_backward, tanh_forward,
};
use lgm_cpu::{Gemm, MatMut, MatRef, PackedFactor};
use lgm_proto::{LayerParameter, RecurrentParameter};

use crate::common::broadcast::Broadcast;

mod device;
#[cfg(test)]
mod tests;
mod unit;

pub use unit::LstmUnit;

/// LSTM; see the module.
pub struct Lstm;

impl Lstm {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Recurrent::node(param, true)
    }
}

/// RNN; see the module.
pub struct Rnn;

impl Rnn {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Recurrent::node(param, false)
    }
}

/// Both layers.
struct Recurrent {
    param: RecurrentParameter,
    lstm: bool,
    /// H.
    units: usize,
    /// T.
    steps: usize,
    /// N.
    streams: usize,
    /// Elements of a stream's x at a step.
    inputs: usize,
    /// Elements of a stream's static input.
    statics: Option<usize>,
    /// How b is repeated along the gates, and b_o along the top.
    biases: [Broadcast; 2],
}

/// Scratch memory, by number.
mod scratch {
    /// Gates, of forward where nothing is saved, or their gradients: [T, N, G].
    pub const GATES: usize = 0;
    /// The rest; see [`super::Recurrent::rest`].
    pub const REST: usize = 1;
}

/// Saved memory, by number.
mod saved {
    /// The gates after σ and tanh; of an RNN, h: [T, N, G].
    pub const GATES: usize = 0;
    /// κ_t · h_{t−1}: [T, N, H].
    pub const HIDDEN: usize = 1;
    /// c₀ to c_T, of an LSTM: [T + 1, N, H].
    pub const CELLS: usize = 2;
}

/// Parameters, by number.
mod param {
    pub const X: usize = 0;
    pub const BIAS: usize = 1;
}

impl Recurrent {
    fn node(param: &LayerParameter, lstm: bool) -> Result<Node> {
        let param = param.recurrent_param.clone().unwrap_or_default();
        let units = param.num_output() as usize;
        ensure!(units > 0, "recurrent_param needs a num_output of at least 1");
        let (steps, streams, inputs, statics) = (0, 0, 0, None);
        Node::compute(Recurrent { param, lstm, units, steps, streams, inputs, statics, biases: Default::default() })
    }

    /// Blobs that hold what goes from a step to the next: h and, of an LSTM, c.
    fn states(&self) -> usize {
        1 + usize::from(self.lstm)
    }

    fn exposed(&self) -> bool {
        self.param.expose_hidden()
    }

    /// G.
    fn gates(&self) -> usize {
        if self.lstm { 4 * self.units } else { self.units }
    }

    /// N · H.
    fn step(&self) -> usize {
        self.streams * self.units
    }

    /// The first exposed bottom.
    fn first_state(&self) -> usize {
        2 + usize::from(self.statics.is_some())
    }

    /// W_s.
    fn w_static(&self) -> usize {
        2
    }

    /// W_h.
    fn w_hidden(&self) -> usize {
        2 + usize::from(self.statics.is_some())
    }

    /// W_o; b_o is the next.
    fn w_output(&self) -> usize {
        self.w_hidden() + 1
    }

    /// The first parameter that holds what goes from a pass to the next.
    fn first_carried(&self) -> usize {
        self.w_hidden() + if self.lstm { 1 } else { 3 }
    }

    /// Elements of scratch besides the gates: forward, the static offset [N, G] and, where nothing is saved, what would be;
    /// backward, the gradients of h and c, of the static offset, and of an RNN's W_o · h + b_o and h.
    fn rest(&self) -> usize {
        let (all, step, offset) = (self.steps * self.step(), self.step(), self.streams * self.gates());
        let cells = if self.lstm { all + step } else { 0 };
        offset + (all + cells).max(2 * step + if self.lstm { 0 } else { 2 * all })
    }

    /// Refuses a bottom of another shape.
    fn expect(bottoms: &[BlobSpec], i: usize, what: &str, expected: impl Into<Shape>) -> Result<()> {
        let (expected, found) = (expected.into(), bottoms[i].shape.clone());
        if found == expected {
            Ok(())
        } else {
            Err(Error::Shape { what: format!("bottom {i}, {what}"), expected, found })
        }
    }
}

impl Layer for Recurrent {
    fn arity(&self) -> Arity {
        let exposed = if self.exposed() { self.states() } else { 0 };
        Arity::range(2 + exposed..=3 + exposed, 1 + exposed..=1 + exposed)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let x = &bottoms[0];
        ensure!(
            x.shape.len() >= 2,
            "bottom 0 must have an axis of time steps and one of streams before all others, found shape {}",
            x.shape
        );
        let (steps, streams) = (x.shape[0], x.shape[1]);
        ensure!(x.shape.count() > 0, "bottom 0 must not be empty, found shape {}", x.shape);
        Self::expect(bottoms, 1, "which tells where streams go on", [steps, streams])?;
        (self.steps, self.streams, self.inputs) = (steps, streams, x.shape.count_from(2));
        let exposed = if self.exposed() { self.states() } else { 0 };
        self.statics = None;
        if bottoms.len() > 2 + exposed {
            let shape = &bottoms[2].shape;
            ensure!(
                !shape.is_empty() && shape[0] == streams && shape.count() > 0,
                "bottom 2, the static input, must have the {streams} streams along its first axis, found shape {shape}"
            );
            self.statics = Some(shape.count_from(1));
        }
        let (units, gates) = (self.units, self.gates());
        for i in 0..exposed {
            let what = ["the first hidden state", "the first cells"][i];
            Self::expect(bottoms, self.first_state() + i, what, [1, streams, units])?;
        }
        let state = Shape::from([1, streams, units]);
        let mut plan = Plan::new(vec![x.with_shape(Shape::from([steps, streams, units]))]);
        plan.tops.resize(tops, x.with_shape(state.clone()));
        let (filler, bias_filler) = (self.param.weight_filler.as_ref(), self.param.bias_filler.as_ref());
        plan.params = vec![ParamSpec::new([gates, self.inputs], filler), ParamSpec::new([gates], bias_filler)];
        plan.params.extend(self.statics.map(|statics| ParamSpec::new([gates, statics], filler)));
        plan.params.push(ParamSpec::new([gates, units], filler));
        if !self.lstm {
            plan.params.extend([ParamSpec::new([units, units], filler), ParamSpec::new([units], bias_filler)]);
        }
        if !self.exposed() {
            plan.params.extend((0..self.states()).map(|_| ParamSpec::carried(state.clone())));
        }
        let spec = |shape: &[usize]| x.with_shape(Shape::from(shape));
        plan.saved = vec![spec(&[steps, streams, gates]), spec(&[steps, streams, units])];
        if self.lstm {
            plan.saved.push(spec(&[steps + 1, streams, units]));
        }
        plan.scratch = vec![spec(&[steps, streams, gates]), spec(&[self.rest()])];
        plan.backward_bottoms = (0..self.first_state()).collect();
        plan.backward_tops = if self.lstm { vec![] } else { vec![0] };
        plan.no_gradient = vec![1];
        let rows = lgm_core::count(&[steps, streams]);
        let products = lgm_core::count(&[rows, gates, self.inputs + units]);
        let output = if self.lstm { 0 } else { lgm_core::count(&[rows, units, units]) };
        plan.flops = 2 * (products as u64).saturating_add(output as u64);
        let bias = |width: usize| Broadcast::new(&Shape::from([rows, width]), 1, &Shape::from([width]), "the bias");
        self.biases = [bias(gates)?, bias(units)?];
        Ok(plan)
    }
}

/// C ← A · B + β · C.
fn product<T: Float>(a: MatRef<'_, T>, b: MatRef<'_, T>, add: bool, c: MatMut<'_, T>) {
    let beta = if add { T::one() } else { T::zero() };
    Gemm { alpha: T::one(), a, b, beta, c }.run();
}

impl HostLayer for Recurrent {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (t, n, h, g, step) = (self.steps, self.streams, self.units, self.gates(), self.step());
        let (x, cont) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let (spare, y) = (io.scratch::<T>(scratch::REST)?, io.top::<T>(0)?);
        let (offsets, spare) = spare.split_at_mut(n * g);
        let (hidden, cells) = spare.split_at_mut(t * step);
        let gates = match io.saved::<T>(saved::GATES)? {
            Some(gates) => gates,
            None => io.scratch::<T>(scratch::GATES)?,
        };
        let hidden = io.saved::<T>(saved::HIDDEN)?.unwrap_or(hidden);
        let cells = io.saved::<T>(saved::CELLS)?.unwrap_or(cells);

        product(
            MatRef::new(x, t * n, self.inputs),
            MatRef::new(io.param(param::X)?, g, self.inputs).t(),
            false,
            MatMut::new(gates, t * n, g),
        );
        let bias = io.param::<T>(param::BIAS)?;
        let offset = match self.statics {
            Some(statics) => {
                offsets.chunks_exact_mut(g).for_each(|row| row.copy_from_slice(bias));
                let w = MatRef::new(io.param::<T>(self.w_static())?, g, statics).t();
                product(MatRef::new(io.bottom(2)?, n, statics), w, true, MatMut::new(offsets, n, g));
                Offset::Each(&*offsets)
            }
            None => Offset::Shared(bias),
        };

        let mut last: [&mut [T]; 2] = Default::default();
        for (i, last) in last.iter_mut().enumerate().take(self.states()) {
            *last = if self.exposed() { io.top(1 + i)? } else { io.param_mut(self.first_carried() + i)? };
            let first = if self.exposed() { io.bottom(self.first_state() + i)? } else { &**last };
            match i {
                0 => scale_rows(h, first, &cont[..n], hidden),
                _ => cells[..step].copy_from_slice(first),
            }
        }
        let w = PackedFactor::new(MatRef::new(io.param::<T>(self.w_hidden())?, g, h).t());
        for (s, gates) in gates.chunks_exact_mut(n * g).enumerate() {
            let (here, next) = hidden[s * step..].split_at_mut(step);
            w.multiply(MatRef::new(here, n, h), true, MatMut::new(gates, n, g));
            let next = (s + 1 < t).then(|| Next { cont: &cont[(s + 1) * n..][..n], hidden: &mut next[..step] });
            if self.lstm {
                let (previous, cell) = cells[s * step..][..2 * step].split_at_mut(step);
                let out = &mut y[s * step..][..step];
                lstm_forward(h, (gates, offset), (previous, &cont[s * n..][..n]), (cell, out), next);
            } else {
                tanh_forward((n, h), gates, offset, next);
            }
        }
        let outputs: &[T] = if self.lstm { y } else { gates };
        last[0].copy_from_slice(&outputs[(t - 1) * step..][..step]);
        if self.lstm {
            last[1].copy_from_slice(&cells[t * step..][..step]);
        } else {
            let w = MatRef::new(io.param::<T>(self.w_output())?, h, h).t();
            product(MatRef::new(gates, t * n, h), w, false, MatMut::new(y, t * n, h));
            tanh_forward((t * n, h), y, Offset::Shared(io.param(self.w_output() + 1)?), None);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (t, n, h, g, step) = (self.steps, self.streams, self.units, self.gates(), self.step());
        let (cont, dy) = (io.bottom::<T>(1)?, io.top_diff::<T>(0)?);
        let (dgates, spare) = (io.scratch::<T>(scratch::GATES)?, io.scratch::<T>(scratch::REST)?);
        let (doffsets, spare) = spare.split_at_mut(n * g);
        let (dh, spare) = spare.split_at_mut(step);
        let (dc, spare) = spare.split_at_mut(step);
        let (gates, hidden) = (io.saved::<T>(saved::GATES)?, io.saved::<T>(saved::HIDDEN)?);
        let cells = if self.lstm { io.saved::<T>(saved::CELLS)? } else { &[] };
        let dy = if self.lstm {
            dy
        } else {
            let (dz, dout) = spare.split_at_mut(t * step);
            let dz = &mut dz[..t * step];
            tanh_backward(io.top::<T>(0)?, dy, dz);
            let w = io.param::<T>(self.w_output())?;
            if let Some(dw) = io.param_diff::<T>(self.w_output())? {
                product(MatRef::new(dz, t * n, h).t(), MatRef::new(gates, t * n, h), true, MatMut::new(dw, h, h));
            }
            if let Some(db) = io.param_diff::<T>(self.w_output() + 1)? {
                self.biases[1].add_sums(dz, None, db);
            }
            product(MatRef::new(dz, t * n, h), MatRef::new(w, h, h), false, MatMut::new(dout, t * n, h));
            &*dout
        };

        let w = PackedFactor::new(MatRef::new(io.param::<T>(self.w_hidden())?, g, h));
        for (i, last) in [&mut *dh, &mut *dc].into_iter().enumerate() {
            match self.exposed() && i < self.states() {
                true => last.copy_from_slice(io.top_diff(1 + i)?),
                false => last.fill(T::zero()),
            }
        }
        for (s, dgates) in dgates.chunks_exact_mut(n * g).enumerate().rev() {
            let next = (s + 1 < t).then(|| &cont[(s + 1) * n..][..n]);
            join_gradients((n, h), &dy[s * step..], next, dh);
            let gates = &gates[s * n * g..][..n * g];
            if self.lstm {
                let (previous, cell) = (&cells[s * step..][..step], &cells[(s + 1) * step..][..step]);
                lstm_backward(h, LstmStep { gates, previous, cell, cont: &cont[s * n..][..n] }, dh, dc, dgates);
            } else {
                tanh_backward(gates, dh, dgates);
            }
            if s > 0 || self.exposed() {
                w.multiply(MatRef::new(dgates, n, g), false, MatMut::new(dh, n, h));
            }
        }
        if self.exposed() {
            if let Some(dx) = io.bottom_diff::<T>(self.first_state())? {
                scale_rows(h, dh, &cont[..n], dx);
            }
            if self.lstm
                && let Some(dx) = io.bottom_diff::<T>(self.first_state() + 1)?
            {
                dx.copy_from_slice(dc);
            }
        }

        let by_gates = MatRef::new(dgates, t * n, g);
        if let Some(dw) = io.param_diff::<T>(self.w_hidden())? {
            product(by_gates.t(), MatRef::new(hidden, t * n, h), true, MatMut::new(dw, g, h));
        }
        if let Some(dw) = io.param_diff::<T>(param::X)? {
            product(
                by_gates.t(),
                MatRef::new(io.bottom(0)?, t * n, self.inputs),
                true,
                MatMut::new(dw, g, self.inputs),
            );
        }
        if let Some(db) = io.param_diff::<T>(param::BIAS)? {
            self.biases[0].add_sums(dgates, None, db);
        }
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            let w = MatRef::new(io.param::<T>(param::X)?, g, self.inputs);
            product(by_gates, w, false, MatMut::new(dx, t * n, self.inputs));
        }
        if let Some(statics) = self.statics {
            doffsets.copy_from_slice(&dgates[..n * g]);
            dgates.chunks_exact(n * g).skip(1).for_each(|step| join_gradients((n, g), step, None, doffsets));
            let by_offsets = MatRef::new(doffsets, n, g);
            if let Some(dw) = io.param_diff::<T>(self.w_static())? {
                product(by_offsets.t(), MatRef::new(io.bottom(2)?, n, statics), true, MatMut::new(dw, g, statics));
            }
            if let Some(dx) = io.bottom_diff::<T>(2)? {
                let w = MatRef::new(io.param::<T>(self.w_static())?, g, statics);
                product(by_offsets, w, false, MatMut::new(dx, n, statics));
            }
        }
        Ok(())
    }
}
