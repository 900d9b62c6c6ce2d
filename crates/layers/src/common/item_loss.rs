//! Losses over the scores of items with a label each: 1/N · Σ f over the items.
//!
//! Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; top the loss.

use lgm_core::{
    Arg, Arity, BlobSpec, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer,
    Layer, Node, Plan, Result, args,
};

use super::labels::{self, Items};
use super::launch::extent;
use super::loss::Tally;

/// f and its gradient.
pub(crate) trait ItemLoss: Send + 'static {
    /// Σ f; `sums` is scratch for a number of each item.
    fn loss<T: Float>(&self, scored: Scored<'_, T>, sums: &mut [T]) -> f64;

    /// dx = `scale` · f′.
    fn gradient<T: Float>(&self, scored: Scored<'_, T>, scale: T, dx: &mut [T]);

    /// Its kernels.
    fn spec(&self, items: Items) -> Spec;
}

/// The kernels of such a loss.
pub(crate) struct Spec {
    /// Adds up so many terms of Σ f.
    pub partials: (&'static str, usize),
    /// Writes dx; how many it counts to, and its grid.
    pub backward: (&'static str, usize, Grid),
    /// The number that both take.
    pub number: Arg,
    /// Floating-point operations of forward.
    pub flops: usize,
}

/// Scores, and labels of which each names a class.
#[derive(Clone, Copy)]
pub(crate) struct Scored<'a, T> {
    items: Items,
    labels: &'a [T],
    /// The scores.
    pub x: &'a [T],
}

impl<'a, T: Float> Scored<'a, T> {
    fn new(items: Items, x: &'a [T], labels: &'a [T]) -> Result<Scored<'a, T>> {
        items.check(labels)?;
        Ok(Scored { items, labels, x })
    }

    /// The classes.
    pub fn classes(&self) -> usize {
        self.items.classes
    }

    /// The scores of item `i`, and its own class.
    pub fn item(&self, i: usize) -> Option<(&'a [T], usize)> {
        let classes = self.items.classes;
        Some((&self.x[i * classes..][..classes], self.items.known(self.labels, i)?))
    }

    /// The same of every item.
    pub fn items(&self) -> impl Iterator<Item = (&'a [T], usize)> {
        (0..self.items.items).filter_map(|i| self.item(i))
    }
}

/// The layer that computes f.
pub(crate) fn node(of: impl ItemLoss) -> Result<Node> {
    Node::compute(ItemLossLayer { of, items: Items::default() })
}

struct ItemLossLayer<F> {
    of: F,
    items: Items,
}

impl<F: ItemLoss> ItemLossLayer<F> {
    fn tally(&self) -> Tally {
        Tally { terms: self.of.spec(self.items).partials.1 }
    }
}

impl<F: ItemLoss> Layer for ItemLossLayer<F> {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.items = Items::of(bottoms)?;
        Ok(Plan {
            scratch: vec![bottoms[0].with_shape([self.items.items])],
            backward_bottoms: vec![0, 1],
            flops: self.of.spec(self.items).flops as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl<F: ItemLoss> HostLayer for ItemLossLayer<F> {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let scored = Scored::new(self.items, io.bottom::<T>(0)?, io.bottom::<T>(1)?)?;
        let loss = self.of.loss(scored, io.scratch::<T>(0)?);
        io.top::<T>(0)?[0] = T::of(loss / self.items.items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let scored = Scored::new(self.items, io.bottom::<T>(0)?, io.bottom::<T>(1)?)?;
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items.items.max(1) as f64);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.of.gradient(scored, scale, dx);
        }
        Ok(())
    }
}

impl<F: ItemLoss> DeviceLayer for ItemLossLayer<F> {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let Spec { partials: (kernel, terms), number, .. } = self.of.spec(self.items);
        let args = args![partial, x, labels, number, extent(terms)?];
        io.launch(kernel, self.tally().grid(), &self.items.after(args)?)?;
        self.tally().finish(io.call, (loss, None), partial, Some(labels), Some(self.items.z()))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, labels, d_loss) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?);
        let Spec { backward: (kernel, count, grid), number, .. } = self.of.spec(self.items);
        let args = args![dx, x, labels, d_loss, self.items.z(), number, extent(count)?];
        io.launch(kernel, grid, &self.items.after(args)?)
    }
}
