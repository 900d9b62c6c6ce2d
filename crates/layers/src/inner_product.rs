//! InnerProduct: y = x · Wᵀ + b, a matrix product of all that follows `axis`.
//!
//! Shapes: with M the elements before `axis` and K those from it on, bottom `[M…, K…]`, top `[M…, N]` with N = `num_output`;
//! parameters W `[N, K]` ([K, N] with `transpose`) and, unless `bias_term` is false, b `[N]`.
//! Gradient: dx = dy · W; dW = dyᵀ · x; db = Σₘ dy.
//!
//! With `normalize`, of NormFace's fork and others, the rows of W have unit length: in TRAIN forward brings the parameter itself to it,
//! as there, so that the solver goes on from there; in TEST a copy. The gradient is as above, W being what was used.
//!
//! Source: Caffe's layer of this name; Wang et al., "NormFace" (2017).

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Phase, Plan, Result, ensure,
};
use lgm_cpu::elementwise::{map_into, rectified};
use lgm_cpu::{Gemm, MatMut, MatRef};
use lgm_proto::{InnerProductParameter, LayerParameter};

use crate::common::unit_rows::UnitRows;

mod device;

/// The layer; see the module.
pub struct InnerProduct {
    param: InnerProductParameter,
    rows: usize,
    inputs: usize,
    outputs: usize,
    relu: bool,
    /// The weights' rows, where they have unit length.
    unit: Option<UnitRows>,
}

impl InnerProduct {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.inner_product_param.clone().unwrap_or_default();
        let outputs = param.num_output() as usize;
        ensure!(outputs > 0, "inner_product_param needs a num_output of at least 1");
        ensure!(
            !(param.normalize() && param.transpose()),
            "normalize brings the rows of the weights to unit length, which with transpose are not those of outputs: take out one"
        );
        let unit = param.normalize().then(|| UnitRows { train: cx.phase == Phase::Train, ..UnitRows::default() });
        Node::compute(InnerProduct { param, rows: 0, inputs: 0, outputs, relu: false, unit })
    }
}

impl Layer for InnerProduct {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        let axis = bottom.shape.axis(self.param.axis())?;
        let (m, k, n) = (bottom.shape.span(0..axis), bottom.shape.count_from(axis), self.outputs);
        (self.rows, self.inputs) = (m, k);
        let weight = if self.param.transpose() { [k, n] } else { [n, k] };
        let mut plan = Plan::new(vec![bottom.with_shape(bottom.shape.splice(axis..bottom.shape.len(), [n]))]);
        plan.params = vec![ParamSpec::new(weight, self.param.weight_filler.as_ref())];
        if let Some(unit) = &mut self.unit {
            (unit.rows, unit.width) = (n, k);
            plan.params = vec![unit.param(self.param.weight_filler.as_ref())];
            plan.scratch = vec![unit.scratch(bottom)];
        }
        if self.param.bias_term() {
            plan.params.push(ParamSpec::new([n], self.param.bias_filler.as_ref()));
        }
        plan.backward_bottoms = vec![0];
        plan.flops = 2 * m as u64 * n as u64 * k as u64;
        Ok(plan)
    }

    fn fuse_relu(&mut self) -> bool {
        self.relu = true;
        true
    }
}

impl HostLayer for InnerProduct {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let w = match &self.unit {
            Some(unit) => unit.forward(io.param_mut::<T>(0)?, io.scratch::<T>(0)?),
            None => io.param::<T>(0)?,
        };
        let mut beta = T::zero();
        if self.param.bias_term() {
            let b = io.param::<T>(1)?;
            y.chunks_mut(n).for_each(|row| row.copy_from_slice(b));
            beta = T::one();
        }
        let w = if self.param.transpose() { MatRef::new(w, k, n) } else { MatRef::new(w, n, k).t() };
        Gemm { alpha: T::one(), a: MatRef::new(x, m, k), b: w, beta, c: MatMut::new(y, m, n) }.run();
        if self.relu {
            map_into(None, y, rectified);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (m, n, k) = (self.rows, self.outputs, self.inputs);
        let (zero, one) = (T::zero(), T::one());
        let transpose = self.param.transpose();
        let dy = io.top_diff::<T>(0)?;
        if let Some(dw) = io.param_diff::<T>(0)? {
            let x = io.bottom::<T>(0)?;
            let (x, dy) = (MatRef::new(x, m, k), MatRef::new(dy, m, n));
            let (a, b, c) = match transpose {
                true => (x.t(), dy, MatMut::new(dw, k, n)),
                false => (dy.t(), x, MatMut::new(dw, n, k)),
            };
            Gemm { alpha: one, a, b, beta: one, c }.run();
        }
        let db = if self.param.bias_term() { io.param_diff::<T>(1)? } else { None };
        if let Some(db) = db {
            dy.chunks(n).for_each(|row| db.iter_mut().zip(row).for_each(|(b, &d)| *b += d));
        }
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            let mut w = io.param::<T>(0)?;
            if let Some(unit) = &self.unit {
                w = unit.backward(w, io.scratch::<T>(0)?);
            }
            let w = if transpose { MatRef::new(w, k, n).t() } else { MatRef::new(w, n, k) };
            Gemm { alpha: one, a: MatRef::new(dy, m, n), b: w, beta: zero, c: MatMut::new(dx, m, k) }.run();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, assert_close, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/ip_0"),
                Case::golden("layers/ip_1"),
                Case::golden("layers/ip_2"),
                Case::new(layer("num_output: 2 axis: -1 transpose: true bias_term: false")).bottom([2, 3, 4]),
                Case::new(layer("num_output: 3 axis: 0")).bottom([2, 3]),
                // The gradient is not that by what the weights are made of.
                Case::new(layer(UNIT)).bottom([4, 3]).without_gradients(),
                Case::new(layer(UNIT)).test_phase().bottom([4, 2, 3]).without_gradients(),
            ],
        );
    }

    const UNIT: &str = "num_output: 2 normalize: true weight_filler { type: 'gaussian' }";

    #[test]
    fn normalized_weights_are_used_and_in_train_kept() {
        for phase in [Phase::Train, Phase::Test] {
            let run = |param: &str, weights: [f64; 4]| {
                let harness = Harness::new(&registry(), &layer(param), phase, DType::F64, &[[1, 2].into()]).unwrap();
                let mut inputs = harness.forward_inputs(&[&[2.0, -1.0]]).unwrap();
                inputs.params[0] = weights.to_vec();
                inputs.top_diffs = vec![vec![1.0, 3.0]];
                harness.run(&inputs).unwrap()
            };
            let (raw, unit) = ([3.0, 4.0, 0.0, -0.5], [0.6, 0.8, 0.0, -1.0]);
            let (found, want) = (run(UNIT, raw), run("num_output: 2", unit));
            assert_close("y", &found.tops[0], &want.tops[0], 1e-9);
            assert_close("dx", found.bottom_diffs[0].as_ref().unwrap(), want.bottom_diffs[0].as_ref().unwrap(), 1e-9);
            assert_close("dw", found.param_diffs[0].as_ref().unwrap(), want.param_diffs[0].as_ref().unwrap(), 1e-9);
            assert_close("w", &found.params[0], if phase == Phase::Train { &unit } else { &raw }, 1e-9);
        }
    }

    #[test]
    fn plan() {
        let text = layer("num_output: 5 axis: 2 transpose: true bias_filler { value: 2 }");
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 3, 4, 6].into()]).unwrap();
        assert_eq!(harness.plan.tops[0].shape, Shape::from([2, 3, 5]));
        assert_eq!(harness.params[0].shape, Shape::from([24, 5]));
        assert_eq!(harness.filled().unwrap(), [vec![0.0; 120], vec![2.0; 5]]);
        assert_eq!(harness.plan.flops, 2 * 6 * 24 * 5);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(""), &[[2, 3].into()], &["num_output"]);
        let both = layer("num_output: 2 normalize: true transpose: true");
        config_error(&registry(), &both, &[[2, 3].into()], &["normalize", "transpose"]);
        config_error(&registry(), &layer("num_output: 2 axis: 2"), &[[2, 3].into()], &["axis 2", "(2, 3)"]);
    }
}
