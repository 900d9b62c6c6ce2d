//! Which prior box is to find which ground truth, and which of the others are learned from as background.

use lgm_core::Float;

use super::super::boxes::{Corners, area, descending, iou, suppress};

/// An overlap that is none.
const LEAST_OVERLAP: f64 = 1e-6;
/// Boxes smaller than this are never picked by non-maximum suppression.
const LEAST_AREA: f64 = 1e-5;

/// What a box is matched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// Nothing.
    None,
    /// Nothing, since it lies across the image's boundary: it is learned from as nothing either.
    Ignored,
    /// A ground truth, by its place in the list.
    With(usize),
}

impl Match {
    /// The place of the ground truth.
    pub fn truth(self) -> Option<usize> {
        if let Match::With(truth) = self { Some(truth) } else { None }
    }
}

/// How boxes are matched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matching {
    /// The overlap from which a box that is no ground truth's best is matched too (`PER_PREDICTION`); none with `BIPARTITE`.
    pub threshold: Option<f32>,
    /// `ignore_cross_boundary_bbox`.
    pub inside: bool,
}

impl Matching {
    /// The match of each box, and its overlap with the ground truth it is matched with, else the largest that it has.
    ///
    /// Each ground truth in turn, that of the largest overlap first, is given the free box that overlaps it most; then each
    /// box that is left the ground truth that it overlaps most. Of equal overlaps the first counts.
    pub fn of<T: Float>(&self, boxes: &[Corners<T>], truths: &[Corners<T>]) -> (Vec<Match>, Vec<T>) {
        let (mut matches, mut most) = (vec![Match::None; boxes.len()], vec![T::zero(); boxes.len()]);
        let unit = T::zero()..=T::one();
        let mut overlaps = vec![T::zero(); boxes.len() * truths.len()];
        for (b, corners) in boxes.iter().enumerate() {
            if self.inside && !corners.iter().all(|c| unit.contains(c)) {
                matches[b] = Match::Ignored;
                continue;
            }
            for (t, truth) in truths.iter().enumerate() {
                let overlap = iou(*corners, *truth);
                if overlap > T::of(LEAST_OVERLAP) {
                    overlaps[t * boxes.len() + b] = overlap;
                    most[b] = most[b].max(overlap);
                }
            }
        }
        let best = |t: usize, matches: &[Match]| {
            let of_truth = overlaps[t * boxes.len()..][..boxes.len()].iter().zip(matches).enumerate();
            let free = of_truth.filter(|(_, (overlap, m))| **overlap > T::zero() && **m == Match::None);
            free.fold(None, |best: Option<(T, usize)>, (b, (&overlap, _))| match best {
                Some((most, _)) if most >= overlap => best,
                _ => Some((overlap, b)),
            })
        };
        let mut left: Vec<(usize, Option<(T, usize)>)> = (0..truths.len()).map(|t| (t, best(t, &matches))).collect();
        loop {
            left.retain(|(_, best)| best.is_some());
            let first = left.iter().filter_map(|&(t, best)| best.map(|(overlap, b)| (overlap, b, t)));
            let first = first.reduce(|a, c| if c.0 > a.0 || (c.0 == a.0 && c.1 < a.1) { c } else { a });
            let Some((overlap, b, t)) = first else { break };
            (matches[b], most[b]) = (Match::With(t), overlap);
            left.retain(|&(other, _)| other != t);
            for (t, found) in &mut left {
                if found.is_some_and(|(_, taken)| taken == b) {
                    *found = best(*t, &matches);
                }
            }
        }
        let Some(threshold) = self.threshold else { return (matches, most) };
        for b in 0..boxes.len() {
            if matches[b] != Match::None {
                continue;
            }
            let enough = most[b] > T::zero() && most[b] >= T::of(threshold.into());
            matches[b] = match (0..truths.len()).find(|t| overlaps[t * boxes.len() + b] == most[b]) {
                Some(t) if enough => Match::With(t),
                _ => Match::None,
            };
        }
        (matches, most)
    }
}

/// Which boxes are learned from (`mining_type`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Mining {
    /// All.
    All,
    /// Those that are matched, and of the others that overlap less than `overlap` those of the largest losses, up to `ratio`
    /// times as many.
    Negatives {
        /// `neg_pos_ratio`.
        ratio: f32,
        /// `neg_overlap`.
        overlap: f32,
    },
    /// The so many of the largest losses, matched or not.
    Hardest(usize),
}

/// The suppression among boxes to choose from: of two that overlap by more than the threshold only the one of the larger loss is
/// chosen, and only the so many of the largest losses are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Apart {
    /// `nms_threshold`.
    pub threshold: f32,
    /// `top_k`.
    pub top: usize,
}

impl Mining {
    /// Whether each box is learned from. A match that is not chosen is undone. `boxes` gives those that suppression compares.
    pub fn choose<T: Float>(
        self,
        matches: &mut [Match],
        overlaps: &[T],
        losses: &[T],
        apart: Option<Apart>,
        boxes: impl Fn(usize) -> Corners<T>,
    ) -> Vec<bool> {
        let matched = matches.iter().filter(|m| m.truth().is_some()).count();
        let (most, may_be): (usize, Box<dyn Fn(usize) -> bool>) = match self {
            Mining::All => return vec![true; matches.len()],
            Mining::Negatives { ratio, overlap } => {
                let (matches, overlap) = (&*matches, T::of(overlap.into()));
                let negative = move |i: usize| matches[i] == Match::None && overlaps[i] < overlap;
                ((matched as f32 * ratio) as usize, Box::new(negative))
            }
            Mining::Hardest(most) => (most, Box::new(|_| true)),
        };
        let mut order: Vec<usize> = (0..matches.len()).filter(|&i| may_be(i)).collect();
        drop(may_be);
        order.sort_by(|&a, &b| descending(losses[a], losses[b]));
        if let Some(apart) = apart {
            order.truncate(apart.top);
            order.retain(|&i| area(boxes(i)) >= T::of(LEAST_AREA));
            let corners: Vec<Corners<T>> = order.iter().map(|&i| boxes(i)).collect();
            let kept = suppress(&corners, iou, apart.threshold, 1.0, most);
            order = kept.into_iter().map(|k| order[k]).collect();
        }
        order.truncate(most);
        let mut chosen = vec![false; matches.len()];
        order.into_iter().for_each(|i| chosen[i] = true);
        for (chosen, m) in chosen.iter_mut().zip(matches) {
            match (*m, self) {
                (Match::With(_), Mining::Hardest(_)) if !*chosen => *m = Match::None,
                (Match::With(_), _) => *chosen = true,
                (Match::Ignored, _) => *chosen = false,
                (Match::None, _) => {}
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A box of a tenth of the image's height, from `x1` to `x2` tenths of its width.
    fn across(x1: f64, x2: f64) -> Corners<f64> {
        [0.1 * x1, 0.0, 0.1 * x2, 0.1]
    }

    #[test]
    fn every_ground_truth_has_its_own_box() {
        let boxes = [across(0.0, 4.0), across(0.5, 4.5), across(6.0, 9.0), across(-1.0, 1.0), across(9.5, 10.0)];
        let truths = [across(0.0, 4.4), across(0.4, 4.2), across(7.0, 8.0)];
        let both = |threshold, inside| Matching { threshold, inside }.of(&boxes, &truths);
        // The first box is the nearest of both of the first two; the first of these is nearer.
        let (matches, overlaps) = both(None, false);
        let with = Match::With;
        assert_eq!(matches, [with(0), with(1), with(2), Match::None, Match::None]);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(overlaps[0], 4.0 / 4.4) && near(overlaps[1], 3.7 / 4.1) && near(overlaps[2], 1.0 / 3.0));
        assert!(near(overlaps[3], 1.0 / 5.4) && overlaps[4] == 0.0);
        assert_eq!(both(Some(0.15), false).0, [with(0), with(1), with(2), with(0), Match::None]);
        assert_eq!(both(Some(0.15), true).0, [with(0), with(1), with(2), Match::Ignored, Match::None]);
        assert_eq!(Matching { threshold: Some(0.5), inside: false }.of(&boxes, &[]).0, [Match::None; 5]);
    }

    #[test]
    fn a_ground_truth_whose_best_box_is_taken_has_the_next() {
        let boxes = [across(0.0, 4.0), across(0.0, 2.0)];
        let truths = [across(0.0, 4.0), across(0.0, 3.0)];
        let (matches, _) = Matching { threshold: None, inside: false }.of(&boxes, &truths);
        assert_eq!(matches, [Match::With(0), Match::With(1)]);
    }

    #[test]
    fn the_hardest_are_chosen() {
        let boxes = [across(0.0, 2.0), across(0.2, 2.2), across(4.0, 6.0), across(6.0, 8.0), across(8.0, 9.0)];
        let matches = [Match::None, Match::None, Match::With(0), Match::None, Match::Ignored];
        let overlaps = [0.0, 0.1, 0.8, 0.45, 0.0];
        let losses = [3.0, 4.0, 1.0, f64::NAN, 9.0];
        let choose = |mining: Mining, apart| {
            let mut matches = matches;
            let chosen = mining.choose(&mut matches, &overlaps, &losses, apart, |i| boxes[i]);
            ((0..5).filter(|&i| chosen[i]).collect::<Vec<_>>(), matches[2])
        };
        let with = Match::With(0);
        assert_eq!(choose(Mining::All, None), (vec![0, 1, 2, 3, 4], with));
        let negatives = |ratio, overlap| Mining::Negatives { ratio, overlap };
        assert_eq!(choose(negatives(1.9, 0.5), None), (vec![1, 2], with));
        assert_eq!(choose(negatives(9.0, 0.5), None), (vec![0, 1, 2, 3], with));
        assert_eq!(choose(negatives(9.0, 0.4), None), (vec![0, 1, 2], with));
        let apart = |top| Some(Apart { threshold: 0.3, top });
        assert_eq!(choose(negatives(9.0, 0.4), apart(usize::MAX)), (vec![1, 2], with));
        assert_eq!(choose(negatives(9.0, 0.5), apart(2)), (vec![1, 2], with));
        assert_eq!(choose(Mining::Hardest(3), None), (vec![0, 1], Match::None));
        assert_eq!(choose(Mining::Hardest(4), None), (vec![0, 1, 2], with));
    }
}
