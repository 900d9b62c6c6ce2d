//! ContinuationIndicator: the indicators that recurrent layers read of sequences that all begin at step 0.
//!
//! Top [`time_step`, N], 0 at step 0 and 1 after it; N is the extent `axis` (0) of the bottom, of which nothing else is read. No
//! backward.
//!
//! Source: the layer of this name of jolibrain's Caffe.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan,
    Result, ensure,
};
use lgm_proto::{ContinuationIndicatorParameter, LayerParameter};

use crate::common::launch::fill;

/// The layer; see the module.
pub struct ContinuationIndicator {
    param: ContinuationIndicatorParameter,
    /// How many sequences there are.
    items: usize,
}

impl ContinuationIndicator {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.continuation_indicator_param.as_deref().copied().unwrap_or_default();
        ensure!(param.time_step() > 0, "time_step, the number of steps, must be given and positive");
        Node::compute(ContinuationIndicator { param, items: 0 })
    }

    fn steps(&self) -> usize {
        self.param.time_step() as usize
    }
}

impl Layer for ContinuationIndicator {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        self.items = shape[shape.axis(self.param.axis())?];
        ensure!(self.items > 0, "axis {} of the bottom {shape} has no sequences", self.param.axis());
        let top = bottoms[0].with_shape([self.steps(), self.items]);
        Ok(Plan { no_backward: true, no_gradient: vec![0], ..Plan::new(vec![top]) })
    }
}

impl HostLayer for ContinuationIndicator {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (first, rest) = io.top::<T>(0)?.split_at_mut(self.items);
        first.fill(T::zero());
        rest.fill(T::one());
        Ok(())
    }
}

impl DeviceLayer for ContinuationIndicator {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats { bottoms: offer.arriving.into(), ..Formats::default() }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (top, items) = (io.top(0)?, self.items);
        fill(io.call, top, 0.0, items)?;
        fill(io.call, top.floats(items), 1.0, items * (self.steps() - 1))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'c' type: 'ContinuationIndicator' bottom: 'x' top: 'y' continuation_indicator_param {{ {param} }} }}"
        )
    }

    #[test]
    fn cases() {
        let case = |param: &str| Case::new(layer(param)).bottom([2, 3, 4]);
        check(&registry(), &[case("time_step: 5"), case("time_step: 1 axis: 1"), case("time_step: 2 axis: -1")]);
    }

    #[test]
    fn sequences_begin_at_step_0() {
        let harness =
            Harness::new(&registry(), &layer("time_step: 3 axis: 1"), Phase::Test, DType::F32, &[[7, 2].into()])
                .unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[9.0; 14]]).unwrap()).unwrap();
        assert_eq!(out.tops[0], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(""), &[[2, 3].into()], &["time_step"]);
        config_error(&registry(), &layer("time_step: 2 axis: 2"), &[[2, 3].into()], &["axis 2"]);
        config_error(&registry(), &layer("time_step: 2"), &[[0, 3].into()], &["axis 0", "(0, 3)"]);
    }
}
