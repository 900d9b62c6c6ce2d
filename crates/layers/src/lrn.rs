//! LRN: each value divided by a power of the mean square around it.
//!
//! y = x · s^−β, with s = k + α/n · Σ x² over the `local_size` channels around (`ACROSS_CHANNELS`, n = `local_size`), or
//! s = 1 + α/n · Σ x² over the `local_size` × `local_size` window of its own channel (`WITHIN_CHANNEL`,
//! n = `local_size`²); what lies outside the blob counts as 0.
//!
//! Shapes: bottom [N, C, H, W], top like it. Gradient: dx = dy · s^−β − 2αβ/n · x · Σ dy · x · s^(−β−1), the sum over the
//! same neighbourhood; s is kept from forward.
//!
//! Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012); Caffe's layer of
//! this name, whose `k`, as here, means nothing within a channel.

use std::ops::Range;

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostRun, Layer, Node, Plan, Result, ensure};
use lgm_cpu::for_each_row;
use lgm_proto::lrn_parameter::NormRegion;
use lgm_proto::{LayerParameter, LrnParameter};

/// The layer; see the module.
pub struct Lrn {
    param: LrnParameter,
    channels: usize,
    height: usize,
    width: usize,
}

impl Lrn {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.lrn_param.unwrap_or_default();
        let size = param.local_size();
        ensure!(size % 2 == 1, "local_size is {size}; it must be odd, so that the neighbourhood has a middle");
        Node::compute(Lrn { param, channels: 0, height: 0, width: 0 })
    }

    fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The constant part of s, and α/n.
    fn constants(&self) -> (f64, f64) {
        let (alpha, size) = (self.param.alpha() as f64, self.param.local_size() as f64);
        match self.param.norm_region() {
            NormRegion::AcrossChannels => (self.param.k() as f64, alpha / size),
            NormRegion::WithinChannel => (1.0, alpha / (size * size)),
        }
    }

    /// s^−β.
    fn power<T: Float>(&self, s: T) -> T {
        let beta = self.param.beta();
        if beta == 0.75 {
            // Two square roots take a fraction of the time of a power, and this is the β of the paper.
            let root = s.sqrt();
            return (root * root.sqrt()).recip();
        }
        s.powf(T::of(-beta as f64))
    }

    /// Calls `pair` with every run of elements of one image and a run of neighbours, one for each.
    fn neighbours(&self, mut pair: impl FnMut(Range<usize>, Range<usize>)) {
        let reach = self.param.local_size() as usize / 2;
        let around = |at: usize, extent: usize| at.saturating_sub(reach)..(at + reach + 1).min(extent);
        let (h, w) = (self.height, self.width);
        match self.param.norm_region() {
            NormRegion::AcrossChannels => {
                for c in 0..self.channels {
                    around(c, self.channels).for_each(|d| pair(c * h * w..(c + 1) * h * w, d * h * w..(d + 1) * h * w));
                }
            }
            NormRegion::WithinChannel => {
                for row in 0..self.channels * h {
                    let channel = row / h * h;
                    for other in around(row % h, h).map(|y| (channel + y) * w) {
                        for shift in 0..(reach + 1).min(w) {
                            pair(row * w..(row + 1) * w - shift, other + shift..other + w);
                            if shift > 0 {
                                pair(row * w + shift..(row + 1) * w, other..other + w - shift);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Layer for Lrn {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        (self.channels, self.height, self.width) = (shape[1], shape[2], shape[3]);
        Ok(Plan {
            saved: vec![bottoms[0].clone()],
            scratch: vec![bottoms[0].clone()],
            backward_bottoms: vec![0],
            ..Plan::new(vec![bottoms[0].clone()])
        })
    }
}

impl HostRun for Lrn {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let s = match io.saved::<T>(0)? {
            Some(saved) => saved,
            None => io.scratch::<T>(0)?,
        };
        let (image, (k, a)) = (self.image(), self.constants());
        for_each_row(s, image, |n, s| {
            let x = &x[n * image..][..s.len()];
            let a = T::of(a);
            s.fill(T::of(k));
            self.neighbours(|here, there| s[here].iter_mut().zip(&x[there]).for_each(|(s, &x)| *s += a * x * x));
        });
        for_each_row(y, image, |n, y| {
            let values = x[n * image..].iter().zip(&s[n * image..]);
            y.iter_mut().zip(values).for_each(|(y, (&x, &s))| *y = x * self.power(s));
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (x, dy, s, share) = (io.bottom::<T>(0)?, io.top_diff::<T>(0)?, io.saved::<T>(0)?, io.scratch::<T>(0)?);
        let (image, (_, a)) = (self.image(), self.constants());
        // dx starts as dy · s^−β; what each value gives to its neighbours' sums is that times x / s.
        for_each_row(dx, image, |n, dx| {
            let values = dy[n * image..].iter().zip(&s[n * image..]);
            dx.iter_mut().zip(values).for_each(|(dx, (&dy, &s))| *dx = dy * self.power(s));
        });
        for_each_row(share, image, |n, share| {
            let at = n * image;
            let values = dx[at..].iter().zip(&x[at..]).zip(&s[at..]);
            share.iter_mut().zip(values).for_each(|(share, ((&dx, &x), &s))| *share = dx * x / s);
        });
        for_each_row(dx, image, |n, dx| {
            let (x, share) = (&x[n * image..][..dx.len()], &share[n * image..][..dx.len()]);
            let factor = T::of(2.0 * a * self.param.beta() as f64);
            self.neighbours(|here, there| {
                let values = x[here.clone()].iter().zip(&share[there]);
                dx[here].iter_mut().zip(values).for_each(|(dx, (&x, &share))| *dx -= factor * x * share);
            });
        });
        Ok(())
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
