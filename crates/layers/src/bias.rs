//! Bias: y = x + b, with b repeated along the axes it lacks.
//!
//! Shapes: bottom x; b, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (zeros if absent); top like x, in its memory if
//! the net wants. Gradient: dx = dy; db = Σ of dy over the axes that b lacks.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostRun, Layer, Node, ParamSpec, Plan, Result, Shape,
    ensure,
};
use lgm_cpu::for_each_row;
use lgm_proto::{BiasParameter, LayerParameter};
use rayon::prelude::*;

use crate::eltwise::diff_source;
use crate::pointwise;

/// The layer; see the module.
pub struct Bias {
    param: BiasParameter,
    learned: bool,
    along: Broadcast,
}

impl Bias {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.bias_param.clone().unwrap_or_default();
        Node::compute(Bias { param, learned: false, along: Broadcast::default() })
    }
}

impl Layer for Bias {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (axis, num_axes) = (self.param.axis(), self.param.num_axes());
        let mut plan = Plan::elementwise(&bottoms[0]);
        self.learned = bottoms.len() == 1;
        if self.learned {
            let shape = learned_shape(&bottoms[0].shape, axis, num_axes)?;
            self.along = Broadcast::new(&bottoms[0].shape, axis, &shape, "the bias")?;
            plan.params = vec![ParamSpec::new(shape, self.param.filler.as_ref())];
        } else {
            self.along = Broadcast::new(&bottoms[0].shape, axis, &bottoms[1].shape, "bottom 1")?;
        }
        Ok(plan)
    }
}

impl HostRun for Bias {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let b = if self.learned { io.param::<T>(0)? } else { io.bottom::<T>(1)? };
        self.along.map(io.top::<T>(0)?, io.bottom_unless_shared::<T>(0)?, |d, x| x + b[d]);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        let db = if self.learned { io.param_diff::<T>(0)? } else { io.bottom_diff::<T>(1)? };
        if let Some(db) = db {
            let dy = diff_source(own, dx.as_deref())?;
            self.along.sum(db, self.learned, dy, dy, |dy, _| dy);
        }
        if let (Some(dy), Some(dx)) = (own, dx) {
            dx.copy_from_slice(dy);
        }
        Ok(())
    }
}

/// The shape of a learned blob that spans `num_axes` axes of `bottom` from `axis` on.
pub(crate) fn learned_shape(bottom: &Shape, axis: i32, num_axes: i32) -> Result<Shape> {
    let start = bottom.axis(axis)?;
    ensure!(num_axes >= -1, "num_axes is {num_axes}; it must be at least 0, or -1 for all axes from axis on");
    let end = if num_axes == -1 { bottom.len() } else { start + num_axes as usize };
    ensure!(
        end <= bottom.len(),
        "axis {axis} + num_axes {num_axes} goes past the {}-axis bottom {bottom}",
        bottom.len()
    );
    Ok(Shape::from(&bottom[start..end]))
}

/// How a blob with some of another's axes is repeated along the rest: its `dim` elements stand between `outer` indices
/// before them and `inner` after.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Broadcast {
    outer: usize,
    dim: usize,
    inner: usize,
}

impl Broadcast {
    /// A blob of shape `by`, called `what`, along the axes of `bottom` from `axis` on.
    pub fn new(bottom: &Shape, axis: i32, by: &Shape, what: &str) -> Result<Broadcast> {
        let start = if by.is_empty() { 0 } else { bottom.axis(axis)? };
        let end = start + by.len();
        if end > bottom.len() || bottom[start..end] != by[..] {
            let what = format!("{what} must have the extents of bottom 0, {bottom}, from axis {axis} on");
            let expected = Shape::from(&bottom[start..end.min(bottom.len())]);
            return Err(Error::Shape { what, expected, found: by.clone() });
        }
        Ok(Broadcast { outer: bottom.span(0..start), dim: by.count(), inner: bottom.count_from(end) })
    }

    /// Writes `f(d, x)` for each element x of `src` (of `dst` itself if absent) that element d of the repeated blob meets.
    pub fn map<T: Float>(&self, dst: &mut [T], src: Option<&[T]>, f: impl Fn(usize, T) -> T + Sync) {
        let len = if self.inner == 1 { self.dim } else { self.inner };
        for_each_row(dst, len, |r, row| {
            if let Some(src) = src {
                row.copy_from_slice(&src[r * len..][..row.len()]);
            }
            if self.inner == 1 {
                row.iter_mut().enumerate().for_each(|(d, x)| *x = f(d, *x));
            } else {
                let d = r % self.dim;
                row.iter_mut().for_each(|x| *x = f(d, *x));
            }
        });
    }

    /// Sums `f(a, b)` over the elements that each element of the repeated blob meets; into `out`, or on top of it.
    pub fn sum<T: Float>(&self, out: &mut [T], add: bool, a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) {
        const COLUMNS: usize = 64;
        if !add {
            out.fill(T::zero());
        }
        if self.inner == 1 {
            out.par_chunks_mut(COLUMNS).enumerate().for_each(|(c, out)| {
                for start in (0..self.outer).map(|o| o * self.dim + c * COLUMNS) {
                    let pairs = a[start..].iter().zip(&b[start..]);
                    out.iter_mut().zip(pairs).for_each(|(out, (&a, &b))| *out += f(a, b));
                }
            });
        } else {
            out.par_iter_mut().enumerate().for_each(|(d, out)| {
                let start = |o: usize| (o * self.dim + d) * self.inner;
                let row = |o: usize| pointwise::sum(&a[start(o)..][..self.inner], &b[start(o)..], &f);
                *out += (0..self.outer).map(row).sum();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Rig, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 'b' type: 'Bias' {bottoms} top: 'y' bias_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'x'";
    const TWO: &str = "bottom: 'x' bottom: 'b'";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/bias_0"),
                Case::golden("layers/bias_two_bottoms"),
                Case::new(layer(ONE, "num_axes: 0")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: 0 num_axes: -1")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: -2 num_axes: 1")).bottom([2, 3, 11]),
                Case::new(layer(ONE, "axis: -1")).bottom([3, 70]),
                Case::new(layer(TWO, "axis: 0")).bottom([3, 2]).bottom([3]),
                Case::new(layer(TWO, "")).bottom([3, 2]).bottom(Shape::scalar()),
            ],
        );
    }

    #[test]
    fn fillers() {
        let filled = |param: &str| {
            Rig::new(&registry(), &layer(ONE, param), Phase::Train, DType::F32, &[[2, 3].into()])
                .unwrap()
                .filled()
                .unwrap()
        };
        assert_eq!(filled(""), [[0.0; 3]]);
        assert_eq!(filled("filler { value: 2 }"), [[2.0; 3]]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = Shape::from([2, 3, 4]);
        config_error(&registry(), &layer(ONE, "axis: 3"), &[x.clone()], &["axis 3", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "axis: 2 num_axes: 2"),
            &[x.clone()],
            &["num_axes 2", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(ONE, "num_axes: -2"), &[x.clone()], &["num_axes is -2"]);
        let b = Shape::from([4, 3]);
        config_error(&registry(), &layer(TWO, ""), &[x.clone(), b], &["bottom 1", "(2, 3, 4)", "(3, 4)", "(4, 3)"]);
        config_error(&registry(), &layer(TWO, "axis: 2"), &[x, [4, 1].into()], &["bottom 1", "(4, 1)"]);
    }
}
