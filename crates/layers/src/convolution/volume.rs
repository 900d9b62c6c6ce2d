//! Convolution with three spatial axes on a device, by our own kernels with channels first ([`super::direct`]). Deconvolution's
//! forward is the backward-data pass, and its gradient by its bottoms the forward pass.

use lgm_core::{Axes3, Bwd, Device, DeviceConvolution, DevicePtr, DeviceQueue, Format, Fwd, Plan, Result, Shape};
use lgm_cpu::ConvGeometry;

use super::direct::Own;
use super::geometry::{images, is_pointwise, taps};
use crate::common::by_channel::ByChannel;

/// How the passes run.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    conv: DeviceConvolution<3>,
    /// The layer is Deconvolution.
    transposed: bool,
    bottoms: usize,
    bias: bool,
    relu: bool,
    /// Where scratch begins for the bias gradient's sums, in floats; before it lie patches.
    sums: usize,
}

impl Volume {
    /// The convolution, with a bias and a ReLU at its end or without, if it has three axes.
    pub fn of(
        g: &ConvGeometry,
        transposed: bool,
        batch: usize,
        bottoms: usize,
        (bias, relu): (bool, bool),
    ) -> Option<Volume> {
        let conv = DeviceConvolution {
            batch,
            channels: g.in_channels,
            outputs: g.out_channels,
            windows: g.windows[..].try_into().ok()?,
            groups: g.group,
            format: Format::PLAIN,
        };
        Some(Volume { conv, transposed, bottoms, bias, relu, sums: 0 })
    }

    /// A top, as the bias sees it.
    fn tops(&self) -> ByChannel {
        let c = &self.conv;
        let (channels, positions) =
            if self.transposed { (c.channels, c.input_area()) } else { (c.outputs, c.output_area()) };
        ByChannel::new(Axes3::new(c.batch, channels, positions), c.format)
    }

    /// Sets the layer's scratch.
    pub fn prepare(mut self, plan: &mut Plan) -> Volume {
        let c = &self.conv;
        let patches = if is_pointwise(c) { 0 } else { images(c) * taps(c) * c.output_area() };
        self.sums = patches.next_multiple_of(64);
        let partial = self.tops().scratch(&plan.tops[0], 2).shape.count();
        plan.scratch = vec![plan.tops[0].with_shape(Shape::from([self.sums + partial]))];
        self
    }

    fn own<'a>(&'a self, queue: &'a dyn DeviceQueue, scratch: DevicePtr) -> Own<'a, 3> {
        Own { queue, conv: &self.conv, scratch }
    }

    /// The tops.
    pub fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (w, own) = (io.param(0)?, self.own(io.queue(), io.scratch(0)?));
        let b = if self.bias { Some(io.param(1)?) } else { None };
        for i in 0..self.bottoms {
            let (x, y) = (io.bottom(i)?, io.top(i)?);
            match self.transposed {
                true => own.data_first((y, w, x))?,
                false => own.forward_first((y, x, w))?,
            }
            if b.is_some() || self.relu {
                self.tops().affine(io.queue(), y, y, None, b, self.relu)?;
            }
        }
        Ok(())
    }

    /// The gradients of w, b and x.
    pub fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (w, own) = (io.param(0)?, self.own(io.queue(), io.scratch(0)?));
        let dw = io.param_diff(0);
        let db = if self.bias { io.param_diff(1) } else { None };
        for i in 0..self.bottoms {
            let dy = io.top_diff(i)?;
            if let Some(dw) = dw {
                let x = io.bottom(i)?;
                own.filter_first(if self.transposed { (dw, dy, x) } else { (dw, x, dy) })?;
            }
            if db.is_some() {
                self.tops().add_sums(io.queue(), (dy, None), (None, db), true, own.scratch.floats(self.sums))?;
            }
            match io.bottom_diff(i) {
                Some(dx) if self.transposed => own.forward_first((dx, dy, w))?,
                Some(dx) => own.data_first((dx, w, dy))?,
                None => {}
            }
        }
        Ok(())
    }
}
