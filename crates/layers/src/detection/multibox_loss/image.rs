//! One image: its boxes matched, those learned from chosen, its part of the loss.

use lgm_core::Float;

use super::super::boxes::Corners;
use super::matching::{Match, Mining};
use super::{Batch, MultiBoxLoss, four};

/// What an image's boxes are matched with, class by class of predictions, and which are learned from.
pub(super) struct Image<T> {
    pub matches: Vec<Vec<Match>>,
    pub overlaps: Vec<Vec<T>>,
    pub chosen: Vec<bool>,
}

impl MultiBoxLoss {
    /// Matches an image's boxes.
    pub(super) fn matched<T: Float>(&self, batch: &Batch<'_, T>, image: usize) -> Image<T> {
        let truths = &batch.truths[batch.starts[image]..batch.starts[image + 1]];
        let none = || (vec![Match::None; self.priors], vec![T::zero(); self.priors]);
        let among = |of_class: Option<usize>, boxes: &[Corners<T>]| {
            let mine = |t: &usize| of_class.is_none_or(|class| truths[*t].class == class);
            let places: Vec<usize> = (0..truths.len()).filter(mine).collect();
            let corners: Vec<Corners<T>> = places.iter().map(|&t| truths[t].corners).collect();
            let (mut matches, overlaps) = self.matching.of(boxes, &corners);
            let place = |m: &mut Match| {
                if let Match::With(t) = m {
                    *t = places[*t]
                }
            };
            matches.iter_mut().for_each(place);
            (matches, overlaps)
        };
        let priors = || (0..self.priors).map(|i| four(batch.priors, i)).collect::<Vec<_>>();
        let decoded = |class: usize| {
            let boxes = (0..self.priors).map(|i| self.decoded(batch, i, self.at(image, i, class)));
            boxes.collect::<Vec<_>>()
        };
        let found: Vec<(Vec<Match>, Vec<T>)> = match (truths.is_empty(), self.by_prior, self.share_location) {
            (true, ..) => (0..self.locations()).map(|_| none()).collect(),
            (_, true, true) => vec![among(None, &priors())],
            (_, false, true) => vec![among(None, &decoded(0))],
            (_, true, false) => {
                let (matches, overlaps) = among(None, &priors());
                let of_class = |class: usize| {
                    let mine = |m: &Match| m.truth().is_none_or(|t| truths[t].class == class);
                    matches.iter().map(|m| if mine(m) { *m } else { Match::None }).collect()
                };
                (0..self.classes).map(|class| (of_class(class), overlaps.clone())).collect()
            }
            (_, false, false) => (0..self.classes)
                .map(|class| if class == self.background { none() } else { among(Some(class), &decoded(class)) })
                .collect(),
        };
        let (matches, overlaps) = found.into_iter().unzip();
        Image { matches, overlaps, chosen: vec![matches!(self.mining, Mining::All); self.priors] }
    }

    /// The classes that box `i` is to have.
    pub(super) fn targets<'a, T: Float>(
        &'a self,
        batch: &'a Batch<'_, T>,
        image: usize,
        matches: impl Iterator<Item = Option<usize>> + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let first = batch.starts[image];
        let of_objects = matches.flatten().map(move |t| self.target(batch.truths[first + t].class));
        // Of several objects a softmax has one class, the last.
        let (all, last) = if self.logistic { (Some(of_objects), None) } else { (None, of_objects.last()) };
        let mut all = all.into_iter().flatten().chain(last).peekable();
        let without = all.peek().is_none() && !(self.logistic && matches!(self.mining, Mining::All));
        let background = (without && self.background < self.classes).then_some(self.background);
        all.chain(background)
    }

    /// Chooses which boxes of an image are learned from, and returns its sums of loc and conf.
    pub(super) fn learned<T: Float>(
        &self,
        batch: &Batch<'_, T>,
        n: usize,
        image: &mut Image<T>,
        confs: &[T],
    ) -> [f64; 2] {
        let truths = &batch.truths[batch.starts[n]..batch.starts[n + 1]];
        let loc = |image: &Image<T>, i: usize| -> f64 {
            let matches = image.matches.iter().enumerate().filter_map(|(class, m)| Some((class, m[i].truth()?)));
            let each = matches.map(|(class, t)| self.differences(batch, i, self.at(n, i, class), &truths[t]));
            each.flatten().map(|d| self.loc(d).f64()).sum()
        };
        let mines = !matches!(self.mining, Mining::All);
        if mines && !truths.is_empty() {
            let with_loc = matches!(self.mining, Mining::Hardest(_));
            let loss = |i: usize| if with_loc { confs[i] + T::of(loc(image, i)) } else { confs[i] };
            let losses: Vec<T> = (0..self.priors).map(loss).collect();
            let boxes = |i: usize| {
                if self.apart_by_prior { four(batch.priors, i) } else { self.decoded(batch, i, self.at(n, i, 0)) }
            };
            image.chosen = self.mining.choose(&mut image.matches[0], &image.overlaps[0], &losses, self.apart, boxes);
        }
        let image = &*image;
        let locs = (0..self.priors).map(|i| loc(image, i)).sum();
        let confs = confs.iter().zip(&image.chosen).filter(|(_, chosen)| **chosen).map(|(conf, _)| conf.f64());
        [locs, confs.sum()]
    }
}
