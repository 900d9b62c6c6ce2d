//! Connectionist temporal classification (CTC): sequences of labels from scores whose alignment in time is not known.
//!
//! Scores are [T, N, C]: of N sequences, at each of T steps, a score of each of C classes, one of which is the blank. A path takes a
//! class at each step; it reads as the sequence that is left when equal neighbours have become one and then the blanks are gone.
//! The loss is that of all paths that read as the labels; the decoder takes the best class at each step.
//!
//! Two families of layers are in use, which differ in what they are given:
//!
//! | | CtcLoss, LabelsequenceAccuracy | CTCLoss, CTCGreedyDecoder |
//! | --- | --- | --- |
//! | labels | [N, L], padded with blanks | [L, N], ended by a number below 0; blanks are left out |
//! | steps | `time_step` of every sequence | up to the first step after step 0 whose indicator, [T, N], is 0 |
//! | blank | `blank_label` (0) | `blank_index`, the last class where it is below 0 (−1) |
//!
//! Source: Graves, Fernández, Gomez and Schmidhuber, "Connectionist Temporal Classification" (ICML 2006); the layers of these names of
//! jolibrain's Caffe (over warp-ctc) and of OpenCV's training toolbox.

use lgm_core::{BlobSpec, Float, Result, ensure};

mod decoder;
mod device;
mod loss;

pub use decoder::{CtcGreedyDecoder, LabelSequenceAccuracy};
pub use loss::{CtcLoss, CtcLossOfSteps};

/// The extents of scores, and how labels lie beside them.
#[derive(Clone, Copy, Debug, Default)]
struct Extents {
    steps: usize,
    items: usize,
    classes: usize,
    blank: usize,
    /// The most labels that an item has.
    labels: usize,
    /// Labels and indicators are step by step; see the module.
    by_step: bool,
}

impl Extents {
    /// Of scores [steps, items, classes], the blank being the class `blank`, the last where that is below 0.
    fn of(scores: &BlobSpec, axes: [usize; 2], (field, blank): (&str, i32), by_step: bool) -> Result<Extents> {
        let shape = &scores.shape;
        let order = if axes == [0, 1] { "(steps, sequences, classes)" } else { "(sequences, steps, classes)" };
        ensure!(shape.len() >= 3, "the scores must have 3 axes {order}, found shape {shape}");
        let (steps, items, classes) = (shape[axes[0]], shape[axes[1]], shape.count_from(2));
        ensure!(shape.count() > 0, "the scores of shape {shape} are empty");
        let named = if blank < 0 { classes - 1 } else { blank as usize };
        ensure!(
            named < classes && (blank >= 0 || by_step),
            "{field} {blank} is none of the {classes} classes of the scores of shape {shape}, 0 to {}",
            classes - 1
        );
        Ok(Extents { steps, items, classes, blank: named, labels: 0, by_step })
    }

    /// With labels of bottom `i`.
    fn with_labels(self, bottoms: &[BlobSpec], i: usize) -> Result<Extents> {
        let (shape, items) = (&bottoms[i].shape, self.items);
        let (axis, want) = if self.by_step { (1, "(labels, sequences)") } else { (0, "(sequences, labels)") };
        let found = shape.get(axis).copied().unwrap_or_default();
        ensure!(
            found == items && (!self.by_step || shape.count_from(1) == items),
            "the labels, bottom {i}, must have shape {want} for the {items} sequences of the scores, found {shape}"
        );
        Ok(Extents { labels: shape.count() / items, ..self })
    }

    /// Checks that bottom 1 has an indicator for each step of each sequence.
    fn check_indicators(&self, bottoms: &[BlobSpec]) -> Result<()> {
        let (shape, Extents { steps, items, .. }) = (&bottoms[1].shape, *self);
        ensure!(
            shape.first() == Some(&steps) && shape.count() == steps * items,
            "the sequence indicators, bottom 1, must have shape ({steps}, {items}), one for each step of each sequence of the \
             scores, found {shape}"
        );
        Ok(())
    }

    /// Where label `k` of item `n` lies.
    fn label_at(&self, n: usize, k: usize) -> usize {
        if self.by_step { k * self.items + n } else { n * self.labels + k }
    }

    /// How many steps item `n` has.
    fn length<T: Float>(&self, indicators: &[T], n: usize) -> usize {
        let begins = |t: &usize| indicators[t * self.items + n].round() == T::zero();
        (1..self.steps).find(begins).unwrap_or(self.steps)
    }

    /// The labels of item `n` with their places, without blanks, up to the end.
    fn labels_of<'a, T: Float>(&self, labels: &'a [T], n: usize) -> impl Iterator<Item = (usize, T)> + use<'a, T> {
        let of = *self;
        let given = (0..of.labels).map(move |k| (k, labels[of.label_at(n, k)].trunc()));
        let ended = move |&(_, label): &(usize, T)| !(of.by_step && label < T::zero());
        given.take_while(ended).filter(move |&(_, label)| label != T::of(of.blank as f64))
    }
}
