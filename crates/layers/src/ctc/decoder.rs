//! CTCGreedyDecoder and LabelsequenceAccuracy: the best class at each step, equal neighbours made one and blanks left out; and the
//! share of sequences that are then equal to their labels.
//!
//! CTCGreedyDecoder: bottoms scores [T, N, C], indicators and, optionally, labels (see [`super`]); tops the sequences [N, T, 1, 1],
//! what is left of each filled with −1; then, with one more top than labels have, the scores [N, 1, 1, 1], each the sum of the best
//! scores, negated; last, with labels, the accuracy [1, 1, 1, 1], which may be left out. With `ctc_merge_repeated` false equal
//! neighbours stay. LabelsequenceAccuracy: bottoms scores [N, T, C] and labels [N, L]; top the accuracy. No backward.
//!
//! Source: see [`super`]. Where we differ: OpenCV's layer takes what begins with the labels for right.

use lgm_core::{Arity, BlobSpec, BuildCx, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure};
use lgm_cpu::for_each_row_of;
use lgm_proto::{CtcDecoderParameter, LayerParameter};

use super::Extents;

/// Both layers; see the module.
pub struct CtcGreedyDecoder {
    blank: i32,
    pub(super) merged: bool,
    pub(super) of: Extents,
    pub(super) bottoms: usize,
    pub(super) tops: Tops,
}

/// LabelsequenceAccuracy; see the module.
pub struct LabelSequenceAccuracy;

/// Which top is what.
#[derive(Clone, Copy, Default)]
pub(super) struct Tops {
    pub sequences: Option<usize>,
    pub scores: Option<usize>,
    pub accuracy: Option<usize>,
}

impl LabelSequenceAccuracy {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let blank = param.labelsequence_accuracy_param.as_deref().copied().unwrap_or_default().blank_label();
        CtcGreedyDecoder::node(blank, true, false)
    }
}

impl CtcGreedyDecoder {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param: CtcDecoderParameter = param.ctc_decoder_param.as_deref().copied().unwrap_or_default();
        CtcGreedyDecoder::node(param.blank_index(), param.ctc_merge_repeated(), true)
    }

    fn node(blank: i32, merged: bool, by_step: bool) -> Result<Node> {
        let of = Extents { by_step, ..Extents::default() };
        Node::compute(CtcGreedyDecoder { blank, merged, of, bottoms: 2, tops: Tops::default() })
    }

    /// The bottom of labels, if there is one.
    pub(super) fn labels_bottom(&self) -> Option<usize> {
        (!self.of.by_step || self.bottoms > 2).then_some(self.bottoms - 1)
    }

    /// How far apart steps and items are in the scores, in rows of classes.
    pub(super) fn strides(&self) -> [usize; 2] {
        if self.of.by_step { [self.of.items, 1] } else { [1, self.of.steps] }
    }

    /// Writes the sequence of item `n`, with −1 after it; gives the sum of its best scores, negated.
    fn decode<T: Float>(&self, x: &[T], indicators: Option<&[T]>, n: usize, sequence: &mut [T]) -> T {
        let Extents { classes, blank, steps, .. } = self.of;
        let [step, item] = self.strides();
        let (mut found, mut before, mut score) = (0, None, T::zero());
        for t in 0..indicators.map_or(steps, |indicators| self.of.length(indicators, n)) {
            let x = &x[(t * step + n * item) * classes..][..classes];
            let best = (1..classes).fold(0, |best, c| if x[c] > x[best] { c } else { best });
            score -= x[best];
            if best != blank && !(self.merged && before == Some(best)) {
                sequence[found] = T::of(best as f64);
                found += 1;
            }
            before = Some(best);
        }
        sequence[found..].fill(-T::one());
        score
    }

    /// Whether a sequence is that of item `n`'s labels.
    fn is_right<T: Float>(&self, labels: &[T], n: usize, sequence: &[T]) -> bool {
        let found = sequence.iter().copied().take_while(|&class| class >= T::zero());
        self.of.labels_of(labels, n).map(|(_, label)| label).eq(found)
    }
}

impl Layer for CtcGreedyDecoder {
    fn arity(&self) -> Arity {
        if self.of.by_step { Arity::range(2..=3, 1..=3) } else { Arity::exactly(2, 1) }
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let (scores, by_step) = (&bottoms[0], self.of.by_step);
        self.bottoms = bottoms.len();
        let (axes, field) = if by_step { ([0, 1], "blank_index") } else { ([1, 0], "blank_label") };
        self.of = Extents::of(scores, axes, (field, self.blank), by_step)?;
        let labels = self.labels_bottom();
        if let Some(labels) = labels {
            self.of = self.of.with_labels(bottoms, labels)?;
        }
        if by_step {
            self.of.check_indicators(bottoms)?;
        }
        let Extents { steps, items, .. } = self.of;
        ensure!(
            tops <= self.bottoms,
            "with {} bottoms there are at most {} tops (sequences, scores and, with labels, the accuracy), found {tops}",
            self.bottoms,
            self.bottoms
        );
        let last = by_step && labels.is_some() && tops > 1;
        self.tops = Tops {
            sequences: by_step.then_some(0),
            scores: (by_step && tops > 1 + usize::from(labels.is_some())).then_some(1),
            accuracy: if by_step { last.then_some(tops - 1) } else { Some(0) },
        };
        let shapes = [
            (self.tops.sequences, Shape::from([items, steps, 1, 1])),
            (self.tops.scores, Shape::from([items, 1, 1, 1])),
            (self.tops.accuracy, if by_step { Shape::from([1, 1, 1, 1]) } else { Shape::scalar() }),
        ];
        let tops = shapes.into_iter().filter(|(top, _)| top.is_some()).map(|(_, shape)| scores.with_shape(shape));
        Ok(Plan {
            no_backward: true,
            no_gradient: (0..bottoms.len()).collect(),
            scratch: vec![scores.with_shape([items, steps]), scores.with_shape([items]), scores.with_shape([items])],
            flops: scores.shape.count() as u64,
            ..Plan::new(tops.collect())
        })
    }
}

impl HostLayer for CtcGreedyDecoder {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let x = io.bottom::<T>(0)?;
        let indicators = if self.of.by_step { Some(io.bottom::<T>(1)?) } else { None };
        let labels = self.labels_bottom().map(|i| io.bottom::<T>(i)).transpose()?;
        let Extents { steps, items, .. } = self.of;
        let mut put = |top: Option<usize>, scratch: usize| match top {
            Some(top) => io.top::<T>(top),
            None => io.scratch(scratch),
        };
        let (sequences, scores) = (put(self.tops.sequences, 0)?, put(self.tops.scores, 1)?);
        let right = io.scratch::<T>(2)?;
        let parts = [(sequences, steps), (scores, 1), (&mut *right, 1)];
        for_each_row_of(parts, items, 1, |n, [sequence, score, right]| {
            score[0] = self.decode(x, indicators, n, sequence);
            let is_right = labels.is_some_and(|labels| self.is_right(labels, n, sequence));
            right[0] = if is_right { T::one() } else { T::zero() };
        });
        if let Some(accuracy) = self.tops.accuracy {
            let right: f64 = right.iter().map(|right| right.f64()).sum();
            io.top::<T>(accuracy)?[0] = T::of(right / items as f64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn greedy(labels: bool, tops: usize, param: &str) -> String {
        let third = if labels { "bottom: 'y'" } else { "" };
        let tops: String = (0..tops).map(|t| format!("top: 't{t}' ")).collect();
        format!(
            "layer {{ name: 'd' type: 'CTCGreedyDecoder' bottom: 'x' bottom: 'i' {third} {tops} ctc_decoder_param {{ {param} }} }}"
        )
    }

    fn accuracy(param: &str) -> String {
        format!(
            "layer {{ name: 'a' type: 'LabelsequenceAccuracy' bottom: 'x' bottom: 'y' top: 'a'
                      labelsequence_accuracy_param {{ {param} }} }}"
        )
    }

    const INDICATORS: [f64; 12] = [0., 0., 1., 1., 1., 1., 1., 0., 1., 1., 1., 1.];

    #[test]
    fn cases() {
        let case = |labels: bool, tops: usize, param: &str| {
            let case = Case::new(greedy(labels, tops, param))
                .bottom_of([6, 2, 3], Fill::Labels(4))
                .bottom_of([6, 2, 1], Fill::Given(INDICATORS.to_vec()));
            if labels { case.bottom_of([4, 2], Fill::Labels(3)) } else { case }
        };
        let wide = |shape: [usize; 3], labels: [usize; 2]| {
            Case::new(accuracy("blank_label: 1")).bottom(shape).bottom_of(labels, Fill::Labels(shape[2]))
        };
        check(
            &registry(),
            &[
                case(false, 1, ""),
                case(false, 2, "blank_index: 0"),
                case(true, 1, ""),
                case(true, 2, "ctc_merge_repeated: false"),
                case(true, 3, "blank_index: 1"),
                wide([3, 5, 40], [3, 4]),
                wide([2, 300, 2], [2, 1]),
            ],
        );
    }

    /// Rows of three scores whose best are these.
    fn scores(best: &[usize]) -> Vec<f64> {
        best.iter().flat_map(|&b| (0..3).map(move |c| if c == b { 2.0 } else { 0.5 })).collect()
    }

    #[test]
    fn blanks_and_repeats_are_left_out() {
        // Two sequences, 0 0 2 0 1 1 and 1 2 1 | 0 0 0, of which the second ends after three steps.
        let x = scores(&[0, 1, 0, 2, 2, 1, 0, 0, 1, 0, 1, 0]);
        let run = |param: &str, labels: [f64; 8]| {
            let shapes: [Shape; 3] = [[6, 2, 3].into(), [6, 2].into(), [4, 2].into()];
            let text = greedy(true, 3, param);
            let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &shapes).unwrap();
            harness.run(&harness.forward_inputs(&[&x, &INDICATORS, &labels]).unwrap()).unwrap().tops
        };
        let labels = [0., 1., 0., 1., 1., 1., -1., -1.];
        let tops = run("", labels);
        assert_eq!(tops[0], [0., 0., 1., -1., -1., -1., 1., 1., -1., -1., -1., -1.]);
        assert_eq!(tops[1], [-12.0, -6.0]);
        // The labels of the second go on.
        assert_eq!(tops[2], [0.5]);
        let tops = run("ctc_merge_repeated: false blank_index: 2", [1.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0]);
        assert_eq!(tops[0], [0., 0., 0., 1., 1., -1., 1., 1., -1., -1., -1., -1.]);
        assert_eq!(tops[2], [0.5]);
    }

    #[test]
    fn sequences_are_right_as_a_whole() {
        let shapes: [Shape; 2] = [[3, 4, 3].into(), [3, 2].into()];
        let harness = Harness::new(&registry(), &accuracy("blank_label: 2"), Phase::Test, DType::F64, &shapes).unwrap();
        let x = scores(&[0, 0, 1, 2, 2, 2, 2, 2, 0, 1, 0, 2]);
        let run = |labels: [f64; 6]| harness.run(&harness.forward_inputs(&[&x, &labels]).unwrap()).unwrap().tops[0][0];
        assert_eq!(run([0., 1., 2., 2., 0., 1.]), 2.0 / 3.0);
        assert_eq!(run([0., 2., 1., 2., 1., 1.]), 0.0);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 2] = [[6, 2, 3].into(), [6, 2].into()];
        config_error(&registry(), &greedy(false, 3, ""), &shapes, &["2 bottoms", "at most 2 tops", "found 3"]);
        config_error(&registry(), &greedy(false, 1, "blank_index: 3"), &shapes, &["blank_index 3", "3 classes"]);
        let wrong = [[6, 2, 3].into(), [6, 3].into()];
        config_error(&registry(), &greedy(false, 1, ""), &wrong, &["indicators", "(6, 2)", "(6, 3)"]);
        let wrong = [[6, 2, 3].into(), [2, 4].into()];
        config_error(&registry(), &accuracy(""), &wrong, &["labels", "6 sequences", "(2, 4)"]);
        config_error(
            &registry(),
            &accuracy(""),
            &[[6, 2].into(), [6, 2].into()],
            &["(sequences, steps, classes)", "(6, 2)"],
        );
    }
}
