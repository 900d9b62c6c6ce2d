//! Reduction: the axes from `axis` (0) on become one number, times `coeff` c.
//!
//! | operation | y | dx |
//! | --- | --- | --- |
//! | `SUM` | c · Σ x | c · dy |
//! | `ASUM` | c · Σ ∣x∣ | c · dy · sign x |
//! | `SUMSQ` | c · Σ x² | 2c · dy · x |
//! | `MEAN` | c/n · Σ x | c/n · dy |
//! | `MIN`, `MAX` | c · the extreme of x | c · dy at the first extreme element, else 0 |
//!
//! Shapes: bottom [d₀, …, dₖ]; top its axes before `axis`, a scalar for axis 0. Source: Caffe's layer of this name. MIN and
//! MAX are the L-GM fork's, where they run on the GPU alone and have no backward; the gradient is ours.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure};
use lgm_proto::reduction_parameter::ReductionOp;
use lgm_proto::{LayerParameter, ReductionParameter};

use crate::common::loops::{for_rows, total};

mod device;

/// The layer; see the module.
pub struct Reduction {
    param: ReductionParameter,
    /// Elements that become one.
    width: usize,
    /// Numbers that are left.
    rows: usize,
}

impl Reduction {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Reduction { param: param.reduction_param.unwrap_or_default(), width: 1, rows: 1 })
    }

    fn coeff(&self) -> f64 {
        let n = if self.param.operation() == ReductionOp::Mean { self.width.max(1) as f64 } else { 1.0 };
        f64::from(self.param.coeff()) / n
    }

    fn is_extreme(&self) -> bool {
        matches!(self.param.operation(), ReductionOp::Min | ReductionOp::Max)
    }

    /// The index of the first extreme element; one that is not a number is the most extreme.
    fn extreme<T: Float>(&self, x: &[T]) -> usize {
        let max = self.param.operation() == ReductionOp::Max;
        let beats = |a: T, b: T| !b.is_nan() && (a.is_nan() || if max { a > b } else { a < b });
        (1..x.len()).fold(0, |best, i| if beats(x[i], x[best]) { i } else { best })
    }
}

impl Layer for Reduction {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let axis = shape.axis(self.param.axis())?;
        self.width = shape.count_from(axis);
        ensure!(self.width > 0 || !self.is_extreme(), "nothing has no extreme: the bottom's shape is {shape}");
        let linear = matches!(self.param.operation(), ReductionOp::Sum | ReductionOp::Mean);
        Ok(Plan {
            backward_bottoms: if linear { vec![] } else { vec![0] },
            flops: shape.count() as u64,
            ..Plan::new(vec![bottoms[0].with_shape(Shape::from(&shape[..axis]))])
        })
    }
}

impl HostLayer for Reduction {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y, coeff) = (io.bottom::<T>(0)?, io.top::<T>(0)?, self.coeff());
        for_rows(y, 1, self.width, |i, y| {
            let x = &x[i * self.width..(i + 1) * self.width];
            let value = match self.param.operation() {
                ReductionOp::Sum | ReductionOp::Mean => total(x, x, |x, _| x),
                ReductionOp::Asum => total(x, x, |x, _| x.abs()),
                ReductionOp::Sumsq => total(x, x, |x, _| x * x),
                ReductionOp::Min | ReductionOp::Max => x[self.extreme(x)].f64(),
            };
            y[0] = T::of(coeff * value);
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (dy, coeff) = (io.top_diff::<T>(0)?, T::of(self.coeff()));
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let op = self.param.operation();
        if matches!(op, ReductionOp::Sum | ReductionOp::Mean) {
            for_rows(dx, self.width, self.width, |i, dx| dx.fill(coeff * dy[i]));
            return Ok(());
        }
        let x = io.bottom::<T>(0)?;
        for_rows(dx, self.width, self.width, |i, dx| {
            let (x, d) = (&x[i * self.width..(i + 1) * self.width], coeff * dy[i]);
            let both = dx.iter_mut().zip(x);
            match op {
                ReductionOp::Asum => {
                    both.for_each(|(dx, &x)| *dx = if x == T::zero() { T::zero() } else { d * x.signum() })
                }
                ReductionOp::Sumsq => both.for_each(|(dx, &x)| *dx = (d + d) * x),
                _ => {
                    dx.fill(T::zero());
                    dx[self.extreme(x)] = d;
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str) -> String {
        format!(r#"layer {{ name: "r" type: "Reduction" bottom: "x" top: "y" reduction_param {{ {fields} }} }}"#)
    }

    #[test]
    fn cases() {
        let mut cases: Vec<Case> =
            (0..4).map(|i| Case::golden(&format!("layers/reduction_{i}")).kink(0, 0.0, 1e-3)).collect();
        for op in ["SUM", "ASUM", "SUMSQ", "MEAN", "MIN", "MAX"] {
            for axis in [0, 1, -1] {
                let fields = format!("operation: {op} axis: {axis} coeff: -1.5");
                cases.push(Case::new(text(&fields)).bottom([3, 2, 4]).kink(0, 0.0, 1e-3));
            }
            cases.push(
                Case::new(text(&format!("operation: {op}")))
                    .bottom_of([5001], Fill::Normal(1.0, 0.5))
                    .without_gradients(),
            );
        }
        check(&crate::tests::registry(), &cases);
    }

    #[test]
    fn the_first_extreme_takes_the_gradient() {
        let run = |op: &str| {
            let text = text(&format!("operation: {op} axis: 1"));
            let harness =
                Harness::new(&crate::tests::registry(), &text, Phase::Train, DType::F32, &[[2, 3].into()]).unwrap();
            let mut inputs = harness.forward_inputs(&[&[1.0, 3.0, 3.0, -2.0, -2.0, 5.0]]).unwrap();
            inputs.top_diffs = vec![vec![1.0, 2.0]];
            let out = harness.run(&inputs).unwrap();
            (out.tops[0].clone(), out.bottom_diffs[0].clone().unwrap())
        };
        assert_eq!(run("MAX"), (vec![3.0, 5.0], vec![0.0, 1.0, 0.0, 0.0, 0.0, 2.0]));
        assert_eq!(run("MIN"), (vec![1.0, -2.0], vec![1.0, 0.0, 0.0, 2.0, 0.0, 0.0]));
    }

    #[test]
    fn the_axis_must_exist() {
        config_error(&crate::tests::registry(), &text("axis: 3"), &[[2, 3].into()], &["axis 3", "(2, 3)"]);
        config_error(&crate::tests::registry(), &text("axis: 1 operation: MAX"), &[[2, 0].into()], &["no extreme"]);
    }
}
