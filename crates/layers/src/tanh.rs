//! TanH: y = tanh x.
//!
//! Gradient: dx = dy · (1 − y²). Shapes: one top like the bottom; runs in place. Source: Caffe's layer of this name.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result};
use lgm_cpu::elementwise::map_into;
use lgm_cpu::math;
use lgm_proto::LayerParameter;

use crate::pointwise::map2;

mod device;

/// The layer; see the module.
pub struct TanH {
    count: usize,
}

impl TanH {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(TanH { count: 0 })
    }
}

impl Layer for TanH {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.count = bottoms[0].shape.count();
        let flops = 4 * bottoms[0].shape.count() as u64;
        Ok(Plan { backward_tops: vec![0], flops, ..Plan::elementwise(&bottoms[0]) })
    }
}

impl HostLayer for TanH {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        map_into(io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?, math::tanh);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (y, dy) = (io.top::<T>(0)?, io.top_diff_unless_shared::<T>(0)?);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            map2(y, dy, dx, |y, dy| dy * (T::one() - y * y));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Draw, check};

    #[test]
    fn cases() {
        let layer = r#"layer { name: "t" type: "TanH" bottom: "x" top: "y" }"#;
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/tanh_0"),
                Case::new(layer).bottom_of([4, 5], Draw::Normal(0.0, 2.0)),
                Case::new(layer).bottom_of([4], Draw::Given(vec![-1e4, -20.0, 0.0, 1e4])),
            ],
        );
    }
}
