//! Softmax along one axis: yᵢ = eˣⁱ / Σⱼ eˣʲ, from x less its largest value.
//!
//! Gradient: dxᵢ = yᵢ · (dyᵢ − Σⱼ dyⱼ·yⱼ). Shapes: one top like the bottom, softmax along `axis` (1) for each position of
//! the others; runs in place. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result,
};
use lgm_cpu::softmax::{softmax, softmax_backward};
use lgm_proto::LayerParameter;

use crate::common::softmax;

/// The layer; see the module.
pub struct Softmax {
    axis: i32,
    along: Axes3,
}

impl Softmax {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Softmax { axis: param.softmax_param.unwrap_or_default().axis(), along: Axes3::default() })
    }
}

impl Layer for Softmax {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let axis = bottoms[0].shape.axis(self.axis)?;
        self.along = Axes3::around(&bottoms[0].shape, axis..axis + 1);
        let flops = 6 * bottoms[0].shape.count() as u64;
        Ok(Plan { backward_tops: vec![0], flops, ..Plan::elementwise(&bottoms[0]) })
    }
}

impl HostLayer for Softmax {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        softmax(io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?, self.along);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (y, dy) = (io.top::<T>(0)?, io.top_diff_unless_shared::<T>(0)?);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            softmax_backward(y, dy, dx, self.along);
        }
        Ok(())
    }
}

impl DeviceLayer for Softmax {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        softmax::forward_on(self.along, io.queue(), y, x)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (y, dy) = (io.top(0)?, io.top_diff_unless_shared(0).unwrap_or(dx));
        softmax::backward_on(self.along, io.queue(), dx, dy, y)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn softmax(axis: i32) -> Case {
        Case::new(format!(
            r#"layer {{ name: "s" type: "Softmax" bottom: "x" top: "y" softmax_param {{ axis: {axis} }} }}"#
        ))
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/softmax_0"),
                Case::golden("layers/softmax_1"),
                softmax(1).bottom([3, 37]),
                softmax(0).bottom([5, 3]),
                softmax(-1).bottom([2, 3, 4]),
                // More positions than are worked on at once.
                softmax(1).bottom([2, 3, 7, 11]),
                softmax(1).bottom_of([2, 3], Fill::Given(vec![1e4, -1e4, 0.0, 88.0, 89.0, 90.0])),
            ],
        );
    }

    #[test]
    fn the_axis_must_exist() {
        let text = r#"layer { name: "s" type: "Softmax" bottom: "x" top: "y" softmax_param { axis: 2 } }"#;
        config_error(&crate::tests::registry(), text, &[[4, 5].into()], &["axis 2", "(4, 5)"]);
    }
}
