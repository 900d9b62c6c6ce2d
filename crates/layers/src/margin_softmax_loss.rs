//! MarginSoftmaxLoss: the cross-entropy of logits x · w whose own class must be four times nearer in angle.
//!
//! loss = −1/N · Σ ln p(label), with p the softmax of x · wⱼ, the own class's being
//! (λ · x·w + ∣x∣ · ∣w∣ · ψ(θ)) / (1 + λ), where ψ(θ) = (−1)ᵏ cos(4θ) − 2k on the k-th quarter of 0 … π. `lambda` λ weighs
//! the logit without margin; it may change on a schedule (`ParamParameter`, whose policies are those of ClassDistance's
//! margins), and in TEST it is what the schedule begins with.
//!
//! Gradient: dz = dL/N · (p − \[class = label\]) of the logits, and through them to features and weights. Where a feature or
//! its class's weights are zero, they are taken to point the same way. As in SoftmaxWithLoss, a probability below the least
//! normal single-precision number counts as that number.
//!
//! Shapes: bottoms features [N, …] (K elements an item) and N labels; top the loss; parameter weights [`num_output`, K],
//! filled by `weight_filler`.
//!
//! Source: Liu, Wen, Yu and Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks" (ICML 2016); the L-GM fork's
//! layer of this name. Where we differ: λ advances once an iteration, not once a forward pass; where rounding takes a cosine
//! beyond 1 it counts as 1, and is not skipped. The fork takes the norm of another item's weights on a CPU, leaves ψ′ out
//! of its gradient in the first and the third quarter, and gives zero vectors theirs four times; here all are as above.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Float, Format,
    Fwd, Host, HostLayer, Layer, Node, ParamSpec, Phase, Plan, Result, State, args, ensure,
};
use lgm_cpu::elementwise::map_into;
use lgm_cpu::softmax::softmax;
use lgm_proto::{LayerParameter, MarginSoftmaxLossParameter};

use crate::common::angular::Angular;
use crate::common::by_channel::ByChannel;
use crate::common::labels::{self, Items, check_count};
use crate::common::launch::extent;
use crate::common::loss::Tally;
use crate::common::margin_schedule::MarginSchedule;
use crate::common::softmax::{forward_on, probabilities, probabilities_on};

/// The layer; see the module.
pub struct MarginSoftmaxLoss {
    param: MarginSoftmaxLossParameter,
    lambda: MarginSchedule,
    train: bool,
    angular: Angular,
}

/// Saved memory, by number; 0 has the probabilities.
mod saved {
    /// What is kept of the items.
    pub const KEPT: usize = 1;
    /// 1/N, on a device.
    pub const SHARE: usize = 2;
}

/// Scratch memory, by number.
mod scratch {
    /// The logits' gradient, and the probabilities where nothing is saved.
    pub const LOGITS: usize = 0;
    /// What is kept of the items where nothing is saved.
    pub const KEPT: usize = 1;
    /// The items' factors.
    pub const FACTORS: usize = 2;
    /// What blocks put, on a device.
    pub const PARTIAL: usize = 3;
}

impl MarginSoftmaxLoss {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.margin_softmax_loss_param.clone().unwrap_or_default();
        ensure!(param.num_output() > 0, "num_output, the number of classes, must be given and positive");
        let lambda = MarginSchedule::new("lambda", "lambda", param.lambda.as_ref())?;
        ensure!(lambda.value() >= 0.0, "lambda must not be negative, found {}", lambda.value());
        let (train, angular) = (cx.phase == Phase::Train, Angular { times: 4, ..Angular::default() });
        Node::compute(MarginSoftmaxLoss { param, lambda, train, angular })
    }

    fn along(&self) -> Axes3 {
        Axes3::new(self.angular.items.items, self.angular.items.classes, 1)
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.angular.items.items }
    }
}

impl Layer for MarginSoftmaxLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let x = &bottoms[0];
        ensure!(!x.shape.is_empty(), "the features must have a batch axis, found a scalar");
        let (items, classes, width) = (x.shape[0], self.param.num_output() as usize, x.shape.count_from(1));
        check_count(&bottoms[1], items, x)?;
        self.angular = Angular { items: Items { items, classes }, width, ..self.angular };
        let logits = x.with_shape([items, classes]);
        let kept = self.angular.kept(x);
        Ok(Plan {
            params: vec![ParamSpec::new([classes, width], self.param.weight_filler.as_ref())],
            saved: vec![logits.clone(), kept.clone()],
            scratch: vec![logits, kept, self.angular.factors(x)],
            backward_bottoms: vec![0, 1],
            flops: 2 * items as u64 * classes as u64 * width as u64,
            ..Plan::loss(x.dtype)
        })
    }

    fn begin_iteration(&mut self, iter: u64) -> Vec<String> {
        if self.train { self.lambda.begin_iteration(iter).into_iter().collect() } else { Vec::new() }
    }

    fn state(&self) -> State {
        let mut state = State::new();
        if self.train {
            self.lambda.save(&mut state);
        }
        state
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        if self.train { self.lambda.restore(state) } else { Ok(()) }
    }
}

impl HostLayer for MarginSoftmaxLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels, w) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.param::<T>(0)?);
        let Items { items, classes } = self.angular.items;
        self.angular.items.check(labels)?;
        let p = probabilities(&mut io, false)?;
        let kept = io.saved::<T>(saved::KEPT)?.map_or_else(|| io.scratch::<T>(scratch::KEPT), Ok)?;
        self.angular.forward(x, w, labels, T::of(self.lambda.value().into()), p, kept);
        softmax(None, p, self.along());
        let mut loss = 0.0;
        for (i, p) in p.chunks(classes).enumerate() {
            let (p, least) = (p[self.angular.items.class(labels, i)?].f64(), f64::from(f32::MIN_POSITIVE));
            // NaN stays NaN, so that it is seen.
            loss -= if p < least { least } else { p }.ln();
        }
        io.top::<T>(0)?[0] = T::of(loss / items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels, w) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.param::<T>(0)?);
        let (p, kept) = (io.saved::<T>(0)?, io.saved::<T>(saved::KEPT)?);
        let Items { items, classes } = self.angular.items;
        let scale = io.top_diff::<T>(0)?[0] / T::of(items.max(1) as f64);
        let (g, factors) = (io.scratch::<T>(scratch::LOGITS)?, io.scratch::<T>(scratch::FACTORS)?);
        map_into(Some(p), g, |p| scale * p);
        for i in 0..items {
            g[i * classes + self.angular.items.class(labels, i)?] -= scale;
        }
        let (dx, dw) = (io.bottom_diff::<T>(0)?, io.param_diff::<T>(0)?);
        self.angular.backward([x, w, labels, kept], [g, factors], dx, dw);
        Ok(())
    }
}

impl DeviceLayer for MarginSoftmaxLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.saved.push(plan.tops[0].with_shape([1]));
        plan.scratch.push(self.tally().scratch(&plan.tops[0]));
        Ok(())
    }

    fn dynamic(&self) -> Vec<f32> {
        vec![self.lambda.value()]
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.angular.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, w, loss) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?, io.top(0)?);
        let p = probabilities_on(&mut io, false)?;
        let kept = io.saved(saved::KEPT).map_or_else(|| io.scratch(scratch::KEPT), Ok)?;
        let (partial, share) = (io.scratch(scratch::PARTIAL)?, io.saved(saved::SHARE));
        self.angular.forward_on(io.call, [x, w, labels, io.call.dynamic], p, kept)?;
        forward_on(self.along(), io.queue(), p, p)?;
        let items = self.angular.items;
        let args = args![partial, DevicePtr::NULL, p, labels, DevicePtr::NULL, extent(items.items)?, 1u32];
        io.launch("softmax_loss_partials", self.tally().grid(), &items.after(args)?)?;
        self.tally().finish(io.call, (loss, share), partial, Some(labels), Some(items.z()))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, labels, w, d_loss) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?, io.top_diff(0)?);
        let (p, kept, share) = (io.saved(0)?, io.saved(saved::KEPT)?, io.saved(saved::SHARE)?);
        let (g, factors) = (io.scratch(scratch::LOGITS)?, io.scratch(scratch::FACTORS)?);
        let (grid, rows) = ByChannel::new(self.along(), Format::PLAIN).rows()?;
        let args = args![g, p, labels, DevicePtr::NULL, d_loss, share, 0u32, rows[0], rows[1], rows[2]];
        io.launch("softmax_loss_backward", grid, &self.angular.items.after(args)?)?;
        let (dx, dw) = (io.bottom_diff(0), io.param_diff(0));
        self.angular.backward_on(io.call, [x, w, labels, kept], [g, factors], dx, dw)
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase, State};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'x' bottom: 'y' top: 'l'";
        format!("layer {{ name: 'm' type: 'MarginSoftmaxLoss' {blobs} margin_softmax_loss_param {{ {fields} }} }}")
    }

    fn case(fields: &str) -> Case {
        Case::new(text(&format!("weight_filler {{ type: 'gaussian' }} {fields}")))
    }

    #[test]
    fn cases() {
        // Towards its class's weights, away from them, and between.
        let turned = [[2.0, 0.1], [-2.0, 0.3], [0.1, 1.0], [1.0, 0.9], [-1.0, 1.5]].concat();
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/marginsoftmax_0"),
                case("num_output: 7").bottom([9, 5]).bottom_of([9], Fill::Labels(7)),
                case("num_output: 3 lambda { value: 5 }").bottom([4, 2, 3]).bottom_of([4, 1], Fill::Labels(3)),
                case("num_output: 2 lambda { value: 0.5 }")
                    .bottom_of([5, 2], Fill::Given(turned))
                    .bottom_of([5], Fill::Given(vec![0.0; 5]))
                    .param(0, Fill::Given(vec![1.0, 0.0, 0.3, 0.4])),
                // Neither has an angle.
                case("num_output: 2 lambda { value: 0.5 }")
                    .bottom_of([2, 2], Fill::Given(vec![0.0, 0.0, 1.0, 2.0]))
                    .bottom_of([2], Fill::Given(vec![1.0, 0.0]))
                    .param(0, Fill::Given(vec![0.0, 0.0, 0.3, 0.4]))
                    .without_gradients(),
                case("num_output: 70").bottom([40, 33]).bottom_of([40], Fill::Labels(70)).without_gradients(),
                case("num_output: 3").test_phase().bottom([4, 2]).bottom_of([4], Fill::Labels(3)),
            ],
        );
    }

    #[test]
    fn lambda_follows_its_schedule_and_a_state_restores_it() {
        let layer = text("num_output: 2 lambda { policy: STEPUP value: 8 gamma: 0.5 step: 1 max: 100 }");
        let new = |phase| {
            let registry = crate::tests::registry();
            Harness::new(&registry, &layer, phase, DType::F32, &[[2, 3].into(), [2].into()]).unwrap()
        };
        let mut harness = new(Phase::Train);
        assert_eq!(harness.layer.begin_iteration(1), ["lambda changed to 4"]);
        let state = harness.layer.state();
        assert_eq!(harness.layer.device().unwrap().dynamic(), [4.0]);
        let mut resumed = new(Phase::Train);
        resumed.layer.restore(&state).unwrap();
        resumed.layer.begin_iteration(2);
        assert_eq!(resumed.layer.device().unwrap().dynamic(), [2.0]);
        assert_eq!(new(Phase::Test).layer.state(), State::new());
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        let fails = |fields: &str, shapes: [lgm_core::Shape; 2], needles: &[&str]| {
            config_error(&registry, &text(fields), &shapes, needles);
        };
        fails("", [[2, 3].into(), [2].into()], &["num_output"]);
        fails("num_output: 3 lambda { value: -1 }", [[2, 3].into(), [2].into()], &["lambda", "-1"]);
        fails("num_output: 3", [[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
        fails("num_output: 3", [lgm_core::Shape::scalar(), [1].into()], &["batch axis"]);
    }
}
