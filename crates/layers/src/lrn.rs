//! LRN: each value divided by a power of the mean square around it.
//!
//! y = x · s^−β, with s = k + α/n · Σ x² over the `local_size` channels around (`ACROSS_CHANNELS`, n = `local_size`), or
//! s = 1 + α/n · Σ x² over the `local_size` × `local_size` window of its own channel (`WITHIN_CHANNEL`,
//! n = `local_size`²); what lies outside the blob counts as 0.
//!
//! Shapes: bottom `[N, C, H, W]`, top like it. Gradient: dx = dy · s^−β − 2αβ/n · x · Σ dy · y / s, the sum over the same
//! neighbourhood; s is kept from forward.
//!
//! Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012); Caffe's layer of
//! this name, whose `k`, as here, means nothing within a channel.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Grid, Host, HostLayer, Layer,
    Layout, Node, Offer, Plan, Result, args, ensure, kernel,
};
use lgm_cpu::lrn;
use lgm_proto::LayerParameter;
use lgm_proto::lrn_parameter::NormRegion;

use crate::common::launch::{extent, row_grid};

/// The layer; see the module.
pub struct Lrn {
    constants: lrn::Lrn,
    region: NormRegion,
    axes: Axes3,
    plane: (usize, usize),
}

impl Lrn {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.lrn_param.unwrap_or_default();
        let size = param.local_size() as usize;
        ensure!(size % 2 == 1, "local_size is {size}; it must be odd, so that the neighbourhood has a middle");
        let (alpha, beta, k) = (param.alpha() as f64, param.beta() as f64, param.k() as f64);
        let constants = lrn::Lrn { size, alpha, beta, k };
        Node::compute(Lrn { constants, region: param.norm_region(), axes: Axes3::default(), plane: (0, 0) })
    }
}

impl Layer for Lrn {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        self.axes = Axes3::around(shape, 1..2);
        self.plane = (shape[2], shape[3]);
        Ok(Plan {
            saved: vec![bottoms[0].clone()],
            scratch: vec![bottoms[0].clone()],
            backward_bottoms: vec![0],
            backward_tops: vec![0],
            ..Plan::new(vec![bottoms[0].clone()])
        })
    }
}

impl HostLayer for Lrn {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let s = match io.saved::<T>(0)? {
            Some(saved) => saved,
            None => io.scratch::<T>(0)?,
        };
        match self.region {
            NormRegion::AcrossChannels => self.constants.across_forward(x, self.axes, s, y),
            NormRegion::WithinChannel => self.constants.within_forward(x, self.plane, s, y),
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (x, y, s, dy) = (io.bottom::<T>(0)?, io.top::<T>(0)?, io.saved::<T>(0)?, io.top_diff::<T>(0)?);
        match self.region {
            NormRegion::AcrossChannels => self.constants.across_backward(x, y, s, dy, self.axes, dx),
            NormRegion::WithinChannel => self.constants.within_backward(x, y, s, dy, self.plane, dx),
        }
        Ok(())
    }
}

impl Lrn {
    /// α/n, with n the elements of a neighbourhood.
    fn factor(&self) -> f64 {
        let size = self.constants.size as f64;
        self.constants.alpha / if self.region == NormRegion::WithinChannel { size * size } else { size }
    }

    /// The grid of a kernel that goes over the blob by CHANNEL, and its last three arguments.
    fn rows(&self, layout: Layout) -> Result<(Grid, [u32; 3])> {
        let Axes3 { outer: n, channels, inner: area } = self.axes;
        let (rows, width, along) = match layout {
            Layout::ChannelsFirst => (n * channels, area, channels),
            Layout::ChannelsLast => (n * area, channels, 0),
        };
        Ok((row_grid(rows, width), [extent(rows)?, extent(width)?, extent(along)?]))
    }
}

impl DeviceLayer for Lrn {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        match self.region {
            NormRegion::AcrossChannels => offer.follow(),
            NormRegion::WithinChannel => offer.follow_channels_first(),
        }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let layout = io.format().layout;
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let s = match io.saved(0) {
            Some(saved) => saved,
            None => io.scratch(0)?,
        };
        let (size, factor) = (extent(self.constants.size)?, self.factor() as f32);
        let (k, beta) = (self.constants.k as f32, self.constants.beta as f32);
        let (grid, [rows, width, channels]) = self.rows(layout)?;
        match self.region {
            NormRegion::AcrossChannels => {
                let args = args![y, s, x, size, factor, k, beta, rows, width, channels];
                io.launch(kernel!("lrn_across_forward"), grid, args)
            }
            NormRegion::WithinChannel => {
                let (height, width) = (extent(self.plane.0)?, extent(self.plane.1)?);
                io.launch(kernel!("lrn_within_forward"), grid, args![y, s, x, size, factor, beta, rows, height, width])
            }
        }
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let layout = io.format().layout;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, y, s, dy, ratio) = (io.bottom(0)?, io.top(0)?, io.saved(0)?, io.top_diff(0)?, io.scratch(0)?);
        let beta = self.constants.beta;
        let (size, factor) = (extent(self.constants.size)?, (2.0 * beta * self.factor()) as f32);
        let count = self.axes.count();
        io.launch(kernel!("lrn_ratio"), Grid::elements(count), args![ratio, dy, y, s, count as i64])?;
        let (grid, [rows, width, channels]) = self.rows(layout)?;
        let beta = beta as f32;
        match self.region {
            NormRegion::AcrossChannels => {
                let args = args![dx, dy, x, s, ratio, size, factor, beta, rows, width, channels];
                io.launch(kernel!("lrn_across_backward"), grid, args)
            }
            NormRegion::WithinChannel => {
                let (height, width) = (extent(self.plane.0)?, extent(self.plane.1)?);
                let args = args![dx, dy, x, s, ratio, size, factor, beta, rows, height, width];
                io.launch(kernel!("lrn_within_backward"), grid, args)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'n' type: 'LRN' bottom: 'x' top: 'y' lrn_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let within = "norm_region: WITHIN_CHANNEL";
        check(
            &registry(),
            &[
                Case::golden("layers/lrn_0"),
                Case::golden("layers/lrn_1"),
                Case::new(layer("local_size: 3 alpha: 2 beta: 0.6 k: 1.7")).bottom([2, 4, 2, 3]),
                Case::new(layer("local_size: 1")).bottom([1, 2, 2, 2]),
                Case::new(layer("local_size: 9")).bottom([1, 3, 2, 1]),
                Case::new(layer(&format!("{within} local_size: 3 alpha: 2 beta: 1.2 k: 5"))).bottom([2, 2, 3, 4]),
                Case::new(layer(&format!("{within} local_size: 7"))).bottom([1, 2, 2, 3]),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer("local_size: 4"), &[[1, 2, 3, 3].into()], &["local_size is 4", "odd"]);
        config_error(&registry(), &layer(""), &[[1, 2, 3].into()], &["4 axes", "(1, 2, 3)"]);
    }
}
