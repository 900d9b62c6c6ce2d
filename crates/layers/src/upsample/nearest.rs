//! Upsample without indices: every value as often as the scale says, down and across.

use lgm_core::{
    Arity, Axes3, BlobSpec, Bwd, Device, DeviceLayer, Float, Fwd, Host, HostLayer, Layer, Plan, Result, ensure,
};
use lgm_proto::UpsampleParameter;

use super::extents;
use crate::common::repeat::Repeat;
use crate::common::strided::Strided;

/// The layer; see the module above.
pub(super) struct Nearest {
    param: UpsampleParameter,
    /// The top's elements as they lie in the bottom.
    top: Strided,
    /// The sums of the gradient across, of a row's runs, and then down.
    sums: [Repeat; 2],
}

impl Nearest {
    pub fn new(param: UpsampleParameter) -> Self {
        Nearest { param, top: Strided::default(), sums: Default::default() }
    }
}

impl Layer for Nearest {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        let (height, width) = (shape[2], shape[3]);
        let [high, wide] = extents(&self.param, [height, width])?;
        ensure!(
            height > 0 && width > 0 && high.is_multiple_of(height) && wide.is_multiple_of(width),
            "without a second bottom, the indices, values are repeated a whole number of times: planes of {height} × \
             {width} cannot become {high} × {wide}"
        );
        let (rows, down, across) = (shape.span(0..3), high / height, wide / width);
        self.top = Strided::new([(rows, width), (down, 0), (width, 1), (across, 0)], 0);
        self.sums = [Axes3::new(rows * down * width, across, 1), Axes3::new(rows, down, width)].map(Repeat::new);
        let top = bottoms[0].with_shape(shape.splice(2..4, [high, wide]));
        let scratch = vec![bottoms[0].with_shape([rows, down, width])];
        Ok(Plan { scratch, ..Plan::new(vec![top]) })
    }
}

impl HostLayer for Nearest {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        self.top.gather(io.top::<T>(0)?, io.bottom::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (dy, across) = (io.top_diff::<T>(0)?, io.scratch::<T>(0)?);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        self.sums[0].fold(across, dy, 1.0);
        self.sums[1].fold(dx, across, 1.0);
        Ok(())
    }
}

impl DeviceLayer for Nearest {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        self.top.gather_on(io.call, y, io.bottom(0)?)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let across = io.scratch(0)?;
        self.sums[0].fold_on(io.call, across, io.top_diff(0)?, 1.0)?;
        self.sums[1].fold_on(io.call, dx, across, 1.0)
    }
}
