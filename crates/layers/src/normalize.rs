//! Normalize: values divided by their Euclidean norm, times a learned scale: y = s · u with u = x / √(Σ x² + ε).
//!
//! The sum goes over an item, or with `across_spatial: false` over the channels at each position of it. s is one number, or
//! with `channel_shared: false` one for each channel, filled by `scale_filler` (constant 1); ε is `eps` (1e-10).
//! Gradient: with g = s · dy, dx = (g − u · Σ g·u) / √(Σ x² + ε); ds = Σ dy · u over what it scales.
//!
//! Shapes: bottom [N, C, …]; top like it; parameter s \[\] or \[C\]. Source: Liu et al., "ParseNet" (2015); SSD's layer of
//! this name, whose fields are in `norm_param`. Without that the layer is NormFace's (`normalize/unit.rs`). Where we differ: SSD scales after it has summed over dy, which is the gradient only where all channels have
//! one scale.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Format, Formats, Fwd, Grid, Host,
    HostLayer, Kernel, Layer, Node, Offer, ParamSpec, Plan, Result, Shape, args, ensure, kernel,
};
use lgm_cpu::for_each_row_of;
use lgm_proto::{FillerParameter, LayerParameter, NormalizeParameter};

use crate::common::by_channel::ByChannel;
use crate::common::launch::extent;
use crate::common::loops::{for_rows, sum_weighted, total};
use crate::common::row_sums::threads;

mod unit;

/// The layer; see the module.
pub struct Normalize {
    param: NormalizeParameter,
    axes: Axes3,
}

/// Scratch memory of the host, by number: numbers for each norm, and for each channel.
const NORMS: usize = 0;
const CHANNELS: usize = 1;

impl Normalize {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let Some(norm) = &param.norm_param else { return unit::build(param) };
        ensure!(
            param.normalize_param.is_none(),
            "both norm_param and normalize_param are given: SSD's Normalize has the one, NormFace's the other; keep one"
        );
        let param = norm.as_ref().clone();
        ensure!(param.eps() >= 0.0 && param.eps().is_finite(), "eps must be at least 0, found {}", param.eps());
        Node::compute(Normalize { param, axes: Axes3::default() })
    }

    /// Norms of each item.
    fn norms(&self) -> usize {
        if self.param.across_spatial() { 1 } else { self.axes.inner }
    }

    fn scale<T: Float>(&self, scales: &[T], channel: usize) -> T {
        scales[if self.param.channel_shared() { 0 } else { channel }]
    }

    /// Adds to `sums`, one for each norm, f(a, b) over what it is the norm of; a and b are blobs of an item.
    fn add_up<T: Float>(&self, sums: &mut [T], a: &[T], b: &[T], f: impl Fn(usize, T, T) -> T) {
        let inner = self.axes.inner.max(1);
        for (c, (a, b)) in a.chunks(inner).zip(b.chunks(inner)).enumerate() {
            match sums {
                [one] => *one += T::of(total(a, b, |a, b| f(c, a, b))),
                _ => sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum += f(c, a, b)),
            }
        }
    }

    /// The blob as the scales see it.
    fn by_scale(&self, format: Format) -> ByChannel {
        let one = Axes3::new(1, 1, self.axes.count());
        ByChannel::new(if self.param.channel_shared() { one } else { self.axes }, format.channels_first())
    }

    /// The kernel of a direction, and its grid: a block for each item, or a thread for each position.
    fn kernel(&self, forward: bool) -> (Kernel, Grid) {
        let Axes3 { outer, channels, inner } = self.axes;
        if self.param.across_spatial() {
            let kernel = if forward { kernel!("normalize_items") } else { kernel!("normalize_items_backward") };
            (kernel, Grid::rows(outer, threads(channels * inner)))
        } else {
            let kernel = if forward { kernel!("normalize_positions") } else { kernel!("normalize_positions_backward") };
            (kernel, Grid::elements(outer * inner))
        }
    }
}

impl Layer for Normalize {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() >= 2, "the bottom needs channels, on its second axis; found shape {shape}");
        self.axes = Axes3::around(shape, 1..2);
        let norms = bottoms[0].with_shape([self.axes.outer, self.norms()]);
        let one = FillerParameter { value: Some(1.0), ..Default::default() };
        let scales = if self.param.channel_shared() { Shape::scalar() } else { Shape::from([shape[1]]) };
        Ok(Plan {
            params: vec![ParamSpec::new(scales, Some(self.param.scale_filler.as_ref().unwrap_or(&one)))],
            saved: vec![norms.clone()],
            scratch: vec![norms, bottoms[0].with_shape([shape[1]])],
            backward_bottoms: vec![0],
            flops: 4 * shape.count() as u64,
            ..Plan::new(vec![bottoms[0].clone()])
        })
    }
}

impl HostLayer for Normalize {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, scales, y) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.top::<T>(0)?);
        let spare = io.scratch::<T>(NORMS)?;
        let kept = io.saved::<T>(0)?.unwrap_or(spare);
        let Axes3 { outer, channels, inner } = self.axes;
        let (item, eps) = (channels * inner, T::of(self.param.eps().into()));
        for_each_row_of([(y, item), (kept, self.norms())], outer, 1, |n, [y, inverse]| {
            let x = &x[n * item..][..item];
            inverse.fill(T::zero());
            self.add_up(inverse, x, x, |_, x, _| x * x);
            inverse.iter_mut().for_each(|v| *v = (*v + eps).sqrt().recip());
            for (c, (y, x)) in y.chunks_mut(inner.max(1)).zip(x.chunks(inner.max(1))).enumerate() {
                let (pairs, s) = (y.iter_mut().zip(x), self.scale(scales, c));
                match &*inverse {
                    [one] => pairs.for_each(|(y, &x)| *y = s * x * *one),
                    each => pairs.zip(each).for_each(|((y, &x), &v)| *y = s * x * v),
                }
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, scales, dy) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.top_diff::<T>(0)?);
        let inverse = io.saved::<T>(0)?;
        let Axes3 { outer, channels, inner } = self.axes;
        let (item, norms) = (channels * inner, self.norms());
        if let Some(ds) = io.param_diff::<T>(0)? {
            let sums = io.scratch::<T>(CHANNELS)?;
            for_rows(sums, 1, outer * inner, |c, sum| {
                let of_item = |n: usize| {
                    let (run, v) = (n * item + c * inner..n * item + (c + 1) * inner, &inverse[n * norms..][..norms]);
                    match v {
                        [one] => total(&dy[run.clone()], &x[run], |dy, x| dy * x) * one.f64(),
                        each => sum_weighted(&dy[run.clone()], &x[run], each, |dy, x| dy * x).f64(),
                    }
                };
                sum[0] = T::of((0..outer).map(of_item).sum());
            });
            if self.param.channel_shared() {
                ds[0] += T::of(sums.iter().map(|sum| sum.f64()).sum());
            } else {
                ds.iter_mut().zip(&*sums).for_each(|(ds, &sum)| *ds += sum);
            }
        }
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let along = io.scratch::<T>(NORMS)?;
        for_each_row_of([(dx, item), (along, norms)], outer, 1, |n, [dx, along]| {
            let (x, dy, inverse) = (&x[n * item..][..item], &dy[n * item..][..item], &inverse[n * norms..][..norms]);
            along.fill(T::zero());
            self.add_up(along, x, dy, |c, x, dy| self.scale(scales, c) * dy * x);
            // Σ g·u / norm², which x takes part of.
            along.iter_mut().zip(inverse).for_each(|(along, &v)| *along *= v * v);
            for (c, dx) in dx.chunks_mut(inner.max(1)).enumerate() {
                let (run, s) = (c * inner..(c + 1) * inner, self.scale(scales, c));
                let all = dx.iter_mut().zip(x[run.clone()].iter().zip(&dy[run]));
                match (&*along, inverse) {
                    ([along], [v]) => all.for_each(|(dx, (&x, &dy))| *dx = (s * dy - x * *along) * *v),
                    (along, inverse) => all
                        .zip(along.iter().zip(inverse))
                        .for_each(|((dx, (&x, &dy)), (&along, &v))| *dx = (s * dy - x * along) * v),
                }
            }
        });
        Ok(())
    }
}

impl DeviceLayer for Normalize {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        // u is kept as well, which the gradients of the scales are sums with.
        plan.saved.push(plan.tops[0].clone());
        plan.backward_bottoms.clear();
        plan.scratch = vec![self.by_scale(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, s, y) = (io.bottom(0)?, io.param(0)?, io.top(0)?);
        let (inverse, u) = (io.saved(0), io.saved(1));
        let Axes3 { outer, channels, inner } = self.axes;
        if self.axes.count() == 0 {
            return Ok(());
        }
        let (shared, eps) = (u32::from(self.param.channel_shared()), self.param.eps());
        let [outer, channels, inner] = [extent(outer)?, extent(channels)?, extent(inner)?];
        let args = args![y, u, inverse, x, s, shared, eps, outer, channels, inner];
        let (name, grid) = self.kernel(true);
        io.launch(name, grid, args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (s, dy, inverse, u) = (io.param(0)?, io.top_diff(0)?, io.saved(0)?, io.saved(1)?);
        if self.axes.count() == 0 {
            return Ok(());
        }
        if let Some(ds) = io.param_diff(0) {
            let partial = io.scratch(0)?;
            let by_scale = self.by_scale(io.format());
            by_scale.add_sums(io.queue(), (dy, Some(u)), (Some(ds), None), true, partial)?;
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let shared = u32::from(self.param.channel_shared());
        let Axes3 { outer, channels, inner } = self.axes;
        let [outer, channels, inner] = [extent(outer)?, extent(channels)?, extent(inner)?];
        let args = args![dx, dy, u, inverse, s, shared, outer, channels, inner];
        let (name, grid) = self.kernel(false);
        io.launch(name, grid, args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::Shape;
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'n' type: 'Normalize' bottom: 'x' top: 'y' norm_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let mut cases = Vec::new();
        for across in [true, false] {
            for shared in [true, false] {
                let param = format!(
                    "across_spatial: {across} channel_shared: {shared} scale_filler {{ type: 'constant' value: 2 }}"
                );
                let case = |shape: Shape| Case::new(layer(&param)).bottom(shape);
                cases.extend([case([2, 3, 2, 3].into()), case([3, 5].into()), case([2, 4, 1, 1].into())]);
                cases.push(case([2, 33, 9, 14].into()).without_gradients());
            }
        }
        let small = Fill::Given(vec![1e-3, 2e-3, -1e-3, 0.0]);
        cases.push(Case::new(layer("across_spatial: false eps: 0.5")).bottom_of([1, 2, 2], small));
        check(&registry(), &cases);
    }

    #[test]
    fn mistakes_are_named() {
        let x = [Shape::from([2, 3])];
        config_error(&registry(), &layer("eps: -1"), &x, &["eps must be at least 0, found -1"]);
        config_error(&registry(), &layer(""), &[[2].into()], &["second axis", "(2)"]);
    }
}
