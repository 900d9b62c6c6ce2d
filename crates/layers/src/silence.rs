//! Silence: takes bottoms that nothing else reads, so that they do not count as outputs of the net.
//!
//! Shapes: any bottoms, no tops. Gradient: 0.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan,
    Result, ViewMut,
};
use lgm_proto::LayerParameter;

/// The layer; see the module.
pub struct Silence;

impl Silence {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Silence)
    }
}

impl Layer for Silence {
    fn arity(&self) -> Arity {
        Arity::range(1..=usize::MAX, 0..=0)
    }

    fn plan(&mut self, _bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        Ok(Plan::default())
    }
}

impl HostLayer for Silence {
    fn forward<T: Float>(&self, _io: Fwd<'_, Host>) -> Result<()> {
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        for i in 0..io.bottom_diffs.len() {
            if let Some(dx) = io.bottom_diff::<T>(i)? {
                dx.fill(T::zero());
            }
        }
        Ok(())
    }
}

impl DeviceLayer for Silence {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats { bottoms: offer.arriving.into(), ..Formats::default() }
    }

    fn forward(&self, _io: Fwd<'_, Device>) -> Result<()> {
        Ok(())
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        let formats = io.call.formats;
        let zero = |(i, dx): (usize, &Option<ViewMut<'_, Device>>)| match dx {
            Some(dx) => io.queue().zero(dx.addr(), formats.bottom(i).bytes(dx.shape())),
            None => Ok(()),
        };
        io.bottom_diffs.iter().enumerate().try_for_each(zero)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::Harness;

    #[test]
    fn no_gradient_comes_back() {
        let text = "layer { name: 's' type: 'Silence' bottom: 'a' bottom: 'b' }";
        let harness = Harness::new(&registry(), text, Phase::Train, DType::F32, &[[3].into(), [2].into()]).unwrap();
        let mut inputs = harness.forward_inputs(&[&[1.0; 3], &[2.0; 2]]).unwrap();
        let out = harness.run(&inputs).unwrap();
        assert_eq!(out.bottom_diffs, [Some(vec![0.0; 3]), Some(vec![0.0; 2])]);
        inputs.want_bottoms[0] = false;
        assert_eq!(harness.run(&inputs).unwrap().bottom_diffs, [None, Some(vec![0.0; 2])]);
    }
}
