//! What is done with boxes: overlaps, offsets from priors, and the suppression of those that overlap a better one.

use std::cmp::Ordering;

use lgm_core::Float;
use lgm_proto::prior_box_parameter::CodeType;

/// x and y of the first corner, then of the last.
pub(super) type Corners<T> = [T; 4];

/// The area, 0 of a box whose corners are the wrong way round.
fn area<T: Float>([x1, y1, x2, y2]: Corners<T>) -> T {
    if x2 < x1 || y2 < y1 { T::zero() } else { (x2 - x1) * (y2 - y1) }
}

/// The part that two boxes have in common of what they cover together.
pub(super) fn overlap<T: Float>(a: Corners<T>, b: Corners<T>) -> T {
    if b[0] > a[2] || b[2] < a[0] || b[1] > a[3] || b[3] < a[1] {
        return T::zero();
    }
    let common = (a[2].min(b[2]) - a[0].max(b[0])) * (a[3].min(b[3]) - a[1].max(b[1]));
    if common > T::zero() { common / (area(a) + area(b) - common) } else { T::zero() }
}

/// How predictions are offsets from priors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    /// In which terms.
    pub kind: CodeType,
    /// Predictions are in units of the priors' variances.
    pub scaled: bool,
}

impl Code {
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
}

/// The larger first; equal ones, and what is no number, stay in their order.
pub(super) fn descending<T: Float>(a: T, b: T) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// How boxes that overlap are suppressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suppression {
    /// Boxes overlap if by more than this.
    pub threshold: f32,
    /// Boxes that are looked at, the best first.
    pub top: Option<usize>,
    /// Factor on the threshold after each box that is kept, while it is above one half.
    pub eta: f32,
}

impl Suppression {
    /// Of the boxes with a score above `least`, in the order of their scores, those that overlap none before that is kept;
    /// `score` and `corners` give those of a box by its number.
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
        let mut kept: Vec<(T, usize, Corners<T>)> = Vec::new();
        let (mut threshold, eta) = (T::of(self.threshold.into()), T::of(self.eta.into()));
        for (score, i) in order {
            let corners = corners(i);
            if kept.iter().all(|&(.., other)| overlap(corners, other) <= threshold) {
                kept.push((score, i, corners));
                if eta < T::one() && threshold > T::of(0.5) {
                    threshold *= eta;
                }
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps() {
        let unit = [0.0, 0.0, 1.0, 1.0];
        assert_eq!(overlap(unit, unit), 1.0);
        assert_eq!(overlap(unit, [0.5, 0.0, 1.5, 1.0]), 1.0 / 3.0);
        assert_eq!(overlap(unit, [0.25, 0.25, 0.75, 0.75]), 0.25);
        assert_eq!(overlap(unit, [1.0, 0.0, 2.0, 1.0]), 0.0, "an edge");
        assert_eq!(overlap(unit, [2.0, 2.0, 3.0, 3.0]), 0.0);
        assert_eq!(overlap(unit, [0.5, 0.5, 0.5, 0.5]), 0.0, "a point");
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
