//! Silence: takes bottoms that nothing else reads, so that they do not count as outputs of the net.
//!
//! Shapes: any bottoms, no tops. Gradient: 0.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result};
use lgm_proto::LayerParameter;

mod device;

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

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::Rig;

    #[test]
    fn no_gradient_comes_back() {
        let text = "layer { name: 's' type: 'Silence' bottom: 'a' bottom: 'b' }";
        let rig = Rig::new(&registry(), text, Phase::Train, DType::F32, &[[3].into(), [2].into()]).unwrap();
        let mut inputs = rig.forward_inputs(&[&[1.0; 3], &[2.0; 2]]).unwrap();
        let out = rig.run(&inputs).unwrap();
        assert_eq!(out.bottom_diffs, [Some(vec![0.0; 3]), Some(vec![0.0; 2])]);
        inputs.want_bottoms[0] = false;
        assert_eq!(rig.run(&inputs).unwrap().bottom_diffs, [None, Some(vec![0.0; 2])]);
    }
}
