//! Im2col: what each position of a convolution's kernel sees, as channels: the patches that a product with its filters would
//! take.
//!
//! `y[n, c·K + q, p] = x[n, c, p · stride + q · dilation − pad]`, 0 in the padding, over the K positions q of the kernel.
//! Shapes: bottom `[N…, C, spatial…]`, the channels at `axis`; top `[N…, C · K, spatial of a convolution's top…]`. The
//! fields are those of `convolution_param`, as [`Convolution`](super::Convolution) reads them. Gradient: the sum over all
//! patches that an element is in.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arg, Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Float, Format, Formats, Fwd, Host, HostLayer,
    Layer, Node, Offer, Plan, Result, Window, args, kernel,
};
use lgm_cpu::{ConvGeometry, col2im_nd, im2col_nd};
use lgm_proto::{ConvolutionParameter, LayerParameter};

use super::windows;
use crate::common::launch::{extent, row_grid, window_args};

/// The layer; see the module.
pub struct Im2col {
    param: ConvolutionParameter,
    geometry: Option<ConvGeometry>,
    batch: usize,
    /// Elements of an image of the bottom, and of the top.
    image: usize,
    patches: usize,
}

impl Im2col {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.convolution_param.clone().unwrap_or_default();
        Node::compute(Im2col { param, geometry: None, batch: 0, image: 0, patches: 0 })
    }

    fn geometry(&self) -> Result<&ConvGeometry> {
        self.geometry.as_ref().ok_or_else(|| Error::internal("patches were asked for before they were planned"))
    }

    /// The windows as the kernels take them, of two axes or of three.
    fn windows(&self) -> Vec<Window> {
        let windows = self.geometry.iter().flat_map(|g| g.windows.iter().copied());
        let one_axis = self.geometry.as_ref().is_some_and(|g| g.windows.len() == 1);
        one_axis.then_some(Window::UNIT).into_iter().chain(windows).collect()
    }

    /// Rows of patches of all images, and positions in each; planes of the bottom, and elements in each.
    fn extents(&self) -> Result<([usize; 2], [usize; 2])> {
        let g = self.geometry()?;
        let positions = lgm_core::count(&g.windows.iter().map(|w| w.output).collect::<Vec<_>>());
        let elements = lgm_core::count(&g.windows.iter().map(|w| w.input).collect::<Vec<_>>());
        let rows = self.batch * self.patches / positions.max(1);
        Ok(([rows, positions], [self.batch * g.in_channels, elements]))
    }
}

impl Layer for Im2col {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let axis = shape.axis(self.param.axis())?;
        let spatial = &shape[axis + 1..];
        lgm_core::ensure!(
            !spatial.is_empty(),
            "the bottom {shape} has no spatial axes after the channels, axis {axis}"
        );
        let geometry = ConvGeometry::new(shape[axis], 1, 1, windows(&self.param, spatial, false)?)?;
        let taps = lgm_core::count(&geometry.windows.iter().map(|w| w.kernel).collect::<Vec<_>>());
        let outputs = geometry.windows.iter().map(|w| w.output);
        let top = shape.splice(axis..shape.len(), [shape[axis].saturating_mul(taps)].into_iter().chain(outputs));
        (self.batch, self.image, self.patches) = (shape.span(0..axis), shape.count_from(axis), top.count_from(axis));
        self.geometry = Some(geometry);
        Ok(Plan::new(vec![bottoms[0].with_shape(top)]))
    }
}

impl HostLayer for Im2col {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (geometry, x, y) = (self.geometry()?, io.bottom::<T>(0)?, io.top::<T>(0)?);
        for (x, y) in x.chunks(self.image.max(1)).zip(y.chunks_mut(self.patches.max(1))) {
            im2col_nd(geometry, x, y);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (geometry, dy) = (self.geometry()?, io.top_diff::<T>(0)?);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        for (dx, dy) in dx.chunks_mut(self.image.max(1)).zip(dy.chunks(self.patches.max(1))) {
            col2im_nd(geometry, dy, dx);
        }
        Ok(())
    }
}

impl DeviceLayer for Im2col {
    fn is_supported(&self) -> bool {
        self.windows().len() <= 3
    }

    fn formats(&self, offer: &Offer<'_>) -> Formats {
        // The kernel of three axes is for single precision alone.
        if self.windows().len() == 2 { offer.follow_channels_first() } else { Formats::all(Format::PLAIN, 1, 1) }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let ([rows, positions], _) = self.extents()?;
        let windows = self.windows();
        let mut args: Vec<Arg> = args![io.top(0)?, io.bottom(0)?, extent(rows)?].to_vec();
        args.extend(window_args(&windows, true)?);
        let kernel = if windows.len() == 2 { kernel!("conv_patches") } else { "conv_patches_3d".into() };
        io.launch(kernel, row_grid(rows, positions), &args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (_, [planes, elements]) = self.extents()?;
        let windows = self.windows();
        let mut args: Vec<Arg> = args![dx, io.top_diff(0)?, extent(planes)?].to_vec();
        args.extend(window_args(&windows, true)?);
        let kernel = if windows.len() == 2 { kernel!("conv_unpatch") } else { "conv_unpatch_3d".into() };
        io.launch(kernel, row_grid(planes, elements), &args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'i' type: 'Im2col' bottom: 'x' top: 'y' convolution_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/im2col_0"),
                Case::golden("layers/im2col_more_0"),
                Case::golden("layers/im2col_more_1"),
                Case::golden("layers/im2col_more_2"),
                Case::new(layer("kernel_size: 3 stride: 2 pad: 1")).bottom([2, 3, 7]),
                Case::new(layer("kernel_size: 2 axis: 2")).bottom([2, 2, 3, 3, 4]),
                Case::new(layer("kernel_size: 2")).bottom([1, 2, 2, 3, 2, 2]),
                Case::new(layer("kernel_size: 4 stride: 2")).bottom([2, 2, 3, 5]),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(""), &[[2, 3, 4, 4].into()], &["kernel_size is missing"]);
        config_error(&registry(), &layer("kernel_size: 2"), &[[2, 3].into()], &["(2, 3) has no spatial axes"]);
        config_error(
            &registry(),
            &layer("kernel_size: 5"),
            &[[2, 3, 4, 4].into()],
            &["spatial axis 0", "reaches over 5"],
        );
    }
}
