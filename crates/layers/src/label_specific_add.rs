//! LabelSpecificAdd: adds a bias to the score of each item's own class, to leave it a margin to learn: AM-Softmax's step.
//!
//! y = x, but x + m for the item's own class where that is positive (m is negative for a margin). m is `bias` (0), or, where
//! `bias_base` is given, clamp(`bias_base` + (1 + `bias_gamma` · t)^`bias_power` − 1, `bias_min`, `bias_max`) in iteration t,
//! counted from `iteration`. In TEST nothing is added, unless `transform_test`.
//!
//! Gradient: dx = dy. Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; tops like the
//! scores, in their memory if the net wants, and optionally m, of one element, which passes no gradient down.
//!
//! Source: Wang, Cheng, Liu and Liu, "Additive Margin Softmax for Face Verification" (2018); the layer of this name in Wang's
//! fork. Where we differ: there `transform_test` has no effect, and t counts forward passes, not iterations.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Fault, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Phase, Plan, Result, args, ensure,
};
use lgm_proto::{LabelSpecificAddParameter, LayerParameter};

use crate::common::labels::{self, Items};
use crate::common::launch::extent;
use crate::common::view;

/// The layer; see the module.
pub struct LabelSpecificAdd {
    param: LabelSpecificAddParameter,
    active: bool,
    bias: f32,
    items: Items,
    shows_bias: bool,
}

impl LabelSpecificAdd {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.label_specific_add_param.as_deref().copied().unwrap_or_default();
        for (name, value) in [
            ("bias", param.bias()),
            ("bias_base", param.bias_base()),
            ("bias_gamma", param.bias_gamma()),
            ("bias_power", param.bias_power()),
        ] {
            ensure!(value.is_finite(), "{name} must be a finite number, found {value}");
        }
        let (min, max) = (param.bias_min(), param.bias_max());
        ensure!(
            param.bias_base.is_none() || min <= max,
            "bias_min must not exceed bias_max, found bias_min {min} and bias_max {max}"
        );
        let active = cx.phase == Phase::Train || param.transform_test();
        let mut layer = LabelSpecificAdd { param, active, bias: 0.0, items: Items::default(), shows_bias: false };
        layer.bias = if active { layer.bias_at(0) } else { 0.0 };
        Node::compute(layer)
    }

    fn bias_at(&self, iter: u64) -> f32 {
        let Some(base) = self.param.bias_base else { return self.param.bias() };
        let at = f64::from(self.param.iteration()) + iter as f64;
        let grown = (1.0 + f64::from(self.param.bias_gamma()) * at).powf(self.param.bias_power().into());
        (f64::from(base) + grown - 1.0).max(self.param.bias_min().into()).min(self.param.bias_max().into()) as f32
    }
}

impl Layer for LabelSpecificAdd {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        self.items = Items::of(bottoms)?;
        self.shows_bias = tops > 1;
        let mut plan = Plan::elementwise(&bottoms[0]);
        plan.tops.extend(self.shows_bias.then(|| bottoms[0].with_shape([1])));
        plan.no_gradient = vec![1];
        plan.flops = self.items.items as u64;
        Ok(plan)
    }

    fn begin_iteration(&mut self, iter: u64) -> Vec<String> {
        self.bias = if self.active { self.bias_at(iter) } else { 0.0 };
        Vec::new()
    }
}

impl HostLayer for LabelSpecificAdd {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels, y) = (io.bottom_unless_shared::<T>(0)?, io.bottom::<T>(1)?, io.top::<T>(0)?);
        if let Some(x) = x {
            lgm_cpu::elementwise::copy(x, y);
        }
        let bias = T::of(self.bias.into());
        for i in 0..if self.active { labels.len() } else { 0 } {
            let own = &mut y[i * self.items.classes + self.items.class(labels, i)?];
            if *own > -bias {
                *own += bias;
            }
        }
        if self.shows_bias {
            io.top::<T>(1)?[0] = bias;
        }
        Ok(())
    }

    fn backward<T: Float>(&self, io: Bwd<'_, Host>) -> Result<()> {
        view::backward::<T>(io)
    }
}

impl DeviceLayer for LabelSpecificAdd {
    fn dynamic(&self) -> Vec<f32> {
        vec![self.bias]
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (labels, y) = (io.bottom(1)?, io.top(0)?);
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let shown = if self.shows_bias { Some(io.top(1)?) } else { None };
        let (items, classes, count) = (extent(self.items.items)?, extent(self.items.classes)?, self.items.count());
        if self.active {
            let args = args![labels, items, classes, io.call.fault];
            io.launch("lgm_check_labels", Grid::rows(1, Grid::THREADS), args)?;
        }
        let args = args![y, shown, x, labels, io.call.dynamic, extent(count)?];
        io.launch("label_specific_add", Grid::elements(count), &self.items.after(args)?)
    }

    fn backward(&self, io: Bwd<'_, Device>) -> Result<()> {
        view::backward_on(io)
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str, tops: usize) -> String {
        let tops = if tops == 2 { "top: 'y' top: 'm'" } else { "top: 'y'" };
        format!(
            "layer {{ name: 'a' type: 'LabelSpecificAdd' bottom: 'x' bottom: 'z' {tops} label_specific_add_param {{ {fields} }} }}"
        )
    }

    #[test]
    fn cases() {
        let labels = || Fill::Labels(4);
        check(
            &crate::tests::registry(),
            &[
                Case::new(text("bias: -0.35", 1)).kink(0, 0.35, 0.01).bottom([5, 4]).bottom_of([5], labels()),
                Case::new(text("bias: 0.5", 2))
                    .kink(0, -0.5, 0.01)
                    .flat_top(1)
                    .bottom([3, 2, 2])
                    .bottom_of([3, 1], labels()),
                Case::new(text("bias: -0.35", 2)).test_phase().flat_top(1).bottom([5, 4]).bottom_of([5], labels()),
                Case::new(text("bias: -0.35", 1)).bottom([300, 9]).bottom_of([300], labels()).without_gradients(),
            ],
        );
    }

    #[test]
    fn the_own_class_gets_the_bias_of_the_iteration() {
        let run = |fields: &str, phase, iter| {
            let shapes = [[2, 2].into(), [2].into()];
            let registry = crate::tests::registry();
            let mut harness = Harness::new(&registry, &text(fields, 2), phase, DType::F64, &shapes).unwrap();
            harness.layer.begin_iteration(iter);
            harness.run(&harness.forward_inputs(&[&[3.0, 3.0, 0.25, 0.25], &[1.0, 0.0]]).unwrap()).unwrap().tops
        };
        assert_eq!(run("bias: -0.5", Phase::Train, 7), [vec![3.0, 2.5, 0.25, 0.25], vec![-0.5]]);
        assert_eq!(run("bias: -0.5", Phase::Test, 0), [vec![3.0, 3.0, 0.25, 0.25], vec![0.0]]);
        assert_eq!(run("bias: -0.5 transform_test: true", Phase::Test, 0)[0], [3.0, 2.5, 0.25, 0.25]);
        let grows = "bias_base: -0.5 bias_gamma: -0.25 bias_min: -2 bias_max: 1 iteration: 1";
        assert_eq!(run(grows, Phase::Train, 0)[1], [-0.75]);
        assert_eq!(run(grows, Phase::Train, 2)[1], [-1.25]);
        assert_eq!(run(grows, Phase::Train, 90)[1], [-2.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        let shapes = [[2, 3].into(), [2].into()];
        config_error(&registry, &text("bias: nan", 1), &shapes, &["bias", "NaN"]);
        config_error(
            &registry,
            &text("bias_base: 1 bias_min: 2 bias_max: 1", 1),
            &shapes,
            &["bias_min 2", "bias_max 1"],
        );
        config_error(&registry, &text("", 1), &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
    }
}
