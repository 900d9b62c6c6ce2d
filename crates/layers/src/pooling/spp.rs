//! SPP, spatial pyramid pooling: poolings of one bottom into ever smaller parts, their results side by side.
//!
//! Level l of `pyramid_height` many, from 0, pools planes of H × W by windows of ⌈H / 2ˡ⌉ × ⌈W / 2ˡ⌉, which lie side by
//! side, with half of what H and W lack as padding; `pool` is MAX, AVE or STOCHASTIC, as [`Pooling`] has them.
//!
//! Shapes: bottom [N, C, H, W]; top [N, C · Σ windows of each level], or with one level [N, C, 1, 1]. Gradient: the sum of
//! those of the levels. Source: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks" (2014); Caffe's layer
//! of this name.

use std::ops::Range;

use lgm_core::rng::stream_id;
use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Float, Formats, Fwd, Grid, Host, HostLayer,
    Layer, Node, Offer, Phase, Plan, Result, Space, View, ViewMut, Views, ViewsMut, args, ensure, kernel,
};
use lgm_cpu::elementwise;
use lgm_proto::pooling_parameter::PoolMethod;
use lgm_proto::spp_parameter::PoolMethod as SppMethod;
use lgm_proto::{LayerParameter, PoolingParameter, SppParameter};

use super::Pooling;
use crate::common::rows::Parts;

/// Levels beyond which no plane has as many elements.
const MOST_LEVELS: u32 = 24;

/// The layer; see the module.
pub struct Spp {
    param: SppParameter,
    phase: Phase,
    name: String,
    /// The levels as poolings, and what they planned.
    levels: Vec<(Pooling, Plan)>,
    /// The levels' results within the top, where there is more than one.
    parts: Parts,
    count: usize,
}

/// Scratch memory by number, beside the results of all levels: the gradient by one of them.
const GRADIENT: usize = 0;

impl Spp {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let name = param.name().to_string();
        let param = param.spp_param.unwrap_or_default();
        let height = param.pyramid_height();
        ensure!(
            (1..=MOST_LEVELS).contains(&height),
            "pyramid_height, the number of levels, must be from 1 to {MOST_LEVELS}, found {height}"
        );
        let (levels, parts) = (Vec::new(), Parts::default());
        Node::compute(Spp { param, phase: cx.phase, name, levels, parts, count: 0 })
    }

    /// The pooling of a level into 2^`level` parts along either axis.
    fn level(&self, level: u32, [height, width]: [usize; 2]) -> PoolingParameter {
        let parts = 1usize << level;
        let window = |extent: usize| {
            let kernel = extent.div_ceil(parts);
            (Some(kernel as u32), Some((kernel * parts - extent).div_ceil(2) as u32))
        };
        let ((kernel_h, pad_h), (kernel_w, pad_w)) = (window(height), window(width));
        let pool = match self.param.pool() {
            SppMethod::Max => PoolMethod::Max,
            SppMethod::Ave => PoolMethod::Ave,
            SppMethod::Stochastic => PoolMethod::Stochastic,
        };
        PoolingParameter {
            pool: Some(pool as i32),
            kernel_h,
            kernel_w,
            stride_h: kernel_h,
            stride_w: kernel_w,
            pad_h,
            pad_w,
            ..Default::default()
        }
    }

    /// Whether there is one level, whose top is the layer's.
    fn is_one(&self) -> bool {
        self.levels.len() == 1
    }

    /// What the levels, as they are planned, take together.
    fn memory(&self, plan: &mut Plan) {
        plan.saved = self.levels.iter().flat_map(|(_, plan)| plan.saved.clone()).collect();
    }

    /// The numbers of level `l` among what the levels save.
    fn saved_by(&self, l: usize) -> Range<usize> {
        let before: usize = self.levels[..l].iter().map(|(_, plan)| plan.saved.len()).sum();
        before..before + self.levels[l].1.saved.len()
    }

    /// The call of level `l`'s forward, which writes `top`.
    fn forward_of<'a: 'b, 'b, S: Space>(
        &self,
        l: usize,
        io: &mut Fwd<'a, S>,
        call: S::Call<'b>,
        top: ViewMut<'b, S>,
    ) -> Fwd<'b, S> {
        let bottoms: Views<'b, S> = io.bottoms.iter().copied().collect();
        let saved = self.saved_by(l).map(|i| io.saved.get_mut(i).and_then(Option::take)).collect();
        Fwd {
            call,
            bottoms,
            tops: [Some(top)].into_iter().collect(),
            params: Default::default(),
            saved,
            scratch: Default::default(),
        }
    }

    /// The call of level `l`'s backward, which writes `dx`.
    fn backward_of<'a: 'b, 'b, S: Space>(
        &self,
        l: usize,
        io: &Bwd<'a, S>,
        call: S::Call<'b>,
        (dy, dx): (View<'b, S>, ViewMut<'b, S>),
    ) -> Bwd<'b, S> {
        Bwd {
            call,
            bottoms: io.bottoms.iter().copied().collect(),
            tops: Default::default(),
            top_diffs: [Some(dy)].into_iter().collect(),
            bottom_diffs: [Some(dx)].into_iter().collect(),
            params: Default::default(),
            param_diffs: Default::default(),
            saved: self.saved_by(l).map(|i| io.saved.get(i).copied().flatten()).collect(),
            scratch: Default::default(),
        }
    }
}

/// Takes view `i` of what a call has.
fn take<'a, S: Space>(views: &mut ViewsMut<'a, S>, i: usize) -> Result<ViewMut<'a, S>> {
    let view = views.get_mut(i).and_then(Option::take);
    view.ok_or_else(|| Error::internal(format!("blob {i} of a pyramid is absent or was taken before")))
}

/// The gradient by the only level's top.
fn only<'a, S: Space>(views: &Views<'a, S>) -> Result<View<'a, S>> {
    views.first().copied().flatten().ok_or_else(|| Error::internal("the top diff of a pyramid is absent"))
}

impl Layer for Spp {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        let height = self.param.pyramid_height();
        self.levels.clear();
        for l in 0..height {
            let stream = stream_id(&self.name, &format!("pooling of level {l}"));
            let mut pooling = Pooling::new(self.level(l, [shape[2], shape[3]]), stream, self.phase);
            let plan = pooling.plan(bottoms, 1).map_err(|error| {
                Error::config(format!("level {l} of pyramid_height {height}, into {0} × {0} parts: {error}", 1u32 << l))
            })?;
            self.levels.push((pooling, plan));
        }
        let flops = height as u64 * shape.count() as u64;
        let mut plan = Plan { flops, backward_bottoms: self.levels[0].1.backward_bottoms.clone(), ..Plan::default() };
        self.memory(&mut plan);
        self.count = shape.count();
        let tops: Vec<&BlobSpec> = self.levels.iter().map(|(_, plan)| &plan.tops[0]).collect();
        if self.is_one() {
            plan.tops = vec![tops[0].clone()];
            return Ok(plan);
        }
        let lens: Vec<usize> = tops.iter().map(|top| top.shape.count_from(1)).collect();
        plan.tops = vec![bottoms[0].with_shape([shape[0], lens.iter().sum()])];
        plan.scratch = [&bottoms[0]].into_iter().chain(tops).cloned().collect();
        self.parts = Parts::new(shape, 1, lens);
        Ok(plan)
    }
}

impl HostLayer for Spp {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let call = io.call;
        if self.is_one() {
            let top = take(&mut io.tops, 0)?;
            return HostLayer::forward::<T>(&self.levels[0].0, self.forward_of(0, &mut io, call, top));
        }
        let mut results: Vec<&[T]> = Vec::new();
        for (l, (pooling, plan)) in self.levels.iter().enumerate() {
            let result = io.scratch::<T>(l + 1)?;
            let top = ViewMut::of_slice(&mut *result, &plan.tops[0])?;
            HostLayer::forward::<T>(pooling, self.forward_of(l, &mut io, call, top))?;
            results.push(result);
        }
        self.parts.gather(io.top::<T>(0)?, &results);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let call = io.call;
        let Some(dx) = io.bottom_diffs.get_mut(0).and_then(Option::take) else { return Ok(()) };
        if self.is_one() {
            let diffs = (only(&io.top_diffs)?, dx);
            return HostLayer::backward::<T>(&self.levels[0].0, self.backward_of(0, &io, call, diffs));
        }
        let (all, mut dx, mut other) = (io.top_diff::<T>(0)?, dx, take(&mut io.scratch, GRADIENT)?);
        for (l, (pooling, _)) in self.levels.iter().enumerate() {
            let mut dy = take(&mut io.scratch, l + 1)?;
            self.parts.scatter(l, dy.slice_mut::<T>()?, all);
            let to = if l == 0 { dx.reborrow() } else { other.reborrow() };
            HostLayer::backward::<T>(pooling, self.backward_of(l, &io, call, (dy.into_view(), to)))?;
            if l > 0 {
                elementwise::add(other.slice_mut::<T>()?, dx.slice_mut()?);
            }
        }
        Ok(())
    }
}

impl DeviceLayer for Spp {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn prepare(&mut self, queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        for (pooling, own) in &mut self.levels {
            own.formats = plan.formats.clone();
            pooling.prepare(queue, own)?;
        }
        self.memory(plan);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let call = io.call;
        let y = take(&mut io.tops, 0)?;
        if self.is_one() {
            return DeviceLayer::forward(&self.levels[0].0, self.forward_of(0, &mut io, call, y));
        }
        for (l, (pooling, _)) in self.levels.iter().enumerate() {
            let result = take(&mut io.scratch, l + 1)?;
            let at = result.addr();
            DeviceLayer::forward(pooling, self.forward_of(l, &mut io, call, result))?;
            self.parts.copy_in(call, l, y.addr(), at)?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let call = io.call;
        let Some(dx) = io.bottom_diffs.get_mut(0).and_then(Option::take) else { return Ok(()) };
        if self.is_one() {
            let diffs = (only(&io.top_diffs)?, dx);
            return DeviceLayer::backward(&self.levels[0].0, self.backward_of(0, &io, call, diffs));
        }
        let (all, mut dx, mut other) = (io.top_diff(0)?, dx, take(&mut io.scratch, GRADIENT)?);
        for (l, (pooling, _)) in self.levels.iter().enumerate() {
            let dy = take(&mut io.scratch, l + 1)?;
            self.parts.copy_out(call, l, dy.addr(), all)?;
            let to = if l == 0 { dx.reborrow() } else { other.reborrow() };
            DeviceLayer::backward(pooling, self.backward_of(l, &io, call, (dy.into_view(), to)))?;
            if l > 0 {
                let args = args![dx.addr(), dx.addr(), other.addr(), 1.0f32, 1.0f32, self.count as i64];
                call.launch(kernel!("eltwise_sum"), Grid::elements(self.count), args)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::Shape;
    use lgm_testkit::{Case, Fill, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 's' type: 'SPP' bottom: 'x' top: 'y' spp_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let case = |param: &str, shape: [usize; 4]| Case::new(layer(param)).bottom(shape);
        let positive = |param: &str| Case::new(layer(param)).bottom_of([2, 2, 4, 8], Fill::Uniform(0.5, 2.0));
        check(
            &registry(),
            &[
                Case::golden("layers/spp_0"),
                Case::golden("layers/spp_more_0"),
                Case::golden("layers/spp_more_1"),
                Case::golden("layers/spp_more_2"),
                case("pyramid_height: 1 pool: AVE", [2, 3, 4, 5]),
                case("pyramid_height: 3", [2, 2, 7, 6]),
                positive("pyramid_height: 2 pool: STOCHASTIC").without_gradients(),
                positive("pyramid_height: 2 pool: STOCHASTIC").test_phase(),
                positive("pyramid_height: 1 pool: STOCHASTIC").test_phase(),
                case("pyramid_height: 4 pool: AVE", [2, 8, 16, 16]).without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |param: &str, x: Shape, needles: &[&str]| config_error(&registry(), &layer(param), &[x], needles);
        refused("", [2, 3, 4, 4].into(), &["pyramid_height", "from 1 to", "found 0"]);
        refused("pyramid_height: 99", [2, 3, 4, 4].into(), &["found 99"]);
        refused("pyramid_height: 2", [2, 3, 4].into(), &["4 axes", "(2, 3, 4)"]);
        refused("pyramid_height: 4", [2, 3, 4, 4].into(), &["level 3 of pyramid_height 4, into 8 × 8 parts"]);
    }
}
