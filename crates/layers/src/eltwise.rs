//! Eltwise: one blob from several of the same shape, element by element.
//!
//! | `operation` | top | gradient by bottom i |
//! | --- | --- | --- |
//! | `SUM` | Σᵢ cᵢ · xᵢ, with cᵢ from `coeff`, else 1 | cᵢ · dy |
//! | `PROD` | Πᵢ xᵢ | dy · Πⱼ≠ᵢ xⱼ, or dy · y / xᵢ when `stable_prod_grad` is false (cheaper, but 0/0 where xᵢ is 0) |
//! | `MAX` | maxᵢ xᵢ | dy where bottom i gave the maximum, else 0 |
//!
//! Of equal values, `MAX` takes the second bottom's over the first's, and otherwise the earliest.
//!
//! Shapes: two or more bottoms of one shape, one top like them. The top may live in the first bottom's memory, and so may
//! the diffs.
//!
//! Source: Caffe's layer of this name. As there, `coeff` is refused by `PROD` and means nothing to `MAX`.

use std::cmp::Ordering;

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::elementwise::rectified;
use lgm_cpu::{BLOCK, for_each_row};
use lgm_proto::eltwise_parameter::EltwiseOp;
use lgm_proto::{EltwiseParameter, LayerParameter};

use crate::common::diff::diff_source;

mod device;

/// The layer; see the module.
pub struct Eltwise {
    param: EltwiseParameter,
    coeffs: Vec<f64>,
    count: usize,
    relu: bool,
}

impl Eltwise {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.eltwise_param.clone().unwrap_or_default();
        ensure!(
            param.operation() != EltwiseOp::Prod || param.coeff.is_empty(),
            "coeff is only for operation SUM; PROD takes none"
        );
        Node::compute(Eltwise { param, coeffs: Vec::new(), count: 0, relu: false })
    }

    /// Turns the top's diff, in `d`, into bottom `i`'s.
    fn gradient<T: Float>(&self, i: usize, d: &mut [T], start: usize, data: &Reads<'_, T>) {
        match self.param.operation() {
            EltwiseOp::Sum if self.coeffs[i] == 1.0 => {}
            EltwiseOp::Sum => {
                let c = T::of(self.coeffs[i]);
                d.iter_mut().for_each(|d| *d *= c);
            }
            EltwiseOp::Prod if self.param.stable_prod_grad() => {
                for x in data.bottoms.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, x)| x) {
                    d.iter_mut().zip(&x[start..]).for_each(|(d, &x)| *d *= x);
                }
            }
            EltwiseOp::Prod => {
                let quotients = data.top[start..].iter().zip(&data.bottoms[i][start..]);
                d.iter_mut().zip(quotients).for_each(|(d, (&y, &x))| *d *= y / x);
            }
            EltwiseOp::Max => {
                let i = T::of(i as f64);
                let chosen = |(d, &from): (&mut T, &T)| *d = if from == i { *d } else { T::zero() };
                d.iter_mut().zip(&data.chosen[start..]).for_each(chosen);
            }
        }
    }
}

/// What backward reads, as far as the operation needs it.
struct Reads<'a, T> {
    bottoms: Vec<&'a [T]>,
    top: &'a [T],
    chosen: &'a [T],
}

impl Layer for Eltwise {
    fn arity(&self) -> Arity {
        Arity::range(2..=usize::MAX, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let n = bottoms.len();
        for (i, bottom) in bottoms.iter().enumerate() {
            if bottom.shape != bottoms[0].shape {
                let what = format!("bottom {i} must have the shape of bottom 0");
                return Err(Error::Shape { what, expected: bottoms[0].shape.clone(), found: bottom.shape.clone() });
            }
        }
        let coeffs = &self.param.coeff;
        ensure!(coeffs.is_empty() || coeffs.len() == n, "{n} bottoms need {n} values of coeff, found {}", coeffs.len());
        self.coeffs = if coeffs.is_empty() { vec![1.0; n] } else { coeffs.iter().map(|&c| c as f64).collect() };
        self.count = bottoms[0].shape.count();
        let mut plan = Plan::elementwise(&bottoms[0]);
        match self.param.operation() {
            EltwiseOp::Sum => {}
            EltwiseOp::Prod => {
                plan.backward_bottoms = (0..n).collect();
                plan.backward_tops = if self.param.stable_prod_grad() { vec![] } else { vec![0] };
            }
            EltwiseOp::Max => plan.saved = vec![bottoms[0].clone()],
        }
        Ok(plan)
    }

    fn fuse_relu(&mut self) -> bool {
        self.relu = self.param.operation() == EltwiseOp::Sum;
        self.relu
    }
}

impl HostLayer for Eltwise {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let first = io.bottom_unless_shared::<T>(0)?;
        let others = (1..self.coeffs.len()).map(|i| io.bottom::<T>(i)).collect::<Result<Vec<_>>>()?;
        let y = io.top::<T>(0)?;
        let operation = self.param.operation();
        let chosen = if operation == EltwiseOp::Max { io.saved::<T>(0)? } else { None };
        if let Some(chosen) = chosen {
            let first = first.unwrap_or(y);
            for_each_row(chosen, BLOCK, |b, chosen| {
                for (at, from) in (b * BLOCK..).zip(chosen) {
                    *from = T::of(winner(first[at], &others, at) as f64);
                }
            });
        }
        for_each_row(y, BLOCK, |b, y| {
            let start = b * BLOCK;
            if let Some(first) = first {
                y.copy_from_slice(&first[start..][..y.len()]);
            }
            if operation == EltwiseOp::Sum && self.coeffs[0] != 1.0 {
                let c = T::of(self.coeffs[0]);
                y.iter_mut().for_each(|y| *y *= c);
            }
            for (i, x) in others.iter().enumerate() {
                let (pairs, c) = (y.iter_mut().zip(&x[start..]), T::of(self.coeffs[i + 1]));
                let last = i + 1 == others.len();
                match operation {
                    EltwiseOp::Sum if self.relu && last => pairs.for_each(|(y, &x)| *y = rectified(*y + c * x)),
                    EltwiseOp::Sum => pairs.for_each(|(y, &x)| *y += c * x),
                    EltwiseOp::Prod => pairs.for_each(|(y, &x)| *y *= x),
                    EltwiseOp::Max if i == 0 => pairs.for_each(|(y, &x)| *y = if *y > x { *y } else { x }),
                    EltwiseOp::Max => pairs.for_each(|(y, &x)| *y = if x > *y { x } else { *y }),
                }
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let n = self.coeffs.len();
        let operation = self.param.operation();
        let reads = Reads {
            bottoms: match operation {
                EltwiseOp::Prod => (0..n).map(|i| io.bottom::<T>(i)).collect::<Result<_>>()?,
                _ => Vec::new(),
            },
            top: if operation == EltwiseOp::Prod && !self.param.stable_prod_grad() { io.top::<T>(0)? } else { &[] },
            chosen: if operation == EltwiseOp::Max { io.saved::<T>(0)? } else { &[] },
        };
        let own = io.top_diff_unless_shared::<T>(0)?;
        let first = io.bottom_diff::<T>(0)?;
        for i in 1..n {
            let Some(dx) = io.bottom_diff::<T>(i)? else { continue };
            let dy = diff_source(own, first.as_deref())?;
            for_each_row(dx, BLOCK, |b, dx| {
                dx.copy_from_slice(&dy[b * BLOCK..][..dx.len()]);
                self.gradient(i, dx, b * BLOCK, &reads);
            });
        }
        // The first bottom comes last: its diff may hold the top's until then.
        if let Some(dx) = first {
            for_each_row(dx, BLOCK, |b, dx| {
                if let Some(dy) = own {
                    dx.copy_from_slice(&dy[b * BLOCK..][..dx.len()]);
                }
                self.gradient(0, dx, b * BLOCK, &reads);
            });
        }
        Ok(())
    }
}

/// Which bottom gives the maximum at element `at`.
fn winner<T: Float>(first: T, others: &[&[T]], at: usize) -> usize {
    let (mut best, mut value) = (0, first);
    for (i, x) in others.iter().enumerate() {
        let wins = if i == 0 { value.partial_cmp(&x[at]) != Some(Ordering::Greater) } else { x[at] > value };
        if wins {
            (best, value) = (i + 1, x[at]);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(bottoms: usize, param: &str) -> String {
        let names: String = (0..bottoms).map(|i| format!("bottom: 'x{i}' ")).collect();
        format!("layer {{ name: 'e' type: 'Eltwise' {names} top: 'y' eltwise_param {{ {param} }} }}")
    }

    fn case(bottoms: usize, param: &str) -> Case {
        (0..bottoms).fold(Case::new(layer(bottoms, param)), |case, _| case.bottom([2, 3, 2]))
    }

    #[test]
    fn cases() {
        let away_from_zero = Fill::Uniform(0.5, 2.0);
        check(
            &registry(),
            &[
                Case::golden("layers/eltwise_0"),
                Case::golden("layers/eltwise_1"),
                Case::golden("layers/eltwise_2"),
                case(2, ""),
                case(3, "coeff: 0.5 coeff: -2 coeff: 1"),
                case(2, "operation: PROD"),
                Case::new(layer(2, "operation: PROD stable_prod_grad: false"))
                    .bottom_of([3, 2], away_from_zero.clone())
                    .bottom_of([3, 2], away_from_zero),
                case(4, "operation: MAX"),
                (0..3).fold(Case::new(layer(3, "operation: MAX")), |case, _| case.bottom([3, 37])).without_gradients(),
                (0..3)
                    .fold(Case::new(layer(3, "operation: PROD stable_prod_grad: false")), |case, _| {
                        case.bottom_of([3, 37], Fill::Uniform(0.5, 2.0))
                    })
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn ties_of_the_maximum_go_where_caffe_sends_them() {
        let shapes = vec![Shape::from([2]); 3];
        let harness =
            Harness::new(&registry(), &layer(3, "operation: MAX"), Phase::Train, DType::F32, &shapes).unwrap();
        let mut inputs = harness.forward_inputs(&[&[1.0, 3.0], &[1.0, 3.0], &[1.0, 4.0]]).unwrap();
        inputs.top_diffs = vec![vec![5.0, 6.0]];
        let out = harness.run(&inputs).unwrap();
        assert_eq!(out.tops[0], [1.0, 4.0]);
        let diffs: Vec<Vec<f64>> = out.bottom_diffs.into_iter().flatten().collect();
        assert_eq!(diffs, [[0.0, 0.0], [5.0, 0.0], [0.0, 6.0]]);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [[2, 3].into(), [2, 3].into()];
        config_error(&registry(), &layer(2, "operation: PROD coeff: 1 coeff: 1"), &shapes, &["coeff", "SUM"]);
        config_error(&registry(), &layer(2, "coeff: 1"), &shapes, &["2 values of coeff", "found 1"]);
        config_error(&registry(), &layer(2, ""), &[[2, 3].into(), [3, 2].into()], &["bottom 1", "(2, 3)", "(3, 2)"]);
    }
}
