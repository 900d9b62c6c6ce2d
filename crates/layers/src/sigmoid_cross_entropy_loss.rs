//! SigmoidCrossEntropyLoss: −1/Z · Σ t · ln σ(x) + (1 − t) · ln(1 − σ(x)), each score x against its own target t from 0 to 1.
//!
//! Computed as max(x, 0) − x·t + ln(1 + e^−∣x∣), which does not overflow. A target that, its fraction cut off, is
//! `ignore_label` does not count. `loss_param.normalization` chooses Z, but at least 1: `FULL`, all elements; `VALID`, those
//! that count; `BATCH_SIZE` (default), items; `NONE`, 1; `PRE_FIXED`, `pre_fixed_normalizer` (of forks). Where it is absent, the older `normalize` means VALID if true,
//! BATCH_SIZE if false.
//!
//! Gradient: dx = dL/Z · (σ(x) − t) where the target counts, else 0; none to the targets. Shapes: bottoms scores [N, …] and
//! as many targets; top the loss. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, args, ensure,
};
use lgm_cpu::elementwise::{reduce, zip2_into};
use lgm_cpu::math::{exp, ln, sigmoid};
use lgm_proto::loss_parameter::NormalizationMode;
use lgm_proto::{LayerParameter, LossParameter};

use crate::common::labels::check_items;
use crate::common::loops::total;
use crate::common::loss::{Tally, fixed_normalizer};

/// The layer; see the module.
pub struct SigmoidCrossEntropyLoss {
    loss: LossParameter,
    items: usize,
    count: usize,
}

impl SigmoidCrossEntropyLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let loss = param.loss_param.clone().unwrap_or_default();
        Node::compute(SigmoidCrossEntropyLoss { loss, items: 0, count: 0 })
    }

    fn counts<T: Float>(&self, target: T) -> bool {
        self.loss.ignore_label.is_none_or(|ignored| target.trunc().f64() != f64::from(ignored))
    }

    /// Z, unless it is the number of targets that count.
    fn fixed_normalizer(&self) -> Option<f64> {
        fixed_normalizer(&self.loss, NormalizationMode::BatchSize, self.count, self.items)
    }

    fn normalizer<T: Float>(&self, targets: &[T]) -> f64 {
        let counted = || targets.iter().filter(|t| self.counts(**t)).count().max(1) as f64;
        self.fixed_normalizer().unwrap_or_else(counted)
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.count }
    }

    fn ignores(&self) -> (u32, i32) {
        (u32::from(self.loss.ignore_label.is_some()), self.loss.ignore_label.unwrap_or(0))
    }
}

impl Layer for SigmoidCrossEntropyLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (x, targets) = (&bottoms[0].shape, &bottoms[1].shape);
        ensure!(
            x.count() == targets.count(),
            "there must be a target for each score, found scores of shape {x} and targets of shape {targets}"
        );
        check_items(&bottoms[1], &bottoms[0])?;
        self.count = x.count();
        self.items = x.first().copied().unwrap_or(1);
        Ok(Plan { backward_bottoms: vec![0, 1], flops: 6 * x.count() as u64, ..Plan::loss(bottoms[0].dtype) })
    }
}

impl HostLayer for SigmoidCrossEntropyLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, targets) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let term = |x: T, t: T| x.max(T::zero()) - x * t + ln(T::one() + exp(-x.abs()));
        let counted = |x: T, t: T| if self.counts(t) { term(x, t) } else { T::zero() };
        let loss = if self.loss.ignore_label.is_some() {
            reduce(x.len(), |r| T::of(total(&x[r.clone()], &targets[r], counted)))
        } else {
            reduce(x.len(), |r| T::of(total(&x[r.clone()], &targets[r], term)))
        };
        io.top::<T>(0)?[0] = T::of(loss.f64() / self.normalizer(targets));
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, targets) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = T::of(io.top_diff::<T>(0)?[0].f64() / self.normalizer(targets));
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let slope = |x: T, t: T| scale * (sigmoid(x) - t);
        if self.loss.ignore_label.is_some() {
            zip2_into(x, targets, dx, |x, t| if self.counts(t) { slope(x, t) } else { T::zero() });
        } else {
            zip2_into(x, targets, dx, slope);
        }
        Ok(())
    }
}

impl DeviceLayer for SigmoidCrossEntropyLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.saved = vec![plan.tops[0].with_shape([1])];
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, targets, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let (ignores, ignored) = self.ignores();
        let args = args![partial, x, targets, ignores, ignored, self.count as i64];
        io.launch("sigmoid_loss_partials", self.tally().grid(), args)?;
        let (tops, z) = ((loss, io.saved(0)), self.fixed_normalizer().map(|z| z as f32));
        self.tally().finish(io.call, tops, partial, None, z)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, targets, d_loss, share) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?, io.saved(0)?);
        let (ignores, ignored) = self.ignores();
        let args = args![dx, x, targets, d_loss, share, ignores, ignored, self.count as i64];
        io.launch("sigmoid_loss_backward", Grid::elements(self.count), args)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'x' bottom: 't' top: 'l'";
        format!("layer {{ name: 's' type: 'SigmoidCrossEntropyLoss' {blobs} loss_param {{ {fields} }} }}")
    }

    #[test]
    fn cases() {
        let mut cases = vec![Case::golden("layers/sigmoidce")];
        cases.extend((0..6).map(|i| Case::golden(&format!("layers/sigmoidce_more_{i}"))));
        let targets = || Fill::Given(vec![0.0, 1.0, 0.3, 2.0, 2.9, 1.0, 0.7, 0.0, 2.0, 0.1, 0.0, 1.0]);
        for mode in ["FULL", "VALID", "BATCH_SIZE", "NONE"] {
            let fields = format!("ignore_label: 2 normalization: {mode}");
            cases.push(Case::new(text(&fields)).bottom([4, 3]).bottom_of([4, 3, 1], targets()));
        }
        cases.extend([
            Case::new(text("normalize: true ignore_label: 2")).bottom([3, 4]).bottom_of([3, 2, 2], targets()),
            // Nothing counts.
            Case::new(text("normalize: true ignore_label: 0")).bottom([2]).bottom_of([2], Fill::Uniform(0.0, 0.9)),
            // What would overflow.
            Case::new(text(""))
                .bottom_of([4], Fill::Given(vec![-200.0, 200.0, 89.0, 0.0]))
                .bottom_of([4], Fill::Given(vec![0.0, 1.0, 0.0, 1.0])),
            Case::new(text("")).bottom([3, 6000]).bottom_of([3, 6000], Fill::Uniform(0.0, 1.0)).without_gradients(),
        ]);
        check(&crate::tests::registry(), &cases);
    }

    #[test]
    fn there_is_a_target_for_each_score() {
        config_error(&crate::tests::registry(), &text(""), &[[2, 3].into(), [2, 2].into()], &["(2, 3)", "(2, 2)"]);
        let turned = [[4, 3].into(), [3, 4].into()];
        config_error(&crate::tests::registry(), &text(""), &turned, &["a first extent of 4", "found shape (3, 4)"]);
    }
}
