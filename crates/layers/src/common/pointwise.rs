//! Layers that treat every element alone: y = f(x). Each says its formula and its derivative once for the host and once for
//! a device, as a [`Pointwise`]; [`node`] makes a layer of it.
//!
//! Shapes: one top like the bottom, in its memory if the net wants; so are the diffs.

use lgm_core::{
    Arg, Arity, BlobSpec, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Grid, Host, HostLayer, Kernel, Layer, Node,
    Offer, Plan, Result, Sharing, ensure,
};
use lgm_cpu::elementwise::{map_into, set};

use super::launch::fill;
use super::loops::map2;
use super::view;

/// What the derivative is computed from, besides dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Nothing else: f is linear, or constant.
    Nothing,
    /// x.
    Bottom,
    /// y.
    Top,
}

/// f and its derivative.
pub(crate) trait Pointwise: Send + 'static {
    /// y, by one call of [`Map::each`].
    fn forward<T: Float>(&self, map: Map<'_, T>);

    /// dx, by one call of [`Gradient::each`].
    fn backward<T: Float>(&self, gradient: Gradient<'_, T>);

    /// What it needs; asked for once.
    fn spec(&self) -> Spec;

    /// The value of y where that does not depend on x: neither of the above is asked for then.
    fn constant<T: Float>(&self) -> Option<T> {
        None
    }
}

/// What a pointwise layer needs.
pub(crate) struct Spec {
    /// Its kernels: [`kernels!`] of the name that POINTWISE has in `kernels/pointwise.cu`.
    pub kernels: [Kernel; 2],
    /// The numbers that both kernels take, in order.
    pub numbers: Vec<f32>,
    /// What backward and its kernel read.
    pub reads: Reads,
    /// Floating-point operations of forward for an element.
    pub flops: u64,
    /// How the top may share the bottom's memory; as a view where f(x) = x.
    pub sharing: Sharing,
    /// Whether there is no backward: no gradient flows, and none may be asked for.
    pub no_backward: bool,
}

impl Spec {
    /// Kernels without numbers, in place.
    pub fn new(kernels: [Kernel; 2], reads: Reads, flops: u64) -> Spec {
        Spec { kernels, numbers: Vec::new(), reads, flops, sharing: Sharing::InPlace, no_backward: false }
    }
}

/// The forward and the backward kernel of POINTWISE(name, …).
macro_rules! kernels {
    ($name:literal) => {
        [
            lgm_core::Kernel { f32: concat!($name, "_forward"), bf16: concat!($name, "_forward_bf16") },
            lgm_core::Kernel { f32: concat!($name, "_backward"), bf16: concat!($name, "_backward_bf16") },
        ]
    };
}
pub(crate) use kernels;

/// From the bottom to the top.
pub(crate) struct Map<'a, T> {
    x: Option<&'a [T]>,
    y: &'a mut [T],
}

impl<T: Float> Map<'_, T> {
    /// y = f(x).
    #[inline(always)]
    pub fn each(self, f: impl Fn(T) -> T + Sync) {
        map_into(self.x, self.y, f);
    }
}

/// From the top's diff to the bottom's.
pub(crate) struct Gradient<'a, T> {
    v: Option<&'a [T]>,
    dy: Option<&'a [T]>,
    dx: &'a mut [T],
}

impl<T: Float> Gradient<'_, T> {
    /// dx = f(v, dy), where v is what [`Spec::reads`] names; dy for nothing.
    #[inline(always)]
    pub fn each(self, f: impl Fn(T, T) -> T + Sync) {
        match self.v {
            Some(v) => map2(v, self.dy, self.dx, f),
            None => map_into(self.dy, self.dx, |dy| f(dy, dy)),
        }
    }
}

/// Numbers of a prototxt, with their names, in double precision.
///
/// # Errors
/// When one is NaN or infinite.
pub(crate) fn finite<const N: usize>(named: [(&str, f32); N]) -> Result<[f64; N]> {
    for (name, value) in named {
        ensure!(value.is_finite(), "{name} must be a finite number, found {value}");
    }
    Ok(named.map(|(_, value)| value.into()))
}

/// ln b, of the base b that a prototxt gives; -1 stands for e.
///
/// # Errors
/// When b is not positive and finite.
pub(crate) fn log_of_base(base: f32) -> Result<f64> {
    if base == -1.0 {
        return Ok(1.0);
    }
    ensure!(base > 0.0 && base.is_finite(), "base must be a positive number, or -1 for e, found {base}");
    Ok(f64::from(base).ln())
}

/// The layer that computes f.
pub(crate) fn node(f: impl Pointwise) -> Result<Node> {
    Node::compute(Elementwise::new(f))
}

/// The layer that computes f.
pub(crate) struct Elementwise<F> {
    f: F,
    spec: Spec,
    count: usize,
}

impl<F: Pointwise> Elementwise<F> {
    /// The layer, not yet planned.
    pub fn new(f: F) -> Self {
        Elementwise { spec: f.spec(), f, count: 0 }
    }

    fn is_view(&self) -> bool {
        self.spec.sharing == Sharing::View
    }
}

impl<F: Pointwise> Layer for Elementwise<F> {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn is_elementwise(&self) -> bool {
        true
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.count = bottoms[0].shape.count();
        let reads = if self.f.constant::<f32>().is_some() { Reads::Nothing } else { self.spec.reads };
        let only = |what: Reads| if reads == what { vec![0] } else { vec![] };
        Ok(Plan {
            share_data: vec![(0, 0, self.spec.sharing)],
            backward_bottoms: only(Reads::Bottom),
            backward_tops: only(Reads::Top),
            no_backward: self.spec.no_backward,
            flops: if self.is_view() { 0 } else { self.spec.flops * self.count as u64 },
            ..Plan::elementwise(&bottoms[0])
        })
    }
}

impl<F: Pointwise> HostLayer for Elementwise<F> {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.is_view() {
            return view::forward::<T>(io);
        }
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        match self.f.constant() {
            Some(value) => set(value, y),
            None => self.f.forward(Map { x, y }),
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff_unless_shared::<T>(0)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        if self.f.constant::<T>().is_some() {
            set(T::zero(), dx);
            return Ok(());
        }
        let v = match self.spec.reads {
            Reads::Nothing => None,
            Reads::Bottom => Some(io.bottom::<T>(0)?),
            Reads::Top => Some(io.top::<T>(0)?),
        };
        self.f.backward(Gradient { v, dy, dx });
        Ok(())
    }
}

impl<F: Pointwise> Elementwise<F> {
    /// Kernels' arguments: blobs, numbers, the number of elements.
    fn args(&self, blobs: &[Arg]) -> Vec<Arg> {
        let mut args = blobs.to_vec();
        args.extend(self.spec.numbers.iter().map(|&number| Arg::from(number)));
        args.push((self.count as i64).into());
        args
    }
}

impl<F: Pointwise> DeviceLayer for Elementwise<F> {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.is_view() {
            return view::forward_on(io);
        }
        let y = io.top(0)?;
        if let Some(value) = self.f.constant() {
            return fill(io.call, y, value, self.count);
        }
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let [forward, _] = self.spec.kernels;
        io.launch(forward, Grid::elements(self.count), &self.args(&[y.into(), x.into()]))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        if self.f.constant::<f32>().is_some() {
            return fill(io.call, dx, 0.0, self.count);
        }
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        let v = match self.spec.reads {
            Reads::Nothing => dy,
            Reads::Bottom => io.bottom(0)?,
            Reads::Top => io.top(0)?,
        };
        let [_, backward] = self.spec.kernels;
        io.launch(backward, Grid::elements(self.count), &self.args(&[dx.into(), dy.into(), v.into()]))
    }
}
