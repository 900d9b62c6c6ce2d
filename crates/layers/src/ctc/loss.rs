//! CtcLoss and CTCLoss: −1/N · Σ ln p(labels), where p(labels) is the sum over all paths that read as the labels of the products of
//! their classes' probabilities, softmaxes of the scores.
//!
//! With l′ the labels with a blank before, between and after them, and α(t, u) the probability to be at l′(u) at step t having read
//! all before it: α(t, u) = p(t, l′(u)) · (α(t−1, u) + α(t−1, u−1) + α(t−1, u−2)), the last unless l′(u) is blank or equal to
//! l′(u−2). β(t, u) is the probability of what is left to read then. Both are kept as logarithms, at each step less
//! the largest.
//!
//! Gradient: dx(t, k) = dL/N · (p(t, k) − Σ α(t, u) β(t, u) / p(labels) over u with l′(u) = k), computed in forward; 0 at steps
//! that an item does not have.
//!
//! Bottoms: scores [T, N, C]; for CTCLoss indicators; labels (see [`super`]). Top: the loss. CtcLoss has `alphabet_size` (C) and
//! `time_step` (of T). CTCLoss has `output_delay` (0), steps at the beginning that nothing is read at;
//! `preprocess_collapse_repeated` (false), which takes one of neighbouring equal labels; and `ctc_merge_repeated` (true), without
//! which every step that is not blank is a label of its own. A sequence of CTCLoss that has one step and no labels is none.
//!
//! Source: see [`super`]. Where we differ: labels that take more steps than there are are an error that names the sequence; jolibrain's
//! layer counts them as 0 and leaves their gradient undefined. Those of OpenCV's toolbox are an error if they are more than the
//! steps, and an infinite loss if they fit but for the blanks between equal ones.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::for_each_row_of;
use lgm_cpu::math::{exp, ln};
use lgm_proto::{CtcLossParameter, LayerParameter};

use super::Extents;
use crate::common::loops::for_rows;

#[cfg(test)]
mod tests;

/// The layer, CtcLoss; see the module.
pub struct CtcLoss {
    pub(super) param: CtcLossParameter,
    pub(super) of: Extents,
}

/// CTCLoss; see the module.
pub struct CtcLossOfSteps;

impl CtcLossOfSteps {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.ctc_loss_param.as_deref().copied().unwrap_or_default();
        let delay = param.output_delay();
        ensure!(delay >= 0, "output_delay, a number of steps, must not be negative, found {delay}");
        Node::compute(CtcLoss { param, of: Extents { by_step: true, ..Extents::default() } })
    }
}

/// Scratch memory, by number.
mod scratch {
    /// Of each item, its steps, the number of its labels, and those.
    pub const TARGETS: usize = 0;
    /// Of each item, ln α at every step, ln β p at two, and the logarithm of the softmax's denominator at every step.
    pub const LATTICE: usize = 1;
    /// What each item adds to the loss.
    pub const COSTS: usize = 2;
}

/// Numbers of an item before its labels.
const HEAD: usize = 2;

impl CtcLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.ctc_loss_param.as_deref().copied().unwrap_or_default();
        ensure!(param.alphabet_size() > 0, "alphabet_size, the number of classes with the blank, must be given");
        ensure!(param.time_step() > 0, "time_step, the number of steps of a sequence, must be given");
        Node::compute(CtcLoss { param, of: Extents::default() })
    }

    /// Places of labels with blanks around them, at most.
    pub(super) fn places(&self) -> usize {
        2 * self.of.labels + 1
    }

    fn lattice(&self) -> usize {
        (self.of.steps + 2) * self.places() + self.of.steps
    }

    pub(super) fn labels_bottom(&self) -> usize {
        1 + usize::from(self.of.by_step)
    }

    /// The steps that an item has unless its indicators say less.
    pub(super) fn steps(&self) -> usize {
        if self.of.by_step { self.of.steps } else { self.param.time_step() as usize }
    }

    pub(super) fn delay(&self) -> usize {
        self.param.output_delay() as usize
    }

    /// Writes the steps and labels of item `n`.
    fn read<T: Float>(&self, labels: &[T], indicators: Option<&[T]>, n: usize, target: &mut [T]) -> Result<()> {
        let (of, merged) = (self.of, self.param.ctc_merge_repeated());
        let (head, to) = target.split_at_mut(HEAD);
        let (mut count, mut needed) = (0, 0);
        for (k, label) in of.labels_of(labels, n) {
            if !(T::zero()..T::of(of.classes as f64)).contains(&label) {
                return Err(not_a_label(labels[of.label_at(n, k)], n, k, of.classes));
            }
            let again = k > 0 && labels[of.label_at(n, k - 1)].trunc() == label;
            if !(again && self.param.preprocess_collapse_repeated()) {
                needed += 1 + usize::from(merged && count > 0 && to[count - 1] == label);
                to[count] = label;
                count += 1;
            }
        }
        let mut steps = indicators.map_or(self.steps(), |indicators| of.length(indicators, n));
        if of.by_step && count == 0 && steps == 1 {
            steps = 0;
        }
        let steps = steps.saturating_sub(self.delay());
        if needed > steps {
            return Err(too_long(n, needed));
        }
        head.copy_from_slice(&[T::of(steps as f64), T::of(count as f64)]);
        Ok(())
    }
}

pub(super) fn not_a_label<T: Float>(label: T, n: usize, k: usize, classes: usize) -> Error {
    Error::config(format!(
        "label {label}, number {k} of sequence {n} of the batch, is not one of the {classes} classes, 0 to {}; check the labels \
         of the data and the number of outputs of the net",
        classes - 1
    ))
}

pub(super) fn too_long(n: usize, needed: usize) -> Error {
    Error::config(format!(
        "the labels of sequence {n} of the batch take {needed} steps at least, one each and a blank between equal ones, which \
         is more than it has; give it fewer labels or the scores more steps"
    ))
}

impl Layer for CtcLoss {
    fn arity(&self) -> Arity {
        let bottoms = 1 + self.labels_bottom();
        Arity::range(bottoms..=bottoms, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (scores, by_step) = (&bottoms[0], self.of.by_step);
        let blank = match by_step {
            true => ("blank_index", self.param.blank_index()),
            false => ("blank_label", self.param.blank_label()),
        };
        self.of = Extents::of(scores, [0, 1], blank, by_step)?.with_labels(bottoms, self.labels_bottom())?;
        let Extents { steps, items, classes, labels, .. } = self.of;
        if by_step {
            self.of.check_indicators(bottoms)?;
        } else {
            let (alphabet, time) = (self.param.alphabet_size(), self.param.time_step());
            ensure!(
                alphabet as usize == classes && time as usize <= steps,
                "alphabet_size {alphabet} and time_step {time} must be the {classes} classes and at most the {steps} steps of \
                 the scores of shape {}",
                scores.shape
            );
        }
        let work = (steps as u64).saturating_mul(40 * self.places() as u64 + 6 * classes as u64);
        Ok(Plan {
            no_gradient: (1..bottoms.len()).collect(),
            saved: vec![scores.with_shape([items, steps, classes])],
            scratch: vec![
                scores.with_shape([items, HEAD + labels]),
                scores.with_shape([items, self.lattice()]),
                scores.with_shape([items]),
            ],
            flops: work.saturating_mul(items as u64),
            ..Plan::loss(scores.dtype)
        })
    }
}

impl HostLayer for CtcLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(self.labels_bottom())?);
        let indicators = if self.of.by_step { Some(io.bottom::<T>(1)?) } else { None };
        let Extents { steps, items, classes, labels: most, .. } = self.of;
        let targets = io.scratch::<T>(scratch::TARGETS)?;
        for (n, target) in targets.chunks_exact_mut(HEAD + most).enumerate() {
            self.read(labels, indicators, n, target)?;
        }
        let targets = &*targets;
        let (lattice, costs) = (io.scratch::<T>(scratch::LATTICE)?, io.scratch::<T>(scratch::COSTS)?);
        let saved = io.saved::<T>(0)?;
        let width = if saved.is_some() { steps * classes } else { 0 };
        let parts = [(lattice, self.lattice()), (&mut *costs, 1), (saved.unwrap_or_default(), width)];
        for_each_row_of(parts, items, 1, |n, [lattice, cost, gradient]| {
            let (head, labels) = targets[n * (HEAD + most)..][..HEAD + most].split_at(HEAD);
            let (steps, count) = (head[0].f64() as usize, head[1].f64() as usize);
            let (merged, delay) = (self.param.ctc_merge_repeated(), self.delay());
            let item = Item { x, of: self.of, n, delay, steps, labels: &labels[..count], merged };
            cost[0] = item.cost(lattice, self.places(), gradient);
        });
        let loss: f64 = costs.iter().map(|cost| cost.f64()).sum();
        io.top::<T>(0)?[0] = T::of(loss / items as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (gradient, d_loss) = (io.saved::<T>(0)?, io.top_diff::<T>(0)?[0]);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let Extents { steps, items, classes, .. } = self.of;
        let scale = d_loss / T::of(items as f64);
        for_rows(dx, classes, classes, |row, dx| {
            let from = &gradient[(row % items * steps + row / items) * classes..][..classes];
            dx.iter_mut().zip(from).for_each(|(dx, &g)| *dx = scale * g);
        });
        Ok(())
    }
}

/// One sequence.
struct Item<'a, T> {
    x: &'a [T],
    of: Extents,
    n: usize,
    /// Steps of the scores before its first.
    delay: usize,
    steps: usize,
    labels: &'a [T],
    merged: bool,
}

impl<T: Float> Item<'_, T> {
    /// The scores at its step `t`.
    fn scores(&self, t: usize) -> &[T] {
        let Extents { items, classes, .. } = self.of;
        &self.x[((self.delay + t) * items + self.n) * classes..][..classes]
    }

    /// The class at place `u`.
    fn class(&self, u: usize) -> usize {
        if u.is_multiple_of(2) { self.of.blank } else { self.labels[u / 2].f64() as usize }
    }

    /// Whether a path may stay at place `u`.
    fn stays(&self, u: usize) -> bool {
        self.merged || u.is_multiple_of(2)
    }

    /// Whether a path may come to place `u` from that of the label before.
    fn skips(&self, u: usize) -> bool {
        u > 1 && !u.is_multiple_of(2) && !(self.merged && self.labels[u / 2] == self.labels[u / 2 - 1])
    }

    /// −ln p(labels); and d/dx of it at every step of the scores, where `gradient` has room for it.
    fn cost(&self, lattice: &mut [T], stride: usize, gradient: &mut [T]) -> T {
        let none = T::neg_infinity();
        let (places, steps, of) = (2 * self.labels.len() + 1, self.steps, self.of);
        let (alpha, rest) = lattice.split_at_mut(of.steps * stride);
        let (beta, sums) = rest.split_at_mut(2 * stride);
        gradient.fill(T::zero());
        if steps == 0 {
            return T::zero();
        }
        for (t, sum) in sums[..steps].iter_mut().enumerate() {
            *sum = log_sum(self.scores(t));
        }
        alpha[..places].fill(none);
        for (u, alpha) in alpha.iter_mut().enumerate().take(places.min(2)) {
            *alpha = self.scores(0)[self.class(u)] - sums[0];
        }
        let mut above = below_zero(&mut alpha[..places]).f64();
        for t in 1..steps {
            let (before, now) = alpha[(t - 1) * stride..].split_at_mut(stride);
            let (x, sum) = (self.scores(t), sums[t]);
            for (u, now) in now[..places].iter_mut().enumerate() {
                let stay = if self.stays(u) { before[u] } else { none };
                let next = if u > 0 { before[u - 1] } else { none };
                let skip = if self.skips(u) { before[u - 2] } else { none };
                *now = log_add([stay, next, skip]) + x[self.class(u)] - sum;
            }
            above += below_zero(&mut now[..places]).f64();
        }
        let last = &alpha[(steps - 1) * stride..][..places];
        let end = log_add([last[places - 1], if places > 1 { last[places - 2] } else { none }, none]);
        let cost = T::of(-(above + end.f64()));
        if gradient.is_empty() {
            return cost;
        }
        let (mut ahead, mut now) = beta.split_at_mut(stride);
        for t in (0..steps).rev() {
            let (x, sum, both) = (self.scores(t), sums[t], &mut alpha[t * stride..][..places]);
            let dx = &mut gradient[(self.delay + t) * of.classes..][..of.classes];
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = exp(x - sum));
            for (u, both) in both.iter_mut().enumerate() {
                let beta = if t + 1 == steps {
                    if u + 2 >= places { T::zero() } else { none }
                } else {
                    let stay = if self.stays(u) { ahead[u] } else { none };
                    let next = if u + 1 < places { ahead[u + 1] } else { none };
                    let skip = if u + 2 < places && self.skips(u + 2) { ahead[u + 2] } else { none };
                    log_add([stay, next, skip])
                };
                now[u] = beta + x[self.class(u)] - sum;
                *both += beta;
            }
            below_zero(&mut now[..places]);
            // Of a path that cannot be there is no share.
            if end != none {
                let all = log_sum(both);
                both.iter().enumerate().for_each(|(u, &both)| dx[self.class(u)] -= exp(both - all));
            }
            std::mem::swap(&mut ahead, &mut now);
        }
        cost
    }
}

/// Takes the largest of logarithms from all of them and gives it: so they stay near 0, where single precision is finest.
fn below_zero<T: Float>(row: &mut [T]) -> T {
    let most = largest(row);
    if most == T::neg_infinity() {
        return T::zero();
    }
    row.iter_mut().for_each(|v| *v -= most);
    most
}

fn largest<T: Float>(x: &[T]) -> T {
    x.iter().fold(T::neg_infinity(), |most, &x| if x > most { x } else { most })
}

/// ln Σ eˣ.
fn log_sum<T: Float>(x: &[T]) -> T {
    let most = largest(x);
    most + ln(x.iter().map(|&x| exp(x - most)).sum())
}

/// ln (eᵃ + eᵇ + eᶜ), of which −∞ stands for nothing.
fn log_add<T: Float>(terms: [T; 3]) -> T {
    let most = terms.iter().fold(T::neg_infinity(), |most, &x| if x > most || x.is_nan() { x } else { most });
    if most == T::neg_infinity() { most } else { most + ln(terms.iter().map(|&x| exp(x - most)).sum()) }
}
