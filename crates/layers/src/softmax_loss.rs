//! SoftmaxWithLoss: the cross-entropy of a softmax, −1/Z · Σ ln p(label), over the positions that count.
//!
//! Bottoms: scores, with classes along `softmax_param.axis` (1), and labels, one for each other position. Tops: the loss,
//! optionally the probabilities, shaped like the scores, and, as in R-FCN's fork of Caffe, the loss at each position, shaped like the
//! labels, 0 where it does not count, which passes no gradient down. SoftmaxWithLossOHEM is another name of the layer, of forks.
//!
//! A position does not count when its label is `ignore_label`, or lies outside `label_start` … `label_end` where either
//! is given (they number the classes; the other end then defaults to 0 or the last class). `normalization` chooses Z:
//!
//! | mode | Z, but at least 1 |
//! | --- | --- |
//! | `FULL` | all positions |
//! | `VALID` (default) | the positions that count |
//! | `BATCH_SIZE` | positions before the class axis |
//! | `NONE` | 1 |
//! | `PRE_FIXED` | `pre_fixed_normalizer` (of forks) |
//!
//! Where it is absent, the older `normalize` means VALID if true, BATCH_SIZE if false. As in Caffe, a probability below
//! the least normal single-precision number counts as that number, which bounds a position's loss by 87.34.
//!
//! With `weight_by_label_freqs` (SegNet's and other forks') the term of a position is multiplied by its class's number in
//! `class_weighting`, and so is its gradient; Z stays as it is. Without these numbers it is refused, as in SegNet's fork since
//! 2015; before, that divided each term by how often its class was in the batch.
//!
//! Gradient: dx = dL/Z · (p − [class = label]) where the position counts, else 0; plus, through the second top, that of
//! the softmax (Caffe passes none). Source: Caffe's layer of this name, and the L-GM fork's label range. Where we differ:
//! another label outside the classes is an error that names it (Caffe reads memory beyond the scores, the fork ignores it).

use lgm_core::{Arity, Axes3, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::softmax::{softmax, softmax_backward};
use lgm_proto::loss_parameter::NormalizationMode;
use lgm_proto::{LayerParameter, LossParameter};

use crate::common::labels::{Labels, check_count, check_items};
use crate::common::loss::fixed_normalizer;
use crate::common::softmax::probabilities;

mod device;

/// The layer; see the module.
pub struct SoftmaxWithLoss {
    loss: LossParameter,
    axis: i32,
    along: Axes3,
    labels: Labels,
    /// What each class weighs; none where all weigh 1.
    weights: Vec<f32>,
    tops: usize,
}

impl SoftmaxWithLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let loss = param.loss_param.clone().unwrap_or_default();
        let weights = if loss.weight_by_label_freqs() { loss.class_weighting.clone() } else { Vec::new() };
        ensure!(
            !(loss.weight_by_label_freqs() && weights.is_empty()),
            "weight_by_label_freqs needs class_weighting, a number for each class; none are taken from the data"
        );
        let wrong = weights.iter().find(|weight| !weight.is_finite());
        ensure!(
            wrong.is_none(),
            "class_weighting must be of finite numbers, found {}",
            wrong.copied().unwrap_or_default()
        );
        Node::compute(SoftmaxWithLoss {
            loss,
            axis: param.softmax_param.unwrap_or_default().axis(),
            along: Axes3::default(),
            labels: Labels::default(),
            weights,
            tops: 1,
        })
    }

    fn with_probabilities(&self) -> bool {
        self.tops > 1
    }

    /// Z, unless it is the number of positions that count.
    fn fixed_normalizer(&self) -> Option<f64> {
        let Axes3 { outer, inner, .. } = self.along;
        fixed_normalizer(&self.loss, NormalizationMode::Valid, outer * inner, outer)
    }

    fn weight(&self, class: usize) -> f64 {
        self.weights.get(class).map_or(1.0, |&weight| weight.into())
    }

    fn normalizer(&self, counted: usize) -> f64 {
        self.fixed_normalizer().unwrap_or(counted.max(1) as f64)
    }
}

impl Layer for SoftmaxWithLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=3).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let scores = &bottoms[0];
        let axis = scores.shape.axis(self.axis)?;
        self.along = Axes3::around(&scores.shape, axis..axis + 1);
        check_count(&bottoms[1], self.along.outer * self.along.inner, scores)?;
        check_items(&bottoms[1], scores)?;
        let classes = self.along.channels;
        ensure!(
            self.weights.is_empty() || self.weights.len() == classes,
            "class_weighting must be given once for each of the {classes} classes of the scores of shape {}, found {} times",
            scores.shape,
            self.weights.len()
        );
        self.labels = Labels { ignored: self.loss.ignore_label, ..Labels::of(classes) };
        if self.loss.label_start.is_some() || self.loss.label_end.is_some() {
            let start = self.loss.label_start.unwrap_or(0);
            let end = self.loss.label_end.unwrap_or(classes as i32 - 1);
            let labels = i64::from(end) - i64::from(start) + 1;
            ensure!(
                labels == classes as i64,
                "label_start {start} to label_end {end} are {labels} labels, but the scores of shape {} have {classes} \
                 classes; they must be as many",
                scores.shape
            );
            self.labels.start = Some(start);
        }
        self.tops = tops;
        let mut plan =
            Plan { backward_bottoms: vec![1], flops: 6 * scores.shape.count() as u64, ..Plan::loss(scores.dtype) };
        if self.with_probabilities() {
            plan.tops.push(scores.clone());
            plan.backward_tops = vec![1];
        } else {
            plan.saved = vec![scores.clone()];
            plan.scratch = vec![scores.clone()];
        }
        if tops > 2 {
            plan.tops.push(bottoms[1].clone());
        }
        Ok(plan)
    }
}

impl HostLayer for SoftmaxWithLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (scores, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let p = probabilities(&mut io, self.with_probabilities())?;
        softmax(Some(scores), p, self.along);
        let Axes3 { channels, inner, .. } = self.along;
        let mut each = if self.tops > 2 { Some(io.top::<T>(2)?) } else { None };
        let (mut loss, mut counted) = (0.0, 0);
        for i in 0..labels.len() {
            let mut term = 0.0;
            if let Some(class) = self.labels.class(labels, i)? {
                let p = p[(i / inner * channels + class) * inner + i % inner].f64();
                let least = f64::from(f32::MIN_POSITIVE);
                // NaN stays NaN, so that it is seen.
                term = -if p < least { least } else { p }.ln() * self.weight(class);
                counted += 1;
            }
            loss += term;
            if let Some(each) = &mut each {
                each[i] = T::of(term);
            }
        }
        io.top::<T>(0)?[0] = T::of(loss / self.normalizer(counted));
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let labels = io.bottom::<T>(1)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let p = if self.with_probabilities() { io.top::<T>(1)? } else { io.saved::<T>(0)? };
        if self.with_probabilities() {
            softmax_backward(p, Some(io.top_diff::<T>(1)?), dx, self.along);
        } else {
            dx.fill(T::zero());
        }
        let scale = T::of(io.top_diff::<T>(0)?[0].f64() / self.normalizer(self.labels.count(labels)?));
        let Axes3 { channels, inner, .. } = self.along;
        for i in 0..labels.len() {
            if let Some(label) = self.labels.class(labels, i)? {
                let at = |class: usize| (i / inner * channels + class) * inner + i % inner;
                let scale = scale * T::of(self.weight(label));
                (0..channels).for_each(|c| dx[at(c)] += scale * p[at(c)]);
                dx[at(label)] -= scale;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, Recorded, assert_close, check, config_error};

    fn text(fields: &str, tops: usize) -> String {
        let second = if tops == 2 { r#"top: "p""# } else { "" };
        format!(r#"layer {{ name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" top: "l" {second} {fields} }}"#)
    }

    fn loss(fields: &str, tops: usize) -> Case {
        Case::new(text(fields, tops))
    }

    #[test]
    fn cases() {
        let golden = [0, 1, 3, 4].map(|i| Case::golden(&format!("layers/softmaxloss_{i}")));
        let with_ignored = || Fill::Given(vec![0.0, 2.0, 2.0, 255.0, 1.0, 0.0]);
        let mut cases = golden.to_vec();
        cases.push(Case::golden("layers/fork_labelrange_0"));
        for mode in ["FULL", "VALID", "BATCH_SIZE", "NONE", "PRE_FIXED pre_fixed_normalizer: 2.5"] {
            let fields = format!("loss_param {{ normalization: {mode} ignore_label: 255 }}");
            cases.push(loss(&fields, 1).bottom([2, 3, 3]).bottom_of([2, 3], with_ignored()));
            cases.push(loss(&fields, 2).bottom([2, 3, 3]).bottom_of([2, 1, 3], with_ignored()));
        }
        let each = text("top: 'e' loss_param { ignore_label: 255 }", 2);
        for each in [each.replace("Loss\"", "LossOHEM\""), each] {
            cases.push(Case::new(each).flat_top(2).bottom([2, 3, 3]).bottom_of([2, 3], with_ignored()));
        }
        cases.extend([
            loss("", 1).bottom([5, 7]).bottom_of([5], Fill::Labels(7)),
            loss("softmax_param { axis: -1 }", 1).bottom([2, 3, 4]).bottom_of([2, 3], Fill::Labels(4)),
            loss("loss_param { normalize: false }", 1).bottom([2, 3, 4]).bottom_of([2, 4], Fill::Labels(3)),
            loss("loss_param { weight_by_label_freqs: true class_weighting: [0.5, 2, 0] }", 1)
                .bottom([2, 3, 3])
                .bottom_of([2, 3], Fill::Labels(3)),
            loss("loss_param { weight_by_label_freqs: true class_weighting: [0.5, 2, 3] ignore_label: 255 }", 2)
                .bottom([2, 3, 3])
                .bottom_of([2, 3], with_ignored()),
            loss("loss_param { class_weighting: 3 }", 1).bottom([5, 7]).bottom_of([5], Fill::Labels(7)),
            // Nothing counts.
            loss("loss_param { ignore_label: 0 }", 1).bottom([3, 2]).bottom_of([3], Fill::Given(vec![0.0; 3])),
            loss("loss_param { label_start: -1 label_end: 1 ignore_label: 1 }", 1)
                .bottom([4, 3])
                .bottom_of([4], Fill::Given(vec![-1.0, 0.0, 1.0, 7.0])),
        ]);
        check(&crate::tests::registry(), &cases);
    }

    #[test]
    fn a_loss_weight_scales_the_gradient() {
        // Recorded with weight 0.3, which reaches the layer as its top's gradient.
        let recorded = Recorded::golden("layers/softmaxloss_2");
        let array = |name| recorded.array(name).unwrap();
        let ((x_shape, x), (y_shape, y)) = (array("in_0"), array("label_0"));
        let shapes = [x_shape.clone(), y_shape.clone()];
        let harness =
            Harness::new(&crate::tests::registry(), recorded.text("layer").unwrap(), Phase::Train, DType::F32, &shapes);
        let harness = harness.unwrap();
        let mut inputs = harness.forward_inputs(&[x, y]).unwrap();
        inputs.top_diffs = vec![vec![0.3]];
        let out = harness.run(&inputs).unwrap();
        assert_close("loss", &out.tops[0], array("out_0").1, 1e-5);
        assert_close("gradient", out.bottom_diffs[0].as_ref().unwrap(), array("bottom_diff_0").1, 1e-5);
    }

    #[test]
    fn normalizers() {
        // Uniform scores: ln 3 at each of the 4 positions that count, of 6.
        let run = |fields: &str| {
            let harness = Harness::new(
                &crate::tests::registry(),
                &text(fields, 1),
                Phase::Test,
                DType::F64,
                &[[2, 3, 3].into(), [2, 3].into()],
            );
            let harness = harness.unwrap();
            let inputs = harness.forward_inputs(&[&[0.5; 18], &[0.0, 1.0, 9.0, 2.0, 9.0, 0.0]]).unwrap();
            harness.run(&inputs).unwrap().tops[0][0] / 3f64.ln()
        };
        let got = ["normalization: FULL", "normalization: VALID", "normalization: BATCH_SIZE", "normalization: NONE"]
            .into_iter()
            .chain(["normalize: true", "normalize: false", "normalize: false normalization: FULL", ""])
            .map(|f| run(&format!("loss_param {{ ignore_label: 9 {f} }}")));
        let got: Vec<f64> = got.collect();
        assert_close("normalizers", &got, &[4.0 / 6.0, 1.0, 2.0, 4.0, 1.0, 2.0, 4.0 / 6.0, 1.0], 1e-12);
    }

    #[test]
    fn a_lost_label_is_bounded_as_in_caffe() {
        let harness = Harness::new(
            &crate::tests::registry(),
            &text("", 1),
            Phase::Train,
            DType::F32,
            &[[1, 2].into(), [1].into()],
        )
        .unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[0.0, 1e4], &[0.0]]).unwrap()).unwrap();
        assert_close("loss", &out.tops[0], &[87.33655], 1e-6);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        let shapes = [[2, 3].into(), [2].into()];
        for bad in [3.0, -1.0, f64::NAN] {
            let harness = Harness::new(&registry, &text("", 1), Phase::Train, DType::F32, &shapes).unwrap();
            let err = harness.run(&harness.forward_inputs(&[&[0.0; 6], &[1.0, bad]]).unwrap()).unwrap_err().to_string();
            assert!(err.contains(&format!("label {bad} of item 1")) && err.contains("3 classes"), "{err}");
        }
        config_error(&registry, &text("", 1), &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
        config_error(&registry, &text("softmax_param { axis: 5 }", 1), &shapes, &["axis 5"]);
        // As many labels as positions, in another order.
        let turned = [[2, 3, 4].into(), [4, 2].into()];
        config_error(&registry, &text("", 1), &turned, &["a first extent of 2", "found shape (4, 2)", "Reshape"]);
        for (weights, needles) in [
            ("", &["weight_by_label_freqs", "class_weighting"][..]),
            ("class_weighting: [1, 2]", &["class_weighting", "3 classes", "found 2 times"]),
            ("class_weighting: [1, 2, nan]", &["class_weighting", "found NaN"]),
        ] {
            let fields = format!("loss_param {{ weight_by_label_freqs: true {weights} }}");
            config_error(&registry, &text(&fields, 1), &shapes, needles);
        }
        let fields = "loss_param { label_start: 2 label_end: 5 }";
        config_error(&registry, &text(fields, 1), &shapes, &["label_start 2 to label_end 5 are 4 labels", "3 classes"]);
    }
}
