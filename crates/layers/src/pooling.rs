//! Pooling: one value for each window of a plane.
//!
//! | `pool` | top | gradient |
//! | --- | --- | --- |
//! | `MAX` | the largest (the first, if several) | dy to it alone |
//! | `AVE` | the mean; padding counts as zeros, except beyond the padded edge | dy / size to each |
//! | `AVE_EXC_PAD` | the mean of what there is, without padding | dy / size to each |
//! | `STOCHASTIC`, TRAIN | one of them, each drawn with probability x / Σx | dy to the one drawn |
//! | `STOCHASTIC`, TEST | Σx² / Σx, the mean of such draws; 0 unless Σx > 0 | dy · (2x − y) / Σx |
//!
//! Shapes: bottom `[N, C, H, W]`; top `[N, C, ⌈(H + 2 · pad − kernel) / stride⌉ + 1, …]`, rounded down with
//! `round_mode: FLOOR` or, as forks of Caffe say it, `ceil_mode: false`, and without a last window that would begin beyond the bottom; with MAX, a second top if asked
//! for: the index within its plane of each maximum. `global_pooling` makes a plane one window. `pad_t`, `pad_b`, `pad_l` and `pad_r`, of
//! Synopsys' fork as AVE_EXC_PAD is, pad each side by its own.
//!
//! Source: Caffe's layer of this name; Zeiler and Fergus, "Stochastic Pooling" (2013), for values that are not negative.
//! Caffe has STOCHASTIC on the GPU only, and its gradient in TEST is not one. Window i of forward pass b draws word i mod 4
//! of counter b · 2³² + ⌊i / 4⌋ of the layer's own random stream. A window that holds no element, which Caffe fills with
//! −FLT_MAX, is refused.

use lgm_core::rng::{Philox, stream_id, unit};
use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Phase, Plan, Result, Step, Window, ensure,
};
use lgm_cpu::for_each_row;
use lgm_cpu::pool::{PoolGeometry, Round};
use lgm_proto::pooling_parameter::{PoolMethod, RoundMode};
use lgm_proto::{LayerParameter, PoolingParameter};

use crate::common::shapes::sides;

mod device;
mod spp;

pub use spp::Spp;

/// The layer; see the module.
pub struct Pooling {
    param: PoolingParameter,
    method: Method,
    stream: u64,
    geometry: PoolGeometry,
    planes: usize,
    channels: usize,
    /// Whether the maxima's indices are a top, not kept by the layer.
    index_top: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Max,
    Average,
    Draw,
    Expect,
}

impl Pooling {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let stream = stream_id(param.name(), "pooling");
        Node::compute(Pooling::new(param.pooling_param.unwrap_or_default(), stream, cx.phase))
    }

    /// The layer, which draws from the random stream given.
    fn new(param: PoolingParameter, stream: u64, phase: Phase) -> Pooling {
        let method = match (param.pool(), phase) {
            (PoolMethod::Max, _) => Method::Max,
            (PoolMethod::Ave | PoolMethod::AveExcPad, _) => Method::Average,
            (PoolMethod::Stochastic, Phase::Train) => Method::Draw,
            (PoolMethod::Stochastic, Phase::Test) => Method::Expect,
        };
        let geometry = PoolGeometry { windows: [Window::UNIT; 2], padding_counts: true };
        Pooling { param, method, stream, geometry, planes: 0, channels: 0, index_top: false }
    }

    fn geometry(&self, input: [usize; 2]) -> Result<PoolGeometry> {
        let p = &self.param;
        let stride = pair("stride", p.stride, ("stride_h", p.stride_h), ("stride_w", p.stride_w))?.unwrap_or([1, 1]);
        let pad = pair("pad", p.pad, ("pad_h", p.pad_h), ("pad_w", p.pad_w))?;
        let sides = sides([p.pad_t, p.pad_b, p.pad_l, p.pad_r])?;
        ensure!(sides.is_none() || pad.is_none(), "both pad and pad_t, pad_b, pad_l or pad_r are given; keep one way");
        let pad = sides.or(pad.map(|pad| pad.map(|pad| [pad; 2]))).unwrap_or_default();
        let kernel = pair("kernel_size", p.kernel_size, ("kernel_h", p.kernel_h), ("kernel_w", p.kernel_w))?;
        if p.global_pooling() {
            ensure!(kernel.is_none(), "with global_pooling the window is the whole plane; take out the kernel size");
            ensure!(pad == [[0; 2]; 2] && stride == [1, 1], "with global_pooling, pad must be 0 and stride 1");
        }
        let Some(mut kernel) = kernel.or(p.global_pooling().then_some(input)) else {
            return Err(lgm_core::Error::config(
                "kernel_size is missing (or kernel_h and kernel_w, or global_pooling)",
            ));
        };
        let stochastic = matches!(self.method, Method::Draw | Method::Expect);
        ensure!(!stochastic || pad == [[0; 2]; 2], "STOCHASTIC pooling takes no padding");
        let round = match (p.round_mode, p.ceil_mode) {
            (Some(_), Some(up)) if up != (p.round_mode() == RoundMode::Ceil) => {
                return Err(lgm_core::Error::config("round_mode and ceil_mode contradict each other; keep one"));
            }
            _ if p.round_mode() == RoundMode::Floor || !p.ceil_mode() => Round::Floor,
            _ => Round::Ceil,
        };
        for d in 0..2 {
            let padded = pad[d].iter().fold(input[d], |all, &pad| all.saturating_add(pad));
            let smaller = pad[d].iter().all(|&pad| pad < kernel[d]);
            // One window that hangs over the edge, by less than a stride: rounded up, there is room for it.
            if round == Round::Ceil && smaller && kernel[d] > padded && kernel[d] - padded < stride[d] {
                kernel[d] = padded;
            }
        }
        let padding_counts = p.pool() != PoolMethod::AveExcPad;
        let geometry = PoolGeometry { padding_counts, ..PoolGeometry::sided(input, kernel, stride, pad, round)? };
        for w in &geometry.windows {
            let start = (w.output - 1) * w.stride;
            ensure!(
                !w.covered(w.output - 1).is_empty(),
                "the last window would begin at {start}, outside the bottom's extent {}: \
                 use round_mode: FLOOR, or a stride no larger than the kernel",
                w.input
            );
        }
        Ok(geometry)
    }

    /// Draws from each window; see the module.
    fn draw<T: Float>(&self, step: &Step, x: &[T], y: &mut [T], index: Option<&mut [T]>) {
        let g = &self.geometry;
        let philox = Philox::new(step.seed, self.stream);
        let pick = |plane: usize, at: usize| {
            let x = &x[plane * g.input_area()..][..g.input_area()];
            let sum: T = self.window(at).map(|i| x[i]).sum();
            let i = plane * g.output_area() + at;
            let word = philox.at((step.batch << 32) + i as u64 / 4)[i % 4];
            let threshold = T::of(unit(word)) * sum;
            let mut below = T::zero();
            let reaches = |&i: &usize| {
                below += x[i];
                below > threshold
            };
            self.window(at).find(reaches).or(self.window(at).next()).unwrap_or(0)
        };
        if let Some(index) = index {
            for_each_row(index, g.output_area(), |p, index| {
                index.iter_mut().enumerate().for_each(|(at, index)| *index = T::of(pick(p, at) as f64));
            });
        }
        for_each_row(y, g.output_area(), |p, y| {
            y.iter_mut().enumerate().for_each(|(at, y)| *y = x[p * g.input_area() + pick(p, at)]);
        });
    }

    /// Σx and Σx² of a window.
    fn sums<T: Float>(&self, plane: &[T], at: usize) -> (T, T) {
        self.window(at).map(|i| plane[i]).fold((T::zero(), T::zero()), |(a, b), x| (a + x, b + x * x))
    }

    /// Where in a plane of the bottom the elements of window `at` are.
    fn window(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        let [down, across] = self.geometry.windows;
        let width = across.input;
        let (rows, columns) = (down.covered(at / across.output), across.covered(at % across.output));
        rows.flat_map(move |row| columns.clone().map(move |column| row * width + column))
    }
}

type Named = (&'static str, Option<u32>);

/// The value along rows and columns: from one field for both, or from two.
fn pair(name: &str, both: Option<u32>, h: Named, w: Named) -> Result<Option<[usize; 2]>> {
    match (both, h.1, w.1) {
        (None, None, None) => Ok(None),
        (Some(v), None, None) => Ok(Some([v as usize; 2])),
        (None, Some(h), Some(w)) => Ok(Some([h as usize, w as usize])),
        (None, ..) => Err(lgm_core::Error::config(format!("{} and {} go together; one is missing", h.0, w.0))),
        (Some(_), ..) => {
            Err(lgm_core::Error::config(format!("both {name} and {} or {} are given; keep one way", h.0, w.0)))
        }
    }
}

impl Layer for Pooling {
    fn arity(&self) -> Arity {
        Arity::range(1..=1, if self.method == Method::Max { 1..=2 } else { 1..=1 })
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        let shape = &bottom.shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        self.geometry = self.geometry([shape[2], shape[3]])?;
        ensure!(
            matches!(self.method, Method::Average | Method::Expect) || self.geometry.input_area() <= 1 << 24,
            "a plane of {} × {} has more elements than an index can count exactly ({})",
            shape[2],
            shape[3],
            1 << 24
        );
        let top = bottom.with_shape(shape.splice(2..4, self.geometry.windows.map(|w| w.output)));
        self.index_top = tops == 2;
        let mut plan = Plan { index_tops: (1..tops).collect(), ..Plan::new(vec![top.clone(); tops]) };
        match self.method {
            Method::Average => {}
            Method::Expect => plan.backward_bottoms = vec![0],
            Method::Max if self.index_top => plan.backward_tops = vec![1],
            Method::Max | Method::Draw => plan.saved = vec![top],
        }
        Ok(plan)
    }
}

impl HostLayer for Pooling {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        match self.method {
            Method::Max => {
                let index = if self.index_top { Some(io.top::<T>(1)?) } else { io.saved::<T>(0)? };
                self.geometry.max_forward(x, y, index);
            }
            Method::Average => self.geometry.average_forward(x, y),
            Method::Draw => self.draw(io.call.step, x, y, io.saved::<T>(0)?),
            Method::Expect => for_each_row(y, self.geometry.output_area(), |p, y| {
                let x = &x[p * self.geometry.input_area()..];
                for (at, y) in y.iter_mut().enumerate() {
                    let (sum, squares) = self.sums(x, at);
                    *y = if sum > T::zero() { squares / sum } else { T::zero() };
                }
            }),
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff::<T>(0)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        match self.method {
            Method::Max | Method::Draw => {
                let index = if self.index_top { io.top::<T>(1)? } else { io.saved::<T>(0)? };
                self.geometry.max_backward(dy, index, dx);
            }
            Method::Average => self.geometry.average_backward(dy, dx),
            Method::Expect => {
                let x = io.bottom::<T>(0)?;
                for_each_row(dx, self.geometry.input_area(), |p, dx| {
                    let x = &x[p * self.geometry.input_area()..];
                    let dy = &dy[p * self.geometry.output_area()..][..self.geometry.output_area()];
                    dx.fill(T::zero());
                    for (at, &dy) in dy.iter().enumerate() {
                        let (sum, squares) = self.sums(x, at);
                        if sum > T::zero() {
                            let y = squares / sum;
                            self.window(at).for_each(|i| dx[i] += dy * (x[i] + x[i] - y) / sum);
                        }
                    }
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
