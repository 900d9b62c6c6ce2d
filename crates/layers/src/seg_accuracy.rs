//! SegAccuracy: how well each position's class is found: the share of positions that are right, the mean share over classes, and the mean
//! intersection over union.
//!
//! With n(a, b) the number of positions of class a whose highest score is that of b (the later one, of equal scores), the top has
//! Σ n(a, a) / Σ n(a, b); the mean of n(a, a) / Σ_b n(a, b) over the classes that there are; and the mean over all classes of
//! n(a, a) / (Σ_b n(a, b) + Σ_b n(b, a) − n(a, a)), 1 for a class that neither labels nor scores name. Positions labelled with an
//! `ignore_label`, of which there may be several, do not count. With `reset: false` n goes on from pass to pass, and is part of a
//! solver's state.
//!
//! Shapes: bottoms scores [N, C, H, W] and N · H · W labels; top [1, 1, 1, 3]. No backward.
//!
//! Source: the layer of this name of PSPNet's fork and others. Where we differ: of the field `metric`, which has no effect there, any
//! value is refused.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer,
    Layer, Node, ParamSpec, Plan, Result, args, ensure,
};
use lgm_cpu::for_each_row_of;
use lgm_proto::{LayerParameter, SegAccuracyParameter};

use crate::common::labels::{self, check_count, class_at};
use crate::common::launch::extent;

/// The layer; see the module.
pub struct SegAccuracy {
    param: SegAccuracyParameter,
    axes: Axes3,
}

/// Scratch memory, by number.
mod scratch {
    /// The highest score of each position.
    pub const BEST: usize = 0;
    /// Its class.
    pub const CLASS: usize = 1;
    /// The counts, where they begin with each pass.
    pub const COUNTS: usize = 2;
}

impl SegAccuracy {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.seg_accuracy_param.clone().map(|param| *param).unwrap_or_default();
        ensure!(
            param.metric.is_none(),
            "seg_accuracy_param's metric is not carried out: the top has all three; take it out"
        );
        Node::compute(SegAccuracy { param, axes: Axes3::default() })
    }
}

impl Layer for SegAccuracy {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let scores = &bottoms[0];
        ensure!(
            scores.shape.len() == 4,
            "the scores must have 4 axes (images, classes, height, width), found shape {}",
            scores.shape
        );
        self.axes = Axes3::around(&scores.shape, 1..2);
        let Axes3 { outer, channels, inner } = self.axes;
        check_count(&bottoms[1], outer * inner, scores)?;
        let positions = scores.with_shape([outer, inner]);
        let goes_on = !self.param.reset();
        Ok(Plan {
            params: goes_on.then(|| ParamSpec::carried([channels, channels])).into_iter().collect(),
            scratch: vec![positions.clone(), positions, scores.with_shape([channels, channels])],
            no_backward: true,
            no_gradient: vec![0, 1],
            flops: scores.shape.count() as u64,
            ..Plan::new(vec![scores.with_shape([1, 1, 1, 3])])
        })
    }
}

impl HostLayer for SegAccuracy {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (scores, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let (best, class) = (io.scratch::<T>(scratch::BEST)?, io.scratch::<T>(scratch::CLASS)?);
        let Axes3 { outer, channels, inner } = self.axes;
        for_each_row_of([(best, inner), (&mut *class, inner)], outer, channels, |n, [best, class]| {
            best.fill(T::neg_infinity());
            class.fill(T::zero());
            for (c, scores) in scores[n * channels * inner..].chunks(inner).take(channels).enumerate() {
                let of = T::of(c as f64);
                for ((best, class), &score) in best.iter_mut().zip(&mut *class).zip(scores) {
                    if score >= *best {
                        (*best, *class) = (score, of);
                    }
                }
            }
        });
        let counts = if self.param.reset() {
            let counts = io.scratch::<T>(scratch::COUNTS)?;
            counts.fill(T::zero());
            counts
        } else {
            io.param_mut::<T>(0)?
        };
        for (i, found) in class.iter().enumerate() {
            if self.param.ignore_label.iter().any(|&ignored| labels[i].trunc().f64() == f64::from(ignored)) {
                continue;
            }
            counts[class_at(labels, i, channels)? * channels + found.f64() as usize] += T::one();
        }
        io.top::<T>(0)?.copy_from_slice(&shares(counts, channels).map(T::of));
        Ok(())
    }
}

/// The three shares of counts.
fn shares<T: Float>(counts: &[T], classes: usize) -> [f64; 3] {
    let count = |a: usize, b: usize| counts[a * classes + b].f64();
    let (mut right, mut all, mut recall, mut named, mut overlap) = (0.0, 0.0, 0.0, 0, 0.0);
    for a in 0..classes {
        let own = count(a, a);
        let (row, column): (f64, f64) = (0..classes).fold((0.0, 0.0), |(r, c), b| (r + count(a, b), c + count(b, a)));
        (right, all) = (right + own, all + row);
        if row > 0.0 {
            (recall, named) = (recall + own / row, named + 1);
        }
        let union = row + column - own;
        overlap += if union > 0.0 { own / union } else { 1.0 };
    }
    [right / f64::max(all, 1.0), recall / f64::from(named.max(1)), overlap / classes.max(1) as f64]
}

impl DeviceLayer for SegAccuracy {
    /// The labels that do not count.
    fn constants(&self) -> Vec<f32> {
        self.param.ignore_label.iter().map(|&label| label as f32).collect()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let pairs = self.axes.channels * self.axes.channels;
        plan.scratch = [pairs + 1, pairs].map(|words| plan.tops[0].with_shape([words])).to_vec();
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.axes.channels)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (scores, labels, counts, ignored) = (io.bottom(0)?, io.bottom(1)?, io.scratch(0)?, io.call.constants);
        let Axes3 { outer, channels, inner } = self.axes;
        io.queue().zero(counts, 4 * (channels * channels + 1))?;
        let (classes, skipped) = (extent(channels)?, extent(self.param.ignore_label.len())?);
        let args = args![counts, scores, labels, ignored, skipped, extent(outer)?, classes, extent(inner.max(1))?];
        io.launch("seg_count", Grid::elements(outer * inner), args)?;
        let goes_on = !self.param.reset();
        let all = if goes_on { io.param(0)? } else { io.scratch(1)? };
        let args = args![io.top(0)?, all, counts, labels, u32::from(goes_on), classes, io.call.fault];
        io.launch("seg_shares", Grid::rows(1, Grid::THREADS), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 's' type: 'SegAccuracy' bottom: 'x' bottom: 'z' top: 'y' seg_accuracy_param {{ {param} }} }}"
        )
    }

    #[test]
    fn cases() {
        let labels = Fill::Labels(3);
        check(
            &registry(),
            &[
                Case::new(layer("")).bottom([2, 3, 4, 5]).bottom_of([2, 1, 4, 5], labels.clone()),
                Case::new(layer("ignore_label: 1 ignore_label: 2"))
                    .bottom([2, 3, 2, 2])
                    .bottom_of([2, 2, 2], labels.clone()),
                Case::new(layer("reset: false")).test_phase().bottom([1, 3, 3, 3]).bottom_of([1, 3, 3], labels),
            ],
        );
    }

    /// Scores of one image of four positions, the classes found being 0, 1, 1 and, of a tie, 2.
    const SCORES: [f64; 12] = [5.0, 0.0, 1.0, 0.0, 0.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 1.0];

    fn harness(param: &str) -> Harness {
        let shapes: [Shape; 2] = [[1, 3, 2, 2].into(), [1, 2, 2].into()];
        Harness::new(&registry(), &layer(param), Phase::Test, DType::F64, &shapes).unwrap()
    }

    #[test]
    fn shares_are_of_positions_classes_and_overlaps() {
        let run = |param: &str, labels: [f64; 4]| {
            let harness = harness(param);
            harness.run(&harness.forward_inputs(&[&SCORES, &labels]).unwrap()).unwrap()
        };
        let out = run("", [0.0, 1.0, 0.0, 0.0]).tops.remove(0);
        assert_close("shares", &out, &[0.5, (1.0 / 3.0 + 1.0) / 2.0, (1.0 / 3.0 + 0.5 + 0.0) / 3.0], 1e-12);
        let out = run("ignore_label: 255", [0.0, 1.0, 255.0, 255.0]).tops.remove(0);
        assert_eq!(out, [1.0, 1.0, 1.0]);
        assert_eq!(run("ignore_label: 0", [0.0; 4]).tops[0], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn counts_go_on_without_reset() {
        let harness = harness("reset: false");
        let mut inputs = harness.forward_inputs(&[&SCORES, &[0.0, 1.0, 1.0, 2.0]]).unwrap();
        let first = harness.run(&inputs).unwrap();
        assert_eq!((first.tops[0].clone(), first.params[0].iter().sum::<f64>()), (vec![1.0; 3], 4.0));
        (inputs.params, inputs.bottoms[1]) = (first.params, vec![1.0, 0.0, 0.0, 0.0]);
        let second = harness.run(&inputs).unwrap();
        assert_eq!((second.tops[0][0], second.params[0].iter().sum::<f64>()), (0.5, 8.0));
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 2] = [[1, 3, 2, 2].into(), [1, 2, 2].into()];
        config_error(&registry(), &layer("metric: PixelIOU"), &shapes, &["metric is not carried out"]);
        config_error(&registry(), &layer(""), &[[2, 3].into(), [2].into()], &["4 axes", "(2, 3)"]);
        config_error(&registry(), &layer(""), &[[1, 3, 2, 2].into(), [3].into()], &["labels: expected 4"]);
        let harness = harness("");
        let inputs = harness.forward_inputs(&[&SCORES, &[0.0, 3.0, 0.0, 0.0]]).unwrap();
        let error = harness.run(&inputs).unwrap_err().to_string();
        assert!(error.contains("label 3 of item 1"), "{error}");
    }
}
