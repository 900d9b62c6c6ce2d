//! Embed: `y = W[x] + b`, the row of a table that each index names: InnerProduct of one-hot vectors without the vectors.
//!
//! Shapes: bottom of any shape, its elements the indices; top that shape and one more axis of N = `num_output`;
//! parameters W `[input_dim, N]` and, unless `bias_term` is false, b `[N]`.
//! Gradient: `dW[r] = Σ dy` over the positions whose index is r, in their order; `db = Σ dy`. None reaches the indices.
//!
//! Source: Caffe's layer of this name. Where we differ: an index that is no whole number from 0 to `input_dim` − 1 is
//! an error that names it (a release build of Caffe reads memory beyond the table).

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result, Shape,
    ensure,
};
use lgm_cpu::for_each_part;
use lgm_proto::{EmbedParameter, LayerParameter};

use crate::common::loops::for_rows;

mod device;

/// Parts of the table that get their gradients in parallel. Each looks at every index, so there are few.
const PARTS: usize = 16;
/// Elements of gradient that are worth more than one part.
const ELEMENTS_FOR_PARTS: usize = 1 << 16;

/// The layer; see the module.
pub struct Embed {
    param: EmbedParameter,
    bottom: Shape,
    rows: usize,
    outputs: usize,
}

impl Embed {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.embed_param.clone().unwrap_or_default();
        let (rows, outputs) = (param.input_dim() as usize, param.num_output() as usize);
        ensure!(outputs > 0, "embed_param needs a num_output of at least 1");
        ensure!(rows > 0, "embed_param needs an input_dim of at least 1: one more than the largest index");
        Node::compute(Embed { param, bottom: Shape::scalar(), rows, outputs })
    }

    /// Whether a value is an index of the table.
    fn is_index(&self, value: f64) -> bool {
        (0.0..self.rows as f64).contains(&value) && value == value.trunc()
    }

    /// Checks that every value is an index of the table.
    fn check<T: Float>(&self, indices: &[T]) -> Result<()> {
        match indices.iter().position(|v| !self.is_index(v.f64())) {
            Some(at) => Err(self.unknown_row(indices[at], at)),
            None => Ok(()),
        }
    }

    #[cold]
    fn unknown_row<T: Float>(&self, index: T, at: usize) -> Error {
        Error::config(format!(
            "index {index} at position {at} of the bottom of shape {} is not a whole number from 0 to {}; check the \
             data, or set input_dim to one more than its largest index",
            self.bottom,
            self.rows - 1
        ))
    }
}

impl Layer for Embed {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        self.bottom = shape.clone();
        let mut plan = Plan::new(vec![bottoms[0].with_shape(shape.splice(shape.len()..shape.len(), [self.outputs]))]);
        plan.params = vec![ParamSpec::new([self.rows, self.outputs], self.param.weight_filler.as_ref())];
        if self.param.bias_term() {
            plan.params.push(ParamSpec::new([self.outputs], self.param.bias_filler.as_ref()));
            plan.flops = plan.tops[0].shape.count() as u64;
        }
        plan.no_gradient = vec![0];
        plan.backward_bottoms = vec![0];
        Ok(plan)
    }
}

impl HostLayer for Embed {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let n = self.outputs;
        let (x, w, y) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.top::<T>(0)?);
        self.check(x)?;
        let b = if self.param.bias_term() { Some(io.param::<T>(1)?) } else { None };
        for_rows(y, n, n, |i, row| {
            row.copy_from_slice(&w[x[i].f64() as usize * n..][..n]);
            if let Some(b) = b {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let n = self.outputs;
        let (x, dy) = (io.bottom::<T>(0)?, io.top_diff::<T>(0)?);
        if let Some(dw) = io.param_diff::<T>(0)? {
            self.check(x)?;
            let parts = if dy.len() < ELEMENTS_FOR_PARTS { 1 } else { PARTS };
            let rows = self.rows.div_ceil(parts);
            // A row of the table lies in one part, which adds to it in the order of the positions.
            for_each_part(dw, rows * n, |part, dw| {
                let first = part * rows;
                for (index, dy) in x.iter().zip(dy.chunks_exact(n)) {
                    let row = (index.f64() as usize).wrapping_sub(first);
                    if row < rows {
                        dw[row * n..][..n].iter_mut().zip(dy).for_each(|(w, &d)| *w += d);
                    }
                }
            });
        }
        let db = if self.param.bias_term() { io.param_diff::<T>(1)? } else { None };
        if let Some(db) = db {
            dy.chunks_exact(n).for_each(|row| db.iter_mut().zip(row).for_each(|(b, &d)| *b += d));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
