//! ReLU: y = max(x, 0) + a · min(x, 0), with `negative_slope` a (0 unless given).
//!
//! Gradient: dx = dy for positive x, a · dy elsewhere. With a ≥ 0 the sign of y tells, so backward reads the top and the
//! layer runs in place; with a < 0 it reads the bottom.
//!
//! Shapes: one top like the bottom. Source: Nair & Hinton (2010); the leaky form, Maas et al. (2013).
//! Where we differ from Caffe: with a negative slope Caffe in place takes the wrong branch in backward; ours does not
//! run in place then.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostRun, Layer, Node, Plan, Result, ensure};
use lgm_cpu::elementwise::map_into;
use lgm_proto::LayerParameter;

use crate::pointwise::map2;

mod device;

/// The layer; see the module.
pub struct ReLU {
    slope: f32,
    count: usize,
}

/// Whether a layer is a ReLU that clears what is negative.
pub(crate) fn is_plain(param: &LayerParameter) -> bool {
    param.r#type() == "ReLU" && param.relu_param.unwrap_or_default().negative_slope() == 0.0
}

impl ReLU {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let slope = param.relu_param.unwrap_or_default().negative_slope();
        ensure!(slope.is_finite(), "negative_slope must be a finite number, found {slope}");
        Node::compute(ReLU { slope, count: 0 })
    }

    fn by_top(&self) -> bool {
        self.slope >= 0.0
    }
}

impl Layer for ReLU {
    crate::on_device::on_device!();

    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.count = bottoms[0].shape.count();
        let mut plan = Plan { flops: bottoms[0].shape.count() as u64, ..Plan::elementwise(&bottoms[0]) };
        if self.by_top() {
            plan.backward_tops = vec![0];
        } else {
            plan.backward_bottoms = vec![0];
            plan.share_data.clear();
        }
        Ok(plan)
    }
}

impl HostRun for ReLU {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let zero = T::zero();
        let (src, dst) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        if self.slope == 0.0 {
            map_into(src, dst, |x| if x < zero { zero } else { x });
        } else {
            let slope = T::of(self.slope.into());
            map_into(src, dst, |x| if x < zero { slope * x } else { x });
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (zero, slope) = (T::zero(), T::of(self.slope.into()));
        let sign = if self.by_top() { io.top::<T>(0)? } else { io.bottom::<T>(0)? };
        let dy = io.top_diff_unless_shared::<T>(0)?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            map2(sign, dy, dx, |y, dy| if y > zero { dy } else { slope * dy });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, check, config_error};

    fn leaky(slope: f32) -> Case {
        let text = format!(
            r#"layer {{ name: "r" type: "ReLU" bottom: "x" top: "y" relu_param {{ negative_slope: {slope} }} }}"#
        );
        Case::new(text).bottom([3, 4, 5]).kink(0, 0.0, 1e-3)
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/relu_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/relu_leaky_0").kink(0, 0.0, 1e-3),
                leaky(0.0),
                leaky(0.1),
                leaky(2.0),
                leaky(-0.5),
            ],
        );
    }

    #[test]
    fn a_slope_must_be_a_number() {
        let text = r#"layer { name: "r" type: "ReLU" bottom: "x" top: "y" relu_param { negative_slope: nan } }"#;
        config_error(&crate::tests::registry(), text, &[[2].into()], &["negative_slope"]);
    }
}
