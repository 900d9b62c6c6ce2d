//! Axpy: y = a · x + z, with one number a for each channel of each item: the excitation of a squeeze-and-excitation block and
//! the sum of its residual.
//!
//! Shapes: a [N, C] or [N, C, 1, 1], x and z [N, C, …]; top like x. Gradient: da\[n, c\] = Σ dy · x over the channel's
//! positions, dx = a · dy, dz = dy. Source: Hu et al., "Squeeze-and-Excitation Networks" (2017); their Caffe layer of this
//! name.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Float, Format, Formats, Fwd, Host,
    HostLayer, Layer, Node, Offer, Plan, Result, args, ensure, kernel,
};
use lgm_cpu::elementwise;
use lgm_proto::LayerParameter;

use crate::common::by_channel::ByChannel;
use crate::common::launch::{extent, row_grid};
use crate::common::loops::{for_rows, total};

/// The layer; see the module.
#[derive(Default)]
pub struct Axpy {
    rows: usize,
    width: usize,
}

impl Axpy {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Axpy::default())
    }

    /// The blob on a device, a channel of an item being one of its channels.
    fn by_row(&self, format: Format) -> ByChannel {
        ByChannel::new(Axes3::new(1, self.rows, self.width), format.channels_first())
    }
}

impl Layer for Axpy {
    fn arity(&self) -> Arity {
        Arity::exactly(3, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let [a, x, z] = [0, 1, 2].map(|i| &bottoms[i].shape);
        ensure!(x.len() >= 2, "bottom 1 needs items and channels, its first two axes; found shape {x}");
        if x != z {
            let what = "bottom 2 must have the shape of bottom 1".into();
            return Err(Error::Shape { what, expected: x.clone(), found: z.clone() });
        }
        (self.rows, self.width) = (x.span(0..2), x.count_from(2));
        ensure!(
            a.len() >= 2 && a[..2] == x[..2] && a.count() == self.rows,
            "bottom 0 must have one number for each channel of each item of bottom 1 {x}: shape ({}, {}); found {a}",
            x[0],
            x[1]
        );
        let flops = 2 * x.count() as u64;
        Ok(Plan { backward_bottoms: vec![0, 1], flops, ..Plan::new(vec![bottoms[1].clone()]) })
    }
}

impl HostLayer for Axpy {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (a, x, z) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?);
        for_rows(io.top::<T>(0)?, self.width, self.width, |row, y| {
            let (at, a) = (row * self.width, a[row]);
            let both = x[at..].iter().zip(&z[at..]);
            y.iter_mut().zip(both).for_each(|(y, (&x, &z))| *y = a * x + z);
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (a, x, dy, width) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top_diff::<T>(0)?, self.width);
        if let Some(da) = io.bottom_diff::<T>(0)? {
            for_rows(da, 1, width, |row, da| {
                let part = row * width..(row + 1) * width;
                da[0] = T::of(total(&dy[part.clone()], &x[part], |dy, x| dy * x));
            });
        }
        if let Some(dx) = io.bottom_diff::<T>(1)? {
            for_rows(dx, width, width, |row, dx| {
                let a = a[row];
                dx.iter_mut().zip(&dy[row * width..]).for_each(|(dx, &dy)| *dx = a * dy);
            });
        }
        if let Some(dz) = io.bottom_diff::<T>(2)? {
            elementwise::copy(dy, dz);
        }
        Ok(())
    }
}

impl DeviceLayer for Axpy {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let format = offer.arriving.get(1).copied().unwrap_or_default().channels_first();
        Formats { bottoms: [Format::PLAIN, format, format].into_iter().collect(), tops: [format].into_iter().collect() }
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.by_row(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (a, x, z, y) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?, io.top(0)?);
        let args = args![y, a, x, z, extent(self.rows)?, extent(self.width)?];
        io.launch(kernel!("arrange_axpy"), row_grid(self.rows, self.width), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (a, x, dy, partial) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?, io.scratch(0)?);
        let (rows, format) = (self.by_row(io.format()), io.format());
        if self.rows * self.width == 0 {
            return match io.bottom_diff(0) {
                Some(da) => io.queue().zero(da, 4 * self.rows),
                None => Ok(()),
            };
        }
        if let Some(da) = io.bottom_diff(0) {
            rows.add_sums(io.queue(), (dy, Some(x)), (Some(da), None), false, partial)?;
        }
        if let Some(dx) = io.bottom_diff(1) {
            rows.affine(io.queue(), dx, dy, Some(a), None, false)?;
        }
        match io.bottom_diff(2) {
            Some(dz) => io.queue().copy(dy, dz, self.rows * self.width * format.element.bytes()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::Shape;
    use lgm_testkit::{Case, check, config_error};

    const LAYER: &str = "layer { name: 'a' type: 'Axpy' bottom: 'a' bottom: 'x' bottom: 'z' top: 'y' }";

    fn axpy(a: impl Into<Shape>, x: impl Into<Shape>) -> Case {
        let x = x.into();
        Case::new(LAYER).bottom(a).bottom(x.clone()).bottom(x)
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                axpy([2, 3], [2, 3, 2, 5]),
                axpy([2, 3, 1, 1], [2, 3, 4, 4]),
                axpy([3, 4], [3, 4]),
                axpy([2, 70, 1, 1], [2, 70, 9, 33]).without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |shapes: [Shape; 3], needles: &[&str]| config_error(&registry(), LAYER, &shapes, needles);
        refused([[2, 3].into(), [2].into(), [2].into()], &["bottom 1", "first two axes", "(2)"]);
        refused([[2, 3].into(), [2, 3, 4].into(), [2, 3].into()], &["bottom 2", "(2, 3, 4)", "(2, 3)"]);
        refused([[2, 4].into(), [2, 3, 4].into(), [2, 3, 4].into()], &["one number for each channel", "(2, 4)"]);
        refused([[2, 3, 4].into(), [2, 3, 4].into(), [2, 3, 4].into()], &["shape (2, 3)", "(2, 3, 4)"]);
    }
}
