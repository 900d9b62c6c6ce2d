//! Accuracy: the share of positions whose label is among the `top_k` best scores.
//!
//! Bottoms: scores, with classes along `axis` (1), and labels, one for each other position. Tops: the accuracy, optionally
//! the accuracy of each class \[classes\] (0 for a class that no label names, as in Caffe; in SegNet's fork 1). Positions labelled `ignore_label` do not
//! count; with none left the accuracy is 0.
//!
//! A label is right when fewer than `top_k` other classes score at least as high, so a tie counts against it. With
//! `crop_num` c, each c consecutive items are views of one: their scores are summed, and there is a label for every c.
//!
//! No backward. Source: Caffe's layer of this name, and the L-GM fork's `crop_num` (which there comes with another rule
//! for ties: of equal scores the higher class wins). Where we differ: scores that are not numbers are wrong, not right;
//! a label outside the classes is an error.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure,
};
use lgm_proto::{AccuracyParameter, LayerParameter};

use crate::common::labels::{Labels, check_count};

mod device;

/// The layer; see the module.
pub struct Accuracy {
    param: AccuracyParameter,
    along: Axes3,
    crops: usize,
    labels: Labels,
    by_class: bool,
}

impl Accuracy {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.accuracy_param.unwrap_or_default();
        ensure!(param.top_k() > 0, "top_k must be positive, found 0");
        ensure!(param.crop_num() > 0, "crop_num must be positive, found 0");
        let crops = param.crop_num() as usize;
        Node::compute(Accuracy { param, along: Axes3::default(), crops, labels: Labels::default(), by_class: false })
    }

    /// Whether the label at position `i` is right.
    fn is_right<T: Float>(&self, scores: &[T], i: usize, label: usize) -> bool {
        let Axes3 { channels, inner, .. } = self.along;
        let (item, position) = (i / inner * self.crops, i % inner);
        let score = |class: usize| -> T {
            (0..self.crops).map(|c| scores[((item + c) * channels + class) * inner + position]).sum()
        };
        let own = score(label);
        let at_least = |class: &usize| {
            let other = score(*class);
            other >= own || other.is_nan() || own.is_nan()
        };
        let better = (0..channels).filter(|c| *c != label).filter(at_least).count();
        better < self.param.top_k() as usize && !own.is_nan()
    }
}

impl Layer for Accuracy {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let scores = &bottoms[0];
        let axis = scores.shape.axis(self.param.axis())?;
        self.along = Axes3::around(&scores.shape, axis..axis + 1);
        let Axes3 { outer, channels, inner } = self.along;
        let (top_k, crops) = (self.param.top_k(), self.crops);
        ensure!(top_k as usize <= channels, "top_k is {top_k}, but there are only {channels} classes");
        ensure!(
            outer.is_multiple_of(crops),
            "crop_num {crops} does not divide the {outer} items of shape {}",
            scores.shape
        );
        check_count(&bottoms[1], outer / crops * inner, scores)?;
        self.labels = Labels { ignored: self.param.ignore_label, ..Labels::of(channels) };
        self.by_class = tops == 2;
        let mut plan = Plan::new(vec![scores.with_shape(Shape::scalar())]);
        if self.by_class {
            plan.tops.push(scores.with_shape([channels]));
            plan.scratch = vec![scores.with_shape([channels])];
        }
        plan.no_backward = true;
        plan.no_gradient = vec![0, 1];
        plan.flops = scores.shape.count() as u64;
        Ok(plan)
    }
}

impl HostLayer for Accuracy {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (scores, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let mut by_class = if self.by_class { Some((io.top::<T>(1)?, io.scratch::<T>(0)?)) } else { None };
        if let Some((right, seen)) = &mut by_class {
            right.fill(T::zero());
            seen.fill(T::zero());
        }
        let (mut right, mut seen) = (0u64, 0u64);
        for i in 0..labels.len() {
            let Some(label) = self.labels.class(labels, i)? else { continue };
            let is_right = self.is_right(scores, i, label);
            seen += 1;
            right += u64::from(is_right);
            if let Some((right, seen)) = &mut by_class {
                seen[label] += T::one();
                right[label] += if is_right { T::one() } else { T::zero() };
            }
        }
        if let Some((right, seen)) = by_class {
            right.iter_mut().zip(&*seen).filter(|(_, n)| **n > T::zero()).for_each(|(r, &n)| *r /= n);
        }
        io.top::<T>(0)?[0] = T::of(right as f64 / seen.max(1) as f64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase, Result, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str, tops: usize) -> String {
        let second = if tops == 2 { r#"top: "c""# } else { "" };
        format!(
            r#"layer {{ name: "a" type: "Accuracy" bottom: "x" bottom: "y" top: "a" {second} accuracy_param {{ {fields} }} }}"#
        )
    }

    fn run(fields: &str, shape: impl Into<Shape>, scores: &[f64], labels: &[f64]) -> Result<Vec<Vec<f64>>> {
        let shapes = [shape.into(), [labels.len()].into()];
        let harness = Harness::new(&crate::tests::registry(), &text(fields, 2), Phase::Test, DType::F32, &shapes)?;
        Ok(harness.run(&harness.forward_inputs(&[scores, labels])?)?.tops)
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/accuracy"),
                Case::golden("layers/fork_accuracy_crops"),
                Case::new(text("top_k: 2 axis: -1", 2)).bottom([2, 3, 4]).bottom_of([2, 3], Fill::Labels(4)),
                Case::new(text("", 1)).bottom([2, 3, 4]).bottom_of([2, 4], Fill::Labels(3)),
            ],
        );
    }

    #[test]
    fn counting() {
        let scores = [3.0, 1.0, 2.0, 0.0, 5.0, 1.0, 1.0, 2.0, 3.0];
        assert_eq!(
            run("", [3, 3], &scores, &[0.0, 0.0, 2.0]).unwrap(),
            [vec![2.0f32 as f64 / 3.0], vec![0.5, 0.0, 1.0]]
                .map(|v| v.into_iter().map(|x| f64::from(x as f32)).collect::<Vec<_>>())
        );
        // A tie counts against the label, unless there is room for both.
        assert_eq!(run("", [1, 3], &[1.0, 1.0, 0.0], &[1.0]).unwrap()[0], [0.0]);
        assert_eq!(run("top_k: 2", [1, 3], &[1.0, 1.0, 0.0], &[1.0]).unwrap()[0], [1.0]);
        // Nothing counts.
        assert_eq!(run("ignore_label: 7", [1, 3], &[1.0, 2.0, 0.0], &[7.0]).unwrap(), [vec![0.0], vec![0.0; 3]]);
        // Each crop alone is wrong about one item; their sums are right.
        let crops = [0.0, 1.0, 5.0, 0.0, 9.0, 0.0, 0.0, 10.0];
        assert_eq!(run("crop_num: 2", [4, 2], &crops, &[0.0, 1.0]).unwrap()[0], [1.0]);
    }

    #[test]
    fn what_is_not_a_number_is_wrong() {
        let nan = f64::NAN;
        assert_eq!(run("", [2, 2], &[nan, nan, nan, 1.0], &[0.0, 1.0]).unwrap()[0], [0.0]);
        assert_eq!(run("top_k: 2", [1, 2], &[nan, nan], &[0.0]).unwrap()[0], [0.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let err = run("", [2, 3], &[0.0; 6], &[1.0, 3.0]).unwrap_err().to_string();
        assert!(err.contains("label 3 of item 1"), "{err}");
        let fails = |fields: &str, shapes: [Shape; 2], needles: &[&str]| {
            config_error(&crate::tests::registry(), &text(fields, 1), &shapes, needles);
        };
        fails("top_k: 4", [[2, 3].into(), [2].into()], &["top_k is 4", "3 classes"]);
        fails("top_k: 0", [[2, 3].into(), [2].into()], &["top_k"]);
        fails("crop_num: 0", [[2, 3].into(), [2].into()], &["crop_num"]);
        fails("crop_num: 2", [[3, 3].into(), [1].into()], &["crop_num 2", "3 items"]);
        fails("", [[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
        fails("axis: 2", [[2, 3].into(), [2].into()], &["axis 2"]);
    }
}
