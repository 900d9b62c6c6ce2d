//! Boxes: intersection over union, decoding of predictions, non-maximum suppression.

use std::cmp::Ordering;

use lgm_core::Float;
use lgm_proto::prior_box_parameter::CodeType;

/// xmin, ymin, xmax, ymax.
pub(super) type Corners<T> = [T; 4];

/// The area, 0 of a box whose corners are the wrong way round.
pub(super) fn area<T: Float>([x1, y1, x2, y2]: Corners<T>) -> T {
    if x2 < x1 || y2 < y1 { T::zero() } else { (x2 - x1) * (y2 - y1) }
}

/// Intersection over union.
pub(super) fn iou<T: Float>(a: Corners<T>, b: Corners<T>) -> T {
    if b[0] > a[2] || b[2] < a[0] || b[1] > a[3] || b[3] < a[1] {
        return T::zero();
    }
    let common = (a[2].min(b[2]) - a[0].max(b[0])) * (a[3].min(b[3]) - a[1].max(b[1]));
    if common > T::zero() { common / (area(a) + area(b) - common) } else { T::zero() }
}

/// Intersection over union of boxes whose last pixels belong to them.
pub(super) fn pixel_iou<T: Float>(a: Corners<T>, b: Corners<T>) -> T {
    let pixels = |first: T, last: T| (last - first + T::one()).max(T::zero());
    let area = |[x1, y1, x2, y2]: Corners<T>| pixels(x1, x2) * pixels(y1, y2);
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    common / (area(a) + area(b) - common)
}

/// How predictions encode boxes as offsets from priors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    /// `code_type`.
    pub kind: CodeType,
    /// Predictions are in units of the priors' variances.
    pub scaled: bool,
}

impl Code {
    /// As kernels take it: the kind, and whether it is scaled.
    pub fn args(&self) -> [u32; 2] {
        [self.kind as u32, u32::from(self.scaled)]
    }

    /// The box that a prediction makes of a prior with its variances.
    pub fn decode<T: Float>(&self, prior: Corners<T>, variances: [T; 4], prediction: [T; 4]) -> Corners<T> {
        let by = |i: usize| if self.scaled { variances[i] * prediction[i] } else { prediction[i] };
        let (width, height) = (prior[2] - prior[0], prior[3] - prior[1]);
        match self.kind {
            CodeType::Corner => std::array::from_fn(|i| prior[i] + by(i)),
            CodeType::CornerSize => std::array::from_fn(|i| prior[i] + by(i) * if i % 2 == 0 { width } else { height }),
            CodeType::CenterSize => {
                let half = T::of(0.5);
                let x = by(0) * width + (prior[0] + prior[2]) * half;
                let y = by(1) * height + (prior[1] + prior[3]) * half;
                let (w, h) = (by(2).exp() * width * half, by(3).exp() * height * half);
                [x - w, y - h, x + w, y + h]
            }
        }
    }

    /// The prediction of which [`Code::decode`] makes `corners`. The sides of both boxes are positive, and so are the variances.
    pub fn encode<T: Float>(&self, prior: Corners<T>, variances: [T; 4], corners: Corners<T>) -> [T; 4] {
        let (width, height) = (prior[2] - prior[0], prior[3] - prior[1]);
        let side = |i: usize| if i.is_multiple_of(2) { width } else { height };
        let offset: [T; 4] = match self.kind {
            CodeType::Corner => std::array::from_fn(|i| corners[i] - prior[i]),
            CodeType::CornerSize => std::array::from_fn(|i| (corners[i] - prior[i]) / side(i)),
            CodeType::CenterSize => std::array::from_fn(|i| {
                let (from, to) = (i % 2, i % 2 + 2);
                if i < 2 {
                    T::of(0.5) * (corners[from] + corners[to] - prior[from] - prior[to]) / side(i)
                } else {
                    ((corners[to] - corners[from]) / side(i)).ln()
                }
            }),
        };
        if self.scaled { std::array::from_fn(|i| offset[i] / variances[i]) } else { offset }
    }
}

/// The larger first, what is no number last; equal ones stay in their order.
pub(super) fn descending<T: Float>(a: T, b: T) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Non-maximum suppression: of boxes, the best first, the numbers of those whose `iou` with every one kept before is at most
/// `threshold`, up to `most` of them. After each that is kept the threshold is multiplied by `eta`, below 1, while it is
/// above one half.
pub(super) fn suppress<T: Float>(
    boxes: &[Corners<T>],
    iou: impl Fn(Corners<T>, Corners<T>) -> T,
    threshold: f32,
    eta: f32,
    most: usize,
) -> Vec<usize> {
    let (mut threshold, eta) = (T::of(threshold.into()), T::of(eta.into()));
    let mut kept: Vec<usize> = Vec::new();
    for (i, &corners) in boxes.iter().enumerate() {
        if kept.len() == most {
            break;
        }
        if kept.iter().all(|&other| iou(corners, boxes[other]) <= threshold) {
            kept.push(i);
            if eta < T::one() && threshold > T::of(0.5) {
                threshold *= eta;
            }
        }
    }
    kept
}

/// The non-maximum suppression of a class's boxes, `nms_param`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suppression {
    /// `nms_threshold`.
    pub threshold: f32,
    /// `top_k`, the number of boxes looked at, the best first; all without.
    pub top: Option<usize>,
    /// `eta`.
    pub eta: f32,
}

impl Suppression {
    /// The boxes with a score above `least` that are kept, in descending order of score: score, number and corners. `score` and
    /// `corners` give those of a box by its number.
    pub fn kept<T: Float>(
        &self,
        boxes: usize,
        least: T,
        score: impl Fn(usize) -> T,
        corners: impl Fn(usize) -> Corners<T>,
    ) -> Vec<(T, usize, Corners<T>)> {
        let mut order: Vec<(T, usize)> = (0..boxes).map(|i| (score(i), i)).filter(|&(s, _)| s > least).collect();
        order.sort_by(|a, b| descending(a.0, b.0));
        order.truncate(self.top.unwrap_or(usize::MAX));
        let corners: Vec<Corners<T>> = order.iter().map(|&(_, i)| corners(i)).collect();
        let kept = suppress(&corners, iou, self.threshold, self.eta, usize::MAX);
        kept.into_iter().map(|k| (order[k].0, order[k].1, corners[k])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersections_over_unions() {
        let unit = [0.0, 0.0, 1.0, 1.0];
        assert_eq!(iou(unit, unit), 1.0);
        assert_eq!(iou(unit, [0.5, 0.0, 1.5, 1.0]), 1.0 / 3.0);
        assert_eq!(iou(unit, [0.25, 0.25, 0.75, 0.75]), 0.25);
        assert_eq!(iou(unit, [1.0, 0.0, 2.0, 1.0]), 0.0, "an edge");
        assert_eq!(iou(unit, [2.0, 2.0, 3.0, 3.0]), 0.0);
        assert_eq!(iou(unit, [0.5, 0.5, 0.5, 0.5]), 0.0, "a point");
    }

    #[test]
    fn predictions_are_offsets_from_priors() {
        let prior = [0.2, 0.2, 0.6, 1.0];
        let decode = |kind, scaled| Code { kind, scaled }.decode(prior, [0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.0, 0.4]);
        let near = |a: [f64; 4], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(decode(CodeType::Corner, false), [0.3, 0.4, 0.6, 1.4]));
        assert!(near(decode(CodeType::Corner, true), [0.25, 0.3, 0.6, 1.2]));
        assert!(near(decode(CodeType::CornerSize, true), [0.22, 0.28, 0.6, 1.16]));
        let high = 0.4 * f64::exp(0.2);
        assert!(near(decode(CodeType::CenterSize, true), [0.22, 0.68 - high, 0.62, 0.68 + high]));
        for kind in [CodeType::Corner, CodeType::CornerSize, CodeType::CenterSize] {
            for scaled in [false, true] {
                let (code, variances, prediction) =
                    (Code { kind, scaled }, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, -0.1, 0.4]);
                let decoded = code.decode(prior, variances, prediction);
                assert!(near(code.encode(prior, variances, decoded), prediction), "{code:?}");
            }
        }
    }

    #[test]
    fn what_is_no_number_comes_last() {
        let mut scores = [f64::NAN, 0.5, f64::NAN, 2.0];
        scores.sort_by(|a, b| descending(*a, *b));
        assert!(scores[..2] == [2.0, 0.5] && scores[2].is_nan() && scores[3].is_nan());
    }

    #[test]
    fn the_best_of_those_that_overlap_is_kept() {
        let corners = |i: usize| [0.1 * i as f64, 0.0, 0.1 * i as f64 + 1.0, 1.0];
        let scores = [0.5, 0.9, 0.1, 0.9, 0.05];
        let kept = |threshold, top, eta| {
            let how = Suppression { threshold, top, eta };
            how.kept(5, 0.07, |i| scores[i], corners).into_iter().map(|(_, i, _)| i).collect::<Vec<_>>()
        };
        // Neighbours overlap by 9/11, those two apart by 8/12.
        assert_eq!(kept(0.85, None, 1.0), [1, 3, 0, 2]);
        assert_eq!(kept(0.7, None, 1.0), [1, 3]);
        assert_eq!(kept(0.5, None, 1.0), [1]);
        assert_eq!(kept(0.85, Some(3), 1.0), [1, 3, 0]);
        assert_eq!(kept(0.85, None, 0.9), [1, 3]);
    }
}
