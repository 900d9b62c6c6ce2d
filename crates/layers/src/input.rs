//! Input: blobs that whoever runs the net fills.
//!
//! Shapes: no bottoms; tops of the given `shape`s, one for each or one for all. Forward leaves what the tops hold.
//!
//! Source: Caffe's layer of this name. Caffe allows no shape at all, to be set before the first pass; our nets are laid
//! out when they are built, so a shape is required.

use lgm_core::{Arity, BlobSpec, BuildCx, DType, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_proto::{InputParameter, LayerParameter};

use crate::common::shapes::top_shapes;

/// The layer; see the module.
pub struct Input {
    param: InputParameter,
    dtype: DType,
}

impl Input {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        Node::host_only(Input { param: param.input_param.clone().unwrap_or_default(), dtype: cx.dtype })
    }
}

impl Layer for Input {
    fn arity(&self) -> Arity {
        Arity::range(0..=0, 1..=usize::MAX)
    }

    fn plan(&mut self, _bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        ensure!(!self.param.shape.is_empty(), "input_param needs a shape: input_param {{ shape {{ dim: … }} }}");
        let tops = top_shapes(&self.param.shape, tops)?.into_iter().map(|s| BlobSpec::new(s, self.dtype)).collect();
        Ok(Plan { no_backward: true, ..Plan::new(tops) })
    }
}

impl HostLayer for Input {
    fn forward<T: Float>(&self, _io: Fwd<'_, Host>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::{Phase, Shape};
    use lgm_testkit::{Harness, config_error};

    fn layer(tops: &str, param: &str) -> String {
        format!("layer {{ name: 'i' type: 'Input' {tops} input_param {{ {param} }} }}")
    }

    #[test]
    fn shapes_are_shared_or_one_for_each() {
        let shapes = |tops: &str, param: &str| -> Vec<Shape> {
            let harness = Harness::new(&registry(), &layer(tops, param), Phase::Test, DType::F32, &[]).unwrap();
            harness.plan.tops.into_iter().map(|s| s.shape).collect()
        };
        let (two, pair) = ("top: 'a' top: 'b'", "shape { dim: 2 dim: 3 }");
        assert_eq!(shapes(two, pair), [Shape::from([2, 3]), Shape::from([2, 3])]);
        assert_eq!(shapes(two, &format!("{pair} shape {{ dim: 4 }}")), [Shape::from([2, 3]), Shape::from([4])]);
        assert_eq!(shapes("top: 'a'", "shape { }"), [Shape::scalar()]);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer("top: 'a'", ""), &[], &["needs a shape"]);
        config_error(&registry(), &layer("top: 'a'", "shape { dim: 1 } shape { dim: 2 }"), &[], &["once", "found 2"]);
        config_error(&registry(), &layer("top: 'a'", "shape { dim: -1 }"), &[], &["negative extent"]);
        let huge = "shape { dim: 4000000000 dim: 4000000000 dim: 4000000000 }";
        config_error(&registry(), &layer("top: 'a'", huge), &[], &["more elements than memory"]);
    }
}
