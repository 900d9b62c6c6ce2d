//! y = x · s + b with s, b or both, each repeated along the axes it lacks: Scale and Bias.
//!
//! One of the two spans `num_axes` axes of the bottom x from `axis` on (−1: all the rest; 0: one number) and is learned, or
//! is a second bottom of the bottom's extents from `axis` on; where that is s, b may be learned beside it. Top like x, in its
//! memory if the net wants. Gradient: dx = dy · s; ds = Σ of dy · x, db = Σ of dy, over the axes that they lack.
//!
//! s may have bounds, between which it is brought before it is used: in TRAIN a learned one itself, so that the solver goes on from
//! there, else a copy. ds is the same within and beyond them.

use lgm_core::{
    Arity, BlobSpec, Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, DeviceQueue, Float, Formats, Fwd, Grid, Host,
    HostLayer, Layer, Node, Offer, ParamSpec, Plan, Result, args,
};
use lgm_proto::FillerParameter;

use super::broadcast::{Broadcast, learned_shape};
use super::diff::diff_source;

/// What a prototxt says of such a layer.
pub(crate) struct Affine {
    pub axis: i32,
    pub num_axes: i32,
    /// What the second bottom is, or else the first parameter.
    pub main: Main,
    /// Fills that parameter: with zeros a bias, with ones a scale, where there is none.
    pub filler: Option<FillerParameter>,
    /// The bounds of a scale, and whether a learned one is itself brought there.
    pub bounds: Option<Bounds>,
    /// Beside a scale, a learned bias and its filler.
    pub bias: Option<Option<FillerParameter>>,
}

/// The least and the greatest that a scale may be.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub least: f32,
    pub most: f32,
    /// The phase is TRAIN.
    pub train: bool,
}

impl Bounds {
    fn bring<T: Float>(self, s: &mut [T]) {
        let (least, most) = (T::of(self.least.into()), T::of(self.most.into()));
        s.iter_mut().for_each(|s| {
            let below = if *s > most { most } else { *s };
            *s = if below < least { least } else { below };
        });
    }

    fn bring_on(self, call: DeviceCall<'_>, to: DevicePtr, from: DevicePtr, n: usize) -> Result<DevicePtr> {
        call.launch("clip_forward", Grid::elements(n), args![to, from, self.least, self.most, n as i64])?;
        Ok(to)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    Scale,
    Bias,
}

/// The layer.
pub(crate) fn node(affine: Affine) -> Result<Node> {
    Node::compute(AffineLayer { affine, learned: false, along: Broadcast::default() })
}

struct AffineLayer {
    affine: Affine,
    learned: bool,
    along: Broadcast,
}

/// Where s or b lies.
#[derive(Clone, Copy)]
enum Operand {
    Param(usize),
    Bottom,
}

impl AffineLayer {
    fn main(&self) -> Operand {
        if self.learned { Operand::Param(0) } else { Operand::Bottom }
    }

    /// Whether forward brings the parameter itself between its bounds.
    fn bounds_itself(&self) -> bool {
        self.learned && self.affine.bounds.is_some_and(|bounds| bounds.train)
    }

    /// The bounds that a copy of s is brought between.
    fn bounds_of_copy(&self) -> Option<Bounds> {
        self.affine.bounds.filter(|_| !self.bounds_itself())
    }

    fn scale(&self) -> Option<Operand> {
        (self.affine.main == Main::Scale).then(|| self.main())
    }

    fn bias(&self) -> Option<Operand> {
        match self.affine.main {
            Main::Bias => Some(self.main()),
            Main::Scale => self.affine.bias.as_ref().map(|_| Operand::Param(usize::from(self.learned))),
        }
    }
}

impl Layer for AffineLayer {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let Affine { axis, num_axes, main, ref filler, bounds, ref bias } = self.affine;
        let bottom = &bottoms[0].shape;
        let mut plan = Plan::elementwise(&bottoms[0]);
        let (shape, what) = match (bottoms.get(1), main) {
            (Some(given), _) => (given.shape.clone(), "bottom 1"),
            (None, Main::Scale) => (learned_shape(bottom, axis, num_axes)?, "the scale"),
            (None, Main::Bias) => (learned_shape(bottom, axis, num_axes)?, "the bias"),
        };
        self.learned = bottoms.len() == 1;
        self.along = Broadcast::new(bottom, axis, &shape, what)?;
        if self.learned {
            let spec = match (filler, main) {
                (None, Main::Scale) => ParamSpec::constant(shape.clone(), 1.0),
                _ => ParamSpec::new(shape.clone(), filler.as_ref()),
            };
            plan.params.push(ParamSpec { rescaled: self.bounds_itself(), ..spec });
        }
        if bounds.is_some() {
            plan.scratch = vec![bottoms[0].with_shape(shape.clone())];
        }
        if let Some(filler) = bias {
            plan.params.push(ParamSpec::new(shape, filler.as_ref()));
        }
        if main == Main::Scale {
            plan.backward_bottoms = (0..bottoms.len()).collect();
        }
        Ok(plan)
    }
}

/// The values of s or b in forward or in backward.
macro_rules! values {
    ($io:ident, $operand:expr) => {
        match $operand {
            Operand::Param(i) => $io.param(i),
            Operand::Bottom => $io.bottom(1),
        }
    };
}

/// s, or its copy between the bounds, on the host.
macro_rules! scale {
    ($layer:ident, $io:ident, $operand:expr) => {{
        let s: &[T] = values!($io, $operand)?;
        match $layer.bounds_of_copy() {
            Some(bounds) => {
                let copy = $io.scratch::<T>(0)?;
                copy.copy_from_slice(s);
                bounds.bring(copy);
                &*copy
            }
            None => s,
        }
    }};
}

/// The same on a device.
macro_rules! scale_on {
    ($layer:ident, $io:ident, $operand:expr) => {{
        let s = values!($io, $operand)?;
        match $layer.bounds_of_copy() {
            Some(bounds) => bounds.bring_on($io.call, $io.scratch(1)?, s, $layer.along.count())?,
            None => s,
        }
    }};
}

impl HostLayer for AffineLayer {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let s: Option<&[T]> = match (self.scale(), self.affine.bounds) {
            (Some(_), Some(bounds)) if self.bounds_itself() => {
                let s = io.param_mut::<T>(0)?;
                bounds.bring(s);
                Some(s)
            }
            (Some(s), _) => Some(scale!(self, io, s)),
            (None, _) => None,
        };
        let b: Option<&[T]> = self.bias().map(|b| values!(io, b)).transpose()?;
        match (s, b) {
            (Some(s), b) => self.along.scale_shift(x, s, b, y),
            (None, Some(b)) => self.along.add(x, b, y),
            (None, None) => {}
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        for (operand, is_scale) in [(self.scale(), true), (self.bias(), false)] {
            let diff = match operand {
                Some(Operand::Param(i)) => io.param_diff::<T>(i)?,
                Some(Operand::Bottom) => io.bottom_diff::<T>(1)?,
                None => None,
            };
            let Some(diff) = diff else { continue };
            if matches!(operand, Some(Operand::Bottom)) {
                diff.fill(T::zero());
            }
            let x = if is_scale { Some(io.bottom::<T>(0)?) } else { None };
            self.along.add_sums(diff_source(own, dx.as_deref())?, x, diff);
        }
        // Last, because dx may hold dy until then.
        let Some(dx) = dx else { return Ok(()) };
        match (self.scale(), own) {
            (Some(s), _) => self.along.scale_shift(own, scale!(self, io, s), None, dx),
            (None, Some(dy)) => dx.copy_from_slice(dy),
            (None, None) => {}
        }
        Ok(())
    }
}

impl DeviceLayer for AffineLayer {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.along.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.insert(0, self.along.by_channel(plan.formats.top(0)).scratch(&plan.tops[0], 2));
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let s = match (self.scale(), self.affine.bounds) {
            (Some(_), Some(bounds)) if self.bounds_itself() => {
                let s = io.param(0)?;
                Some(bounds.bring_on(io.call, s, s, self.along.count())?)
            }
            (Some(s), _) => Some(scale_on!(self, io, s)),
            (None, _) => None,
        };
        let b = self.bias().map(|b| values!(io, b)).transpose()?;
        self.along.by_channel(io.format()).affine(io.queue(), y, x, s, b, false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.by_channel(io.format());
        let dx = io.bottom_diff(0);
        let (dy, partial) = (io.top_diff_or(0, dx)?, io.scratch(0)?);
        let mut diff = |operand: Option<Operand>| match operand? {
            Operand::Param(i) => io.param_diff(i),
            Operand::Bottom => io.bottom_diff(1),
        };
        let (ds, db) = (diff(self.scale()), diff(self.bias()));
        let x = ds.map(|_| io.bottom(0)).transpose()?;
        match self.bias() {
            // A bottom's diff is written, a parameter's added to.
            Some(Operand::Param(_)) if !self.learned => {
                if ds.is_some() {
                    along.add_sums(io.queue(), (dy, x), (ds, None), false, partial)?;
                }
                if db.is_some() {
                    along.add_sums(io.queue(), (dy, None), (None, db), true, partial)?;
                }
            }
            _ if ds.is_some() || db.is_some() => {
                along.add_sums(io.queue(), (dy, x), (ds, db), self.learned, partial)?;
            }
            _ => {}
        }
        // Last, because dx may hold dy until then.
        match (dx, self.scale()) {
            (Some(dx), Some(s)) => {
                let s = scale_on!(self, io, s);
                along.affine(io.queue(), dx, dy, Some(s), None, false)
            }
            (Some(dx), None) if dx != dy => io.queue().copy(dy, dx, along.element.bytes() * along.axes.count()),
            _ => Ok(()),
        }
    }
}
