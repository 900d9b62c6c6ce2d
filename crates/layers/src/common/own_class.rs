//! Losses that read the score of each item's own class and no other: 1/N · Σ f(x_label).
//!
//! Gradient: dL/N · f′(x) for the label's class, else 0.

use lgm_core::{Float, Grid, Node, Result};
use lgm_cpu::elementwise::set;

use super::item_loss::{self, ItemLoss, Scored, Spec};
use super::labels::Items;

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
    item_loss::node(OwnClassLoss { _of: of })
}

struct OwnClassLoss<F> {
    _of: F,
}

impl<F: OwnClass> ItemLoss for OwnClassLoss<F> {
    fn loss<T: Float>(&self, scored: Scored<'_, T>, _sums: &mut [T]) -> f64 {
        scored.items().fold(0.0, |sum, (x, own)| sum + F::loss(x[own]).f64())
    }

    fn gradient<T: Float>(&self, scored: Scored<'_, T>, scale: T, dx: &mut [T]) {
        set(T::zero(), dx);
        for (dx, (x, own)) in dx.chunks_mut(scored.classes().max(1)).zip(scored.items()) {
            dx[own] = scale * F::slope(x[own]);
        }
    }

    fn spec(&self, items: Items) -> Spec {
        Spec {
            partials: ("own_class_partials", items.items),
            backward: ("own_class_backward", items.count(), Grid::elements(items.count())),
            number: F::NUMBER.into(),
            flops: 2 * items.items,
        }
    }
}
