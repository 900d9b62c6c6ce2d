//! Split: the bottom, once for each top. Nets insert it wherever several layers read one blob.
//!
//! Shapes: one bottom; any number of tops of its shape, all in its memory. Gradient: Σ over the tops, in their order;
//! the first top's diff may live in the bottom's.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Grid, Host, HostLayer, Layer, Node, Offer,
    Plan, Result, Sharing, args, kernel,
};
use lgm_cpu::elementwise;
use lgm_proto::LayerParameter;

/// The layer; see the module.
pub struct Split {
    tops: usize,
    count: usize,
}

impl Split {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Split { tops: 0, count: 0 })
    }
}

impl Layer for Split {
    fn arity(&self) -> Arity {
        Arity::range(1..=1, 1..=usize::MAX)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        (self.tops, self.count) = (tops, bottoms[0].shape.count());
        Ok(Plan {
            share_data: (0..tops).map(|t| (t, 0, Sharing::View)).collect(),
            share_diff: vec![(0, 0)],
            ..Plan::new(vec![bottoms[0].clone(); tops])
        })
    }
}

impl HostLayer for Split {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if let Some(x) = io.bottom_unless_shared::<T>(0)? {
            for t in 0..self.tops {
                io.top::<T>(t)?.copy_from_slice(x);
            }
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        if let Some(dy) = io.top_diff_unless_shared::<T>(0)? {
            dx.copy_from_slice(dy);
        }
        for t in 1..self.tops {
            elementwise::add(io.top_diff::<T>(t)?, dx);
        }
        Ok(())
    }
}

impl DeviceLayer for Split {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        for t in 0..self.tops {
            if let Some(y) = io.top_unless_view(t) {
                io.queue().copy(io.bottom(0)?, y, element.bytes() * self.count)?;
            }
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let first = io.top_diff_unless_shared(0).unwrap_or(dx);
        if self.tops == 1 && first != dx {
            return io.queue().copy(first, dx, element.bytes() * self.count);
        }
        for t in 1..self.tops {
            let sum = if t == 1 { first } else { dx };
            let args = args![dx, sum, io.top_diff(t)?, 1.0f32, 1.0f32, self.count as i64];
            io.launch(kernel!("eltwise_sum"), Grid::elements(self.count), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check};

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/split"),
                Case::new("layer { name: 's' type: 'Split' bottom: 'x' top: 'a' }").bottom([2, 3]),
                Case::new("layer { name: 's' type: 'Split' bottom: 'x' top: 'a' top: 'b' }").bottom([3, 2]),
            ],
        );
    }
}
