//! MarginInnerProduct: the products of features with weights of unit length, where an item's own class must be m times nearer in angle:
//! the A-Softmax of SphereFace, to be followed by SoftmaxWithLoss.
//!
//! With weights ŵⱼ = wⱼ / ∣wⱼ∣ and θ the angle between x and ŵ, the top is x · ŵⱼ, for the item's own class
//! (λ · x·ŵ + ∣x∣ · ψ(θ)) / (1 + λ), ψ(θ) = (−1)ᵏ cos(mθ) − 2k on the k-th of m equal parts of 0 … π; m is 1 to 4 by `type`: `SINGLE`,
//! `DOUBLE`, `TRIPLE`, `QUADRUPLE`. λ, which weighs the product without margin, anneals: in iteration t it is
//! max(`base` · (1 + `gamma` · (`iteration` + t + 1))^−`power`, `lambda_min`); in TEST that of t = 0.
//!
//! In TRAIN forward brings the parameter itself to unit length, as there, so that the solver goes on from there; in TEST a copy.
//!
//! Gradient, as there, not that of the formula: dŵ = dyᵀ · x, as without a margin; dx = dy · Ŵ, but for the own class
//! dy · (λ · ŵ + v) / (1 + λ), with v the gradient of ∣x∣ · ψ in its plane, a · ŵ + b · x, over √(a² + b²), where a = ψ′ and
//! b = (ψ − cos θ · ψ′) / ∣x∣.
//!
//! Shapes: bottoms features [M…, K…] (M items by `axis`) and M labels; tops [M…, N] with N = `num_output`, and optionally λ, of one element,
//! which passes no gradient down; parameter W [N, K].
//!
//! Source: Liu et al., "SphereFace" (CVPR 2017), and the layer of this name in their fork. Where we differ: there t counts forward passes, of
//! TEST too, and starts anew with each run; TEST changes the weights; the second top is needed.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Fault, Float, Fwd, Gemm as DeviceGemm, Grid, Host,
    HostLayer, Layer, Node, Phase, Plan, Result, args, ensure,
};
use lgm_cpu::{Gemm, MatMut, MatRef};
use lgm_proto::margin_inner_product_parameter::MarginType;
use lgm_proto::{LayerParameter, MarginInnerProductParameter};

use crate::common::angular::{Angular, KEPT};
use crate::common::labels::{self, Items, check_count};
use crate::common::launch::{extent, matmul};
use crate::common::unit_rows::UnitRows;

/// The layer; see the module.
pub struct MarginInnerProduct {
    param: MarginInnerProductParameter,
    lambda: f32,
    angular: Angular,
    weights: UnitRows,
    shows_lambda: bool,
}

/// Scratch memory, by number.
mod scratch {
    /// The weights, where the parameter stays as it is.
    pub const WEIGHTS: usize = 0;
    /// The top's gradient, the own class's changed.
    pub const GRADIENT: usize = 1;
    /// What is kept of the items where nothing is saved.
    pub const KEPT: usize = 2;
    /// The items' factors.
    pub const FACTORS: usize = 3;
}

impl MarginInnerProduct {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.margin_inner_product_param.clone().map(|param| *param).unwrap_or_default();
        ensure!(param.num_output() > 0, "num_output, the number of classes, must be given and positive");
        for (name, value) in [("base", param.base()), ("gamma", param.gamma()), ("lambda_min", param.lambda_min())] {
            ensure!(value.is_finite() && value >= 0.0, "{name} must be a number of at least 0, found {value}");
        }
        ensure!(param.power().is_finite(), "power must be a finite number, found {}", param.power());
        ensure!(param.iteration() >= 0, "iteration must not be negative, found {}", param.iteration());
        let times = match param.r#type() {
            MarginType::Single => 1,
            MarginType::Double => 2,
            MarginType::Triple => 3,
            MarginType::Quadruple => 4,
        };
        let angular = Angular { times, ..Angular::default() };
        let weights = UnitRows { train: cx.phase == Phase::Train, ..UnitRows::default() };
        let mut layer = MarginInnerProduct { param, lambda: 0.0, angular, weights, shows_lambda: false };
        layer.lambda = layer.lambda_at(0);
        Node::compute(layer)
    }

    fn lambda_at(&self, iter: u64) -> f32 {
        let at = f64::from(self.param.iteration()) + iter as f64 + 1.0;
        let annealed = (1.0 + f64::from(self.param.gamma()) * at).powf(-f64::from(self.param.power()));
        (f64::from(self.param.base()) * annealed).max(self.param.lambda_min().into()) as f32
    }

    /// Of what [`Angular`] keeps of an item, the factors of its features' gradient brought to unit length together.
    fn bring<T: Float>(&self, kept: &mut [T]) {
        let lambda = T::of(self.lambda.into());
        let all = T::one() + lambda;
        for kept in kept.chunks_mut(KEPT) {
            let (cross, rest) = (kept[1] * all - lambda, kept[2] * all);
            let length = (cross * cross + rest * rest).sqrt();
            let unit = if length > T::zero() { length.recip() } else { T::zero() };
            kept[1] = (cross * unit + lambda) / all;
            kept[2] = rest * unit / all;
        }
    }
}

impl Layer for MarginInnerProduct {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let x = &bottoms[0];
        let axis = x.shape.axis(self.param.axis())?;
        let (items, classes, width) =
            (x.shape.span(0..axis), self.param.num_output() as usize, x.shape.count_from(axis));
        check_count(&bottoms[1], items, x)?;
        self.angular = Angular { items: Items { items, classes }, width, ..self.angular };
        self.weights = UnitRows { rows: classes, width, ..self.weights };
        self.shows_lambda = tops > 1;
        let top = x.with_shape(x.shape.splice(axis..x.shape.len(), [classes]));
        let kept = self.angular.kept(x);
        let lambda = self.shows_lambda.then(|| x.with_shape([1]));
        Ok(Plan {
            params: vec![self.weights.param(self.param.weight_filler.as_ref())],
            saved: vec![kept.clone()],
            scratch: vec![self.weights.scratch(x), x.with_shape([items, classes]), kept, self.angular.factors(x)],
            backward_bottoms: vec![0, 1],
            no_gradient: vec![1],
            flops: 2 * items as u64 * classes as u64 * width as u64,
            ..Plan::new([top].into_iter().chain(lambda).collect())
        })
    }

    fn begin_iteration(&mut self, iter: u64) -> Vec<String> {
        self.lambda = self.lambda_at(iter);
        Vec::new()
    }
}

impl HostLayer for MarginInnerProduct {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels, y) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top::<T>(0)?);
        self.angular.items.check(labels)?;
        let w = self.weights.forward(io.param_mut::<T>(0)?, io.scratch::<T>(scratch::WEIGHTS)?);
        let kept = io.saved::<T>(0)?.map_or_else(|| io.scratch::<T>(scratch::KEPT), Ok)?;
        self.angular.forward(x, w, labels, T::of(self.lambda.into()), y, kept);
        self.bring(kept);
        if self.shows_lambda {
            io.top::<T>(1)?[0] = T::of(self.lambda.into());
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels, dy) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top_diff::<T>(0)?);
        let (Items { items, classes }, n) = (self.angular.items, self.angular.width);
        if let Some(dw) = io.param_diff::<T>(0)? {
            let (a, b) = (MatRef::new(dy, items, classes).t(), MatRef::new(x, items, n));
            Gemm { alpha: T::one(), a, b, beta: T::one(), c: MatMut::new(dw, classes, n) }.run();
        }
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let w = self.weights.backward(io.param::<T>(0)?, io.scratch::<T>(scratch::WEIGHTS)?);
        let (g, factors) = (io.scratch::<T>(scratch::GRADIENT)?, io.scratch::<T>(scratch::FACTORS)?);
        g.copy_from_slice(dy);
        self.angular.backward([x, w, labels, io.saved::<T>(0)?], [g, factors], Some(dx), None);
        Ok(())
    }
}

impl DeviceLayer for MarginInnerProduct {
    fn dynamic(&self) -> Vec<f32> {
        vec![self.lambda]
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.angular.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, y, lambda) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.call.dynamic);
        let (items, classes) = (extent(self.angular.items.items)?, extent(self.angular.items.classes)?);
        io.launch("lgm_check_labels", Grid::rows(1, Grid::THREADS), args![labels, items, classes, io.call.fault])?;
        let w = self.weights.forward_on(io.call, io.param(0)?, io.scratch(scratch::WEIGHTS)?)?;
        let kept = io.saved(0).map_or_else(|| io.scratch(scratch::KEPT), Ok)?;
        self.angular.forward_on(io.call, [x, w, labels, lambda], y, kept)?;
        let shown = if self.shows_lambda { Some(io.top(1)?) } else { None };
        io.launch("angular_unit", Grid::elements(self.angular.items.items), args![kept, shown, lambda, items])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, labels, dy) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?);
        let (Items { items, classes }, n) = (self.angular.items, self.angular.width);
        if let Some(dw) = io.param_diff(0) {
            let gemm = matmul((classes, n, items), (dy, classes), (x, n), 1.0, (dw, n));
            io.queue().gemm(&DeviceGemm { trans_a: true, exact: true, ..gemm })?;
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let w = self.weights.backward_on(io.call, io.param(0)?, io.scratch(scratch::WEIGHTS)?)?;
        let (g, factors) = (io.scratch(scratch::GRADIENT)?, io.scratch(scratch::FACTORS)?);
        io.queue().copy(dy, g, 4 * items * classes)?;
        self.angular.backward_on(io.call, [x, w, labels, io.saved(0)?], [g, factors], Some(dx), None)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn text(fields: &str, tops: &str) -> String {
        format!(
            "layer {{ name: 'm' type: 'MarginInnerProduct' bottom: 'x' bottom: 'z' {tops} margin_inner_product_param {{ \
             weight_filler {{ type: 'gaussian' }} {fields} }} }}"
        )
    }

    fn case(fields: &str) -> Case {
        Case::new(text(fields, "top: 'y'")).without_gradients()
    }

    #[test]
    fn cases() {
        let mut cases = Vec::new();
        for kind in ["SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE"] {
            let fields = format!("num_output: 7 type: {kind} base: 3 gamma: 0.1 lambda_min: 1");
            cases.push(case(&fields).bottom([9, 5]).bottom_of([9], Fill::Labels(7)));
            cases.push(case(&fields).test_phase().bottom([4, 2, 3]).bottom_of([4, 1], Fill::Labels(7)));
        }
        cases.push(
            Case::new(text("num_output: 3 type: TRIPLE axis: 2", "top: 'y' top: 'l'"))
                .flat_top(1)
                .without_gradients()
                .bottom([2, 2, 4])
                .bottom_of([4], Fill::Labels(3)),
        );
        cases.push(case("num_output: 70 type: QUADRUPLE").bottom([40, 33]).bottom_of([40], Fill::Labels(70)));
        check(&registry(), &cases);
    }

    fn harness(fields: &str, phase: Phase) -> Harness {
        let shapes: [Shape; 2] = [[2, 2].into(), [2].into()];
        Harness::new(&registry(), &text(fields, "top: 'y' top: 'l'"), phase, DType::F64, &shapes).unwrap()
    }

    #[test]
    fn own_classes_have_their_margin_and_weights_unit_length() {
        let fields = "num_output: 2 type: DOUBLE base: 1 lambda_min: 1";
        let x = [3.0f64.sqrt(), 1.0, 0.0, 2.0];
        for phase in [Phase::Train, Phase::Test] {
            let harness = harness(fields, phase);
            let mut inputs = harness.forward_inputs(&[&x, &[0.0, 0.0]]).unwrap();
            inputs.params = vec![vec![5.0, 0.0, 0.0, 0.5]];
            inputs.top_diffs = vec![vec![1.0, 0.0, 0.0, 2.0], vec![0.0]];
            let out = harness.run(&inputs).unwrap();
            // At 30 degrees, cos 2θ is a half; at 90 degrees −1. Each is averaged with the product, λ being 1.
            assert_close("y", &out.tops[0], &[(3f64.sqrt() + 1.0) / 2.0, 1.0, -1.0, 2.0], 1e-9);
            assert_eq!(out.tops[1], [1.0]);
            let want = if phase == Phase::Train { [1.0, 0.0, 0.0, 1.0] } else { [5.0, 0.0, 0.0, 0.5] };
            assert_close("weights", &out.params[0], &want, 1e-9);
            // Item 0: ψ′ = 4c = 2√3 along ŵ, and (½ − 6/2)/2 = −1.25 along x, brought to unit length.
            let (a, b) = (2.0 * 3f64.sqrt(), -1.25);
            let length = (a * a + b * b).sqrt();
            let want = [(1.0 + a / length + b / length * x[0]) / 2.0, b / length / 2.0, 0.0, 2.0];
            assert_close("dx", out.bottom_diffs[0].as_ref().unwrap(), &want, 1e-9);
            assert_close("dw", out.param_diffs[0].as_ref().unwrap(), &[x[0], 1.0, 0.0, 4.0], 1e-9);
        }
    }

    #[test]
    fn lambda_anneals_with_the_iterations() {
        let mut harness =
            harness("num_output: 2 base: 1000 gamma: 0.5 power: 1 lambda_min: 5 iteration: 1", Phase::Train);
        let mut lambda = |iter: u64| {
            harness.layer.begin_iteration(iter);
            let inputs = harness.forward_inputs(&[&[1.0; 4], &[0.0, 1.0]]).unwrap();
            harness.run(&inputs).unwrap().tops[1][0]
        };
        let found = [lambda(0), lambda(2), lambda(1_000_000)];
        assert_close("lambda", &found, &[500.0, 1000.0 / 3.0, 5.0], 1e-6);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [Shape::from([2, 3]), Shape::from([2])];
        let refused =
            |fields: &str, needles: &[&str]| config_error(&registry(), &text(fields, "top: 'y'"), &shapes, needles);
        refused("", &["num_output"]);
        refused("num_output: 2 base: -1", &["base must be a number of at least 0, found -1"]);
        refused("num_output: 2 power: inf", &["power must be a finite number"]);
        refused("num_output: 2 iteration: -3", &["iteration must not be negative, found -3"]);
        refused("num_output: 2 axis: 0", &["labels: expected 1"]);
        let error = {
            let harness =
                Harness::new(&registry(), &text("num_output: 2", "top: 'y'"), Phase::Train, DType::F32, &shapes);
            let harness = harness.unwrap();
            harness.run(&harness.forward_inputs(&[&[1.0; 6], &[0.0, 2.0]]).unwrap()).unwrap_err().to_string()
        };
        assert!(error.contains("label 2 of item 1"), "{error}");
    }
}
