//! Mean: the mean of every K consecutive items, with K = `reduction_param.axis` (views of one image, say).
//!
//! y\[n\] = 1/K · Σ x\[nK + k\] over k < K. Gradient: each of the K gets dy/K. Shapes: bottom [N, …]; top [N/K, …].
//!
//! Source: the L-GM fork's layer of this name, which runs on the CPU and passes no gradient down; ours does. It drops what
//! is left over where K does not divide N; ours refuses that.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Float, Formats, Fwd, Host, HostLayer, Layer,
    Node, Offer, Plan, Result, ensure,
};
use lgm_proto::LayerParameter;

use crate::common::repeat::Repeat;

/// The layer; see the module.
pub struct Mean {
    items: usize,
    repeat: Repeat,
}

impl Mean {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let given = param.reduction_param.unwrap_or_default().axis();
        let items = usize::try_from(given).ok().filter(|items| *items > 0).ok_or_else(|| {
            Error::config(format!("reduction_param's axis is the number of items of a mean: at least 1, found {given}"))
        })?;
        Node::compute(Mean { items, repeat: Repeat::default() })
    }

    fn coeff(&self) -> f64 {
        1.0 / self.items as f64
    }
}

impl Layer for Mean {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (shape, items) = (&bottoms[0].shape, self.items);
        let whole = shape.first().filter(|n| n.is_multiple_of(items));
        let Some(n) = whole.map(|n| n / items) else {
            let what =
                format!("the bottom {shape} must have a multiple of {items} items, of which each mean takes {items}");
            return Err(Error::config(what));
        };
        ensure!(shape.count() > 0, "the bottom {shape} has no elements");
        self.repeat = Repeat::new(Axes3::new(n, items, shape.count_from(1)));
        Ok(Plan { flops: shape.count() as u64, ..Plan::new(vec![bottoms[0].with_shape(shape.splice(0..1, [n]))]) })
    }
}

impl HostLayer for Mean {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        self.repeat.fold(io.top::<T>(0)?, io.bottom::<T>(0)?, self.coeff());
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.repeat.expand(dx, io.top_diff::<T>(0)?, self.coeff());
        }
        Ok(())
    }
}

impl DeviceLayer for Mean {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        // An item's elements are all alone, in whatever order they lie.
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        self.repeat.fold_on(io.call, y, io.bottom(0)?, self.coeff())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        self.repeat.expand_on(io.call, dx, io.top_diff(0)?, self.coeff())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(items: i32) -> String {
        format!("layer {{ name: 'm' type: 'Mean' bottom: 'x' top: 'y' reduction_param {{ axis: {items} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/fork_mean"),
                Case::new(layer(2)).bottom([4, 3, 2, 2]),
                Case::new(layer(1)).bottom([3, 2]),
                Case::new(layer(5)).bottom([5]),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(0), &[[2, 3].into()], &["number of items", "found 0"]);
        config_error(&registry(), &layer(-1), &[[2, 3].into()], &["found -1"]);
        config_error(&registry(), &layer(4), &[[6, 3].into()], &["(6, 3)", "multiple of 4 items"]);
        config_error(&registry(), &layer(2), &[[4, 0].into()], &["(4, 0) has no elements"]);
    }
}
