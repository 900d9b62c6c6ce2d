//! Flatten: the axes from `axis` to `end_axis`, both included, become one.
//!
//! Shapes: one bottom; one top with as many elements, in the same order. Top and bottom share data and diff memory.
//! Gradient: the top's, unchanged.
//!
//! Source: Caffe's layer of this name. Caffe, given an `end_axis` before `axis`, makes an axis of extent 1; we refuse.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan,
    Result, ensure,
};
use lgm_proto::{FlattenParameter, LayerParameter};

use crate::common::view;

/// The layer; see the module.
pub struct Flatten {
    param: FlattenParameter,
}

impl Flatten {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Flatten { param: param.flatten_param.unwrap_or_default() })
    }
}

impl Layer for Flatten {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let (start, end) = (shape.axis(self.param.axis())?, shape.axis(self.param.end_axis())?);
        ensure!(
            start <= end,
            "end_axis {} lies before axis {} in the bottom's shape {shape}",
            self.param.end_axis(),
            self.param.axis()
        );
        Ok(view::plan(&bottoms[0], shape.splice(start..end + 1, [shape.span(start..end + 1)])))
    }
}

impl HostLayer for Flatten {
    fn forward<T: Float>(&self, io: Fwd<'_, Host>) -> Result<()> {
        view::forward::<T>(io)
    }

    fn backward<T: Float>(&self, io: Bwd<'_, Host>) -> Result<()> {
        view::backward::<T>(io)
    }
}

impl DeviceLayer for Flatten {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, io: Fwd<'_, Device>) -> Result<()> {
        view::forward_on(io)
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        view::backward_on(io)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'f' type: 'Flatten' bottom: 'x' top: 'y' flatten_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/flatten_0"),
                Case::new(layer("axis: 1 end_axis: 2")).bottom([2, 3, 2, 2]),
                Case::new(layer("axis: 0 end_axis: -2")).bottom([2, 3, 2]),
            ],
        );
    }

    #[test]
    fn extents() {
        for (param, want) in
            [("", &[2, 60][..]), ("axis: 2", &[2, 3, 20]), ("axis: -3 end_axis: -2", &[2, 12, 5]), ("axis: 0", &[120])]
        {
            let bottom = [2, 3, 4, 5].into();
            let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F32, &[bottom]).unwrap();
            assert_eq!(&*harness.plan.tops[0].shape, want);
        }
    }

    #[test]
    fn mistakes_are_named() {
        config_error(
            &registry(),
            &layer("axis: 2 end_axis: 1"),
            &[[2, 3, 4].into()],
            &["end_axis 1", "axis 2", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer("axis: 3"), &[[2, 3, 4].into()], &["axis 3", "out of range"]);
    }
}
