//! MVN, mean-variance normalization: each channel of each item less its mean, divided by its standard deviation.
//!
//! y = (x − μ) / (√σ² + ε), with μ and σ² the mean and variance (over n, not n − 1) of the positions of a channel, or with
//! `across_channels` of all channels of an item; with `normalize_variance: false`, y = x − μ. ε is `eps` (1e-9).
//! Gradient: dx = (dy − mean dy − y · mean (dy · y)) / (√σ² + ε); without the variance, dx = dy − mean dy. As in Caffe
//! this takes ε for part of the deviation, and so is exact where ε is small beside it.
//!
//! Shapes: bottom [N, C, H, W]; top like it. As in Caffe, a bottom of fewer axes is one whose last are 1, and the top has
//! all four; where we differ: more axes are taken too. Runs in place. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DevicePtr, Float, Formats, Fwd, Grid, Host, HostLayer, Layer,
    Node, Offer, Plan, Result, Shape, args, ensure, kernel,
};
use lgm_cpu::{BLOCK, for_each_row_of};
use lgm_proto::{LayerParameter, MvnParameter};

use crate::common::launch::extent;
use crate::common::loops::{for_rows, total};
use crate::common::row_sums::threads;

/// The layer; see the module.
pub struct Mvn {
    param: MvnParameter,
    rows: usize,
    width: usize,
}

impl Mvn {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.mvn_param.unwrap_or_default();
        ensure!(param.eps() >= 0.0 && param.eps().is_finite(), "eps must be at least 0, found {}", param.eps());
        Node::compute(Mvn { param, rows: 0, width: 1 })
    }

    fn normalizes(&self) -> u32 {
        u32::from(self.param.normalize_variance())
    }
}

impl Layer for Mvn {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0].shape;
        let ones = (bottom.len()..4).map(|_| 1);
        let shape = Shape::new(bottom.iter().copied().chain(ones));
        let split = if self.param.across_channels() { 1 } else { 2 };
        (self.rows, self.width) = (shape.span(0..split), shape.count_from(split));
        ensure!(self.width > 0 || self.rows == 0, "the bottom {bottom} has no elements to take a mean of");
        let normalizes = self.param.normalize_variance();
        Ok(Plan {
            tops: vec![bottoms[0].with_shape(shape)],
            saved: if normalizes { vec![bottoms[0].with_shape([self.rows])] } else { vec![] },
            backward_tops: if normalizes { vec![0] } else { vec![] },
            flops: 5 * bottom.count() as u64,
            ..Plan::elementwise(&bottoms[0])
        })
    }
}

impl HostLayer for Mvn {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y, width) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?, self.width);
        let (n, eps) = (width as f64, f64::from(self.param.eps()));
        let scales = io.saved::<T>(0)?;
        let each = usize::from(scales.is_some());
        let at_once = (BLOCK / width.max(1)).max(1);
        for_each_row_of([(y, width), (scales.unwrap_or_default(), each)], self.rows, at_once, |row, [y, kept]| {
            if let Some(x) = x {
                y.copy_from_slice(&x[row * width..][..width]);
            }
            let mean = T::of(total(y, y, |y, _| y) / n);
            y.iter_mut().for_each(|y| *y -= mean);
            if self.param.normalize_variance() {
                let deviation = (total(y, y, |y, _| y * y) / n).sqrt() + eps;
                // Where all are equal and eps is 0, there is nothing to divide.
                let scale = T::of(if deviation > 0.0 { 1.0 / deviation } else { 0.0 });
                y.iter_mut().for_each(|y| *y *= scale);
                kept.fill(scale);
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (own, width) = (io.top_diff_unless_shared::<T>(0)?, self.width);
        let kept = if self.param.normalize_variance() { Some((io.top::<T>(0)?, io.saved::<T>(0)?)) } else { None };
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        for_rows(dx, width, 3 * width, |row, dx| {
            if let Some(dy) = own {
                dx.copy_from_slice(&dy[row * width..][..width]);
            }
            let n = width as f64;
            let mean = T::of(total(dx, dx, |dy, _| dy) / n);
            let Some((y, scales)) = kept else { return dx.iter_mut().for_each(|dx| *dx -= mean) };
            let (y, scale) = (&y[row * width..][..width], scales[row]);
            let along = T::of(total(dx, y, |dy, y| dy * y) / n);
            dx.iter_mut().zip(y).for_each(|(dx, &y)| *dx = (*dx - mean - y * along) * scale);
        });
        Ok(())
    }
}

impl DeviceLayer for Mvn {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        // An item as a whole is the same in any order.
        if self.param.across_channels() { offer.follow() } else { offer.follow_channels_first() }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (y, scales) = (io.top(0)?, io.saved(0));
        if self.rows == 0 {
            return Ok(());
        }
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let args = args![y, scales, x, self.normalizes(), self.param.eps(), extent(self.width)?];
        io.launch(kernel!("mvn_forward"), Grid::rows(self.rows, threads(self.width)), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0).filter(|_| self.rows > 0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        let (y, scales) = if self.param.normalize_variance() {
            (io.top(0)?, io.saved(0)?)
        } else {
            (DevicePtr::NULL, DevicePtr::NULL)
        };
        let args = args![dx, dy, y, scales, extent(self.width)?];
        io.launch(kernel!("mvn_backward"), Grid::rows(self.rows, threads(self.width)), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'm' type: 'MVN' bottom: 'x' top: 'y' mvn_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let varied = || Fill::Normal(3.0, 2.0);
        check(
            &registry(),
            &[
                Case::golden("layers/mvn_0"),
                Case::golden("layers/mvn_1"),
                Case::golden("layers/mvn_2"),
                Case::golden("layers/mvn_more_0"),
                // Caffe's gradient, which is not quite that of an eps of 0.1.
                Case::golden("layers/mvn_more_1").without_gradients(),
                Case::golden("layers/mvn_more_2"),
                Case::new(layer("")).bottom_of([2, 3, 5], varied()),
                Case::new(layer("across_channels: true")).bottom_of([3, 4], varied()),
                Case::new(layer("")).bottom_of([2, 2, 3, 2, 2], varied()),
                Case::new(layer("")).bottom([0, 3, 4, 5]),
                Case::new(layer("")).bottom_of([2, 3, 33, 35], varied()).without_gradients(),
                Case::new(layer("across_channels: true")).bottom_of([3, 8, 40, 31], varied()).without_gradients(),
                // Equal values have no deviation to divide by.
                Case::new(layer("eps: 0")).bottom_of([1, 1, 3], Fill::Given(vec![2.0; 3])).without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer("eps: -1"), &[[2, 3].into()], &["eps must be at least 0, found -1"]);
        config_error(&registry(), &layer(""), &[[2, 3, 0].into()], &["(2, 3, 0) has no elements"]);
    }
}
