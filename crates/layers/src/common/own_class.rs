//! Losses that read the score of each item's own class and no other: 1/N · Σ f(x_label).
//!
//! Gradient: dL/N · f′(x) for the label's class, else 0. Shapes: bottoms scores [N, …], of as many classes as an item has
//! elements, and N labels; top the loss.

use lgm_core::{
    Arity, BlobSpec, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer, Layer,
    Node, Plan, Result, args,
};
use lgm_cpu::elementwise::set;

use super::labels::{self, Items};
use super::launch::extent;
use super::loss::Tally;

/// f and its derivative.
pub(crate) trait OwnClass: Send + 'static {
    /// How the kernels number it.
    const NUMBER: u32;

    /// f(x).
    fn loss<T: Float>(x: T) -> T;

    /// f′(x).
    fn slope<T: Float>(x: T) -> T;
}

/// The layer that computes f.
pub(crate) fn node<F: OwnClass>(of: F) -> Result<Node> {
    Node::compute(OwnClassLoss { _of: of, items: Items::default() })
}

struct OwnClassLoss<F> {
    _of: F,
    items: Items,
}

impl<F: OwnClass> OwnClassLoss<F> {
    fn tally(&self) -> Tally {
        Tally { terms: self.items.items }
    }
}

impl<F: OwnClass> Layer for OwnClassLoss<F> {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.items = Items::of(bottoms)?;
        let flops = 2 * self.items.items as u64;
        Ok(Plan { backward_bottoms: vec![0, 1], flops, ..Plan::loss(bottoms[0].dtype) })
    }
}

impl<F: OwnClass> HostLayer for OwnClassLoss<F> {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let mut loss = 0.0;
        for i in 0..labels.len() {
            loss += F::loss(x[i * self.items.classes + self.items.class(labels, i)?]).f64();
        }
        io.top::<T>(0)?[0] = T::of(loss / self.items.items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items.items.max(1) as f64);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        set(T::zero(), dx);
        for i in 0..labels.len() {
            let own = i * self.items.classes + self.items.class(labels, i)?;
            dx[own] = scale * F::slope(x[own]);
        }
        Ok(())
    }
}

impl<F: OwnClass> DeviceLayer for OwnClassLoss<F> {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let args = args![partial, x, labels, F::NUMBER, extent(self.items.items)?];
        io.launch("own_class_partials", self.tally().grid(), &self.items.after(args)?)?;
        self.tally().finish(io.call, (loss, None), partial, Some(labels), Some(self.items.z()))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, labels, d_loss, count) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?, self.items.count());
        let args = args![dx, x, labels, d_loss, self.items.z(), F::NUMBER, extent(count)?];
        io.launch("own_class_backward", Grid::elements(count), &self.items.after(args)?)
    }
}
