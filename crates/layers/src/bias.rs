//! Bias: y = x + b, with b repeated along the axes it lacks.
//!
//! Shapes: bottom x; b, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (zeros if absent); top like x, in its memory if
//! the net wants. Gradient: dx = dy; db = Σ of dy over the axes that b lacks.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result, Shape,
    ensure,
};
use lgm_cpu::batchnorm::{self, Extents};
use lgm_cpu::{elementwise, for_each_part, for_each_row};
use lgm_proto::{BiasParameter, LayerParameter};

use crate::eltwise::diff_source;

mod device;

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

impl HostLayer for Bias {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let b = if self.learned { io.param::<T>(0)? } else { io.bottom::<T>(1)? };
        self.along.add(io.bottom_unless_shared::<T>(0)?, b, io.top::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        let db = if self.learned { io.param_diff::<T>(0)? } else { io.bottom_diff::<T>(1)? };
        if let Some(db) = db {
            let dy = diff_source(own, dx.as_deref())?;
            if !self.learned {
                db.fill(T::zero());
            }
            self.along.add_sums(dy, None, db);
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

    /// y = x + b; on `y` itself when `x` is absent.
    fn add<T: Float>(&self, x: Option<&[T]>, b: &[T], y: &mut [T]) {
        self.rows(x, y, |d, row| {
            if self.inner == 1 {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            } else {
                row.iter_mut().for_each(|y| *y += b[d]);
            }
        });
    }

    /// y = x · s, and + b if there is one; on `y` itself when `x` is absent.
    pub fn scale_shift<T: Float>(&self, x: Option<&[T]>, s: &[T], b: Option<&[T]>, y: &mut [T]) {
        if self.inner > 1 {
            return batchnorm::scale_shift(x, self.extents(), s, b, y);
        }
        self.rows(x, y, |_, row| {
            row.iter_mut().zip(s).for_each(|(y, &s)| *y *= s);
            if let Some(b) = b {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            }
        });
    }

    /// Calls `row` with runs of `y`, copied from `x` if there is one: the elements that meet element d of the repeated
    /// blob or, when nothing stands after it, all of it.
    fn rows<T: Float>(&self, x: Option<&[T]>, y: &mut [T], row: impl Fn(usize, &mut [T]) + Sync) {
        let len = if self.inner == 1 { self.dim } else { self.inner };
        for_each_row(y, len, |r, y| {
            if let Some(x) = x {
                y.copy_from_slice(&x[r * len..][..y.len()]);
            }
            row(r % self.dim, y);
        });
    }

    /// Adds to `out` the sums of dy · x (of dy, without x) over the elements that each of the repeated blob meets.
    pub fn add_sums<T: Float>(&self, dy: &[T], x: Option<&[T]>, out: &mut [T]) {
        let (n, dim, inner) = (self.outer, self.dim, self.inner);
        match x {
            _ if inner == 1 => self.add_rows(dy, x, out),
            Some(x) => elementwise::dot_per_channel(dy, x, n, dim, inner, out),
            None => elementwise::sum_per_channel(dy, n, dim, inner, out),
        }
    }

    /// The same where nothing stands after the repeated blob: whole rows, in blocks of columns.
    fn add_rows<T: Float>(&self, dy: &[T], x: Option<&[T]>, out: &mut [T]) {
        const COLUMNS: usize = 64;
        for_each_part(out, COLUMNS, |c, out| {
            for start in (0..self.outer).map(|o| o * self.dim + c * COLUMNS) {
                let sums = out.iter_mut().zip(&dy[start..]);
                match x {
                    Some(x) => sums.zip(&x[start..]).for_each(|((out, &dy), &x)| *out += dy * x),
                    None => sums.for_each(|(out, &dy)| *out += dy),
                }
            }
        });
    }

    fn extents(&self) -> Extents {
        Extents { n: self.outer, channels: self.dim, spatial: self.inner }
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
        config_error(&registry(), &layer(ONE, "axis: 3"), std::slice::from_ref(&x), &["axis 3", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "axis: 2 num_axes: 2"),
            std::slice::from_ref(&x),
            &["num_axes 2", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(ONE, "num_axes: -2"), std::slice::from_ref(&x), &["num_axes is -2"]);
        let b = Shape::from([4, 3]);
        config_error(&registry(), &layer(TWO, ""), &[x.clone(), b], &["bottom 1", "(2, 3, 4)", "(3, 4)", "(4, 3)"]);
        config_error(&registry(), &layer(TWO, "axis: 2"), &[x, [4, 1].into()], &["bottom 1", "(4, 1)"]);
    }
}
