//! PReLU: y = max(x, 0) + a · min(x, 0), with learned slopes a, one for each channel (axis 1) or, with
//! `channel_shared`, one for all.
//!
//! Gradient: dx = dy for positive x, a · dy elsewhere; da = Σ dy · x over the elements of the channel that are not
//! positive. Shapes: bottom [N, C, …]; one top like it; parameter \[C\], or a scalar when shared, filled by `filler` (0.25
//! when absent).
//!
//! Source: He et al., "Delving Deep into Rectifiers" (2015), and Caffe's layer of this name.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Formats, Fwd, Grid, Host, HostLayer,
    Layer, Node, Offer, ParamSpec, Plan, Result, Shape, args, ensure, kernel,
};
use lgm_cpu::prelu;
use lgm_proto::{LayerParameter, PReLuParameter};

use crate::common::by_channel::ByChannel;

/// The layer; see the module.
pub struct PReLU {
    param: PReLuParameter,
    axes: Axes3,
}

impl PReLU {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(PReLU { param: param.prelu_param.clone().unwrap_or_default(), axes: Axes3::default() })
    }
}

impl Layer for PReLU {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() >= 2, "the bottom must have at least 2 axes, batch and channels, found shape {shape}");
        self.axes = Axes3::around(shape, 1..2);
        let slopes = if self.param.channel_shared() { Shape::scalar() } else { Shape::from([self.axes.channels]) };
        let slopes = match &self.param.filler {
            Some(filler) => ParamSpec::new(slopes, Some(filler)),
            None => ParamSpec::constant(slopes, 0.25),
        };
        Ok(Plan {
            params: vec![slopes],
            scratch: vec![bottoms[0].with_shape([self.axes.channels])],
            backward_bottoms: vec![0],
            flops: 2 * shape.count() as u64,
            ..Plan::elementwise(&bottoms[0])
        })
    }
}

impl HostLayer for PReLU {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, slopes, y) = (io.bottom_unless_shared::<T>(0)?, io.param::<T>(0)?, io.top::<T>(0)?);
        prelu::forward(x, slopes, self.axes, y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, slopes, dy) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.top_diff_unless_shared::<T>(0)?);
        let (dx, sums) = (io.bottom_diff::<T>(0)?, io.scratch::<T>(0)?);
        // With one slope, all elements are those of one channel.
        let axes = if self.param.channel_shared() { Axes3::new(1, 1, x.len()) } else { self.axes };
        prelu::backward(x, dy, slopes, axes, dx, sums);
        if let Some(da) = io.param_diff::<T>(0)? {
            da.iter_mut().zip(&*sums).for_each(|(da, &s)| *da += s);
        }
        Ok(())
    }
}

impl DeviceLayer for PReLU {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![ByChannel::new(self.axes, plan.formats.top(0)).scratch(&plan.tops[0], 1)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (slopes, y) = (io.param(0)?, io.top(0)?);
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let (grid, [rows, width, channels]) = ByChannel::new(self.axes, io.format()).rows()?;
        let shared = u32::from(self.param.channel_shared());
        io.launch(kernel!("prelu_forward"), grid, args![y, x, slopes, shared, rows, width, channels])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let dx = io.bottom_diff(0);
        let (x, slopes, dy) = (io.bottom(0)?, io.param(0)?, io.top_diff_or(0, dx)?);
        let extents = ByChannel::new(self.axes, io.format());
        let shared = u32::from(self.param.channel_shared());
        // Before dx is written, which may be where dy lies.
        if let Some(da) = io.param_diff(0) {
            let partial = io.scratch(0)?;
            let (grid, [outer, channels, inner]) = extents.sums()?;
            io.launch(kernel!("prelu_partials"), grid, args![partial, dy, x, outer, channels, inner])?;
            let finish = args![da, partial, extents.chunks() as u32, channels];
            match self.param.channel_shared() {
                true => io.launch("prelu_finish_shared", Grid::rows(1, 1024), finish)?,
                false => io.launch("prelu_finish", extents.finish(1024), finish)?,
            }
        }
        let Some(dx) = dx else { return Ok(()) };
        let (grid, [rows, width, channels]) = extents.rows()?;
        io.launch(kernel!("prelu_backward"), grid, args![dx, dy, x, slopes, shared, rows, width, channels])
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, check, config_error};

    fn prelu(fields: &str) -> Case {
        Case::new(format!(r#"layer {{ name: "p" type: "PReLU" bottom: "x" top: "y" prelu_param {{ {fields} }} }}"#))
            .kink(0, 0.0, 1e-3)
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/prelu_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/prelu_1").kink(0, 0.0, 1e-3),
                prelu("").bottom([2, 3]),
                prelu("").bottom([2, 3, 2, 5]),
                prelu("channel_shared: true").bottom([3, 2, 7]),
                prelu(r#"filler { type: "constant" value: -0.5 }"#).bottom([2, 3, 4]),
            ],
        );
    }

    #[test]
    fn channels_are_needed() {
        let text = r#"layer { name: "p" type: "PReLU" bottom: "x" top: "y" }"#;
        config_error(&crate::tests::registry(), text, &[[4].into()], &["at least 2 axes", "(4)"]);
    }
}
