//! LGMLoss: the large-margin Gaussian Mixture loss in one layer.
//!
//! Features are modelled as a mixture of one Gaussian a class, of center μ and variance Σ = σ²·I (isotropic) or diagonal.
//! With features x [M, K], N classes and the label z of each item,
//!
//! - dₖ = ½ (x − μₖ)ᵀ Σₖ⁻¹ (x − μₖ), and hₖ = ½ ln |Σₖ|;
//! - logits without margin lₖ = −dₖ − hₖ; with margin, in training, l′ₖ = −dₖ · (1 + α·\[k = z\]) − hₖ − β·\[k = z\];
//! - loss = mean cross-entropy of softmax(l′) against z + λ · likelihood, where likelihood = mean (d_z + h_z), the negative
//!   log-likelihood of the features under their own class, less a constant. With `likelihood: ALL_CLASSES`, as in later code
//!   of the paper's authors, it is the mean of dₖ + hₖ over all classes, which draws the classes together.
//!
//! α is `margin_mul` and β `margin_add`, which may grow (see `margin_schedule`), λ is `center_coef`, in training multiplied by
//! `center_coef_ramp` where there is one: `center_coef: 0.1 center_coef_ramp { policy: ADDUP gamma: 0.2 step: 1000 }` grows λ
//! from 0 to 0.1 in five steps of 1000 iterations. In TEST the margins are zero and λ is `center_coef`: the loss measures what
//! the net predicts, which has no margin.
//!
//! Shapes: bottoms features [M, …] (K elements an item) and labels (M elements); tops loss (a scalar, weight 1),
//! optionally l [M, N], optionally likelihood (a scalar, weight 0 unless given one). Parameters: centers [N, K]
//! (`weight_filler`), then variances σ² \[N\] or, not `isotropic`, [N, K] (`bias_filler`; 1 when absent, where ClassDistance
//! starts at 0).
//!
//! Gradient: the true one, through all three tops, to features, centers and, with `update_sigma`, variances, with these
//! exceptions. `block_mul_grad` leaves the factor 1 + α out of the gradient of d. `ignore_zero`, in training, takes features
//! that are zero for unobserved: they leave d and h of their item. Variances are learned with a remedy:
//!
//! # Variances that stay positive
//!
//! With λ > 0 the loss has no least value: scaled down together, features, centers and variances keep their cross-entropy
//! while h goes to −∞. Variances therefore do collapse, at a speed of 1/v, until a step throws one below zero and NaN
//! follows. Here, with f = `sigma_floor` (0.01 when absent), the scale at which that ends:
//!
//! - the loss computes with max(v, f), so it is finite, and h bounded below, whatever the solver did to v;
//! - the gradient of a v below 10·f is multiplied by (max(v, f)/10f)². Its zero stays where it was, but near it v moves by a
//!   share of its distance from the spread of its cluster (a natural gradient's step), so it settles instead of jumping;
//! - at or below f, a gradient that would push v further down is left out, and −p/(1 + p/(f − v)), p = 100·f, is added (times
//!   the gradient of the loss): a spring back to f that pulls no harder than p. Momentum or decay may take v below f; it
//!   always comes back, even when its cluster has shrunk to a point.
//!
//! The gradient of features and centers goes as 1/v, so f bounds it too: a lower floor wants a lower learning rate. A floor of
//! a quarter of what variances begin with and an `lr_mult` of 0.1 have done no harm (examples/paper/README.md). Give learned
//! variances a `decay_mult` of 0; decay shrinks them for no reason. Without `update_sigma` they keep exactly the
//! values they begin with, whatever the layer's `param` says.
//!
//! Source: Wan, Zhong, Li and Chen, "Rethinking Feature Distribution for Loss Functions in Image Classification" (CVPR
//! 2018). Their code is a ClassDistance (see [`ClassDistance`](super::ClassDistance)) and a SoftmaxWithLoss; it leaves out h, adds 10⁻⁴ to
//! variances and shows no likelihood. `metric` must be L2; `bias_term` and `dropout_ratio` do nothing.

mod device;
mod remedy;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod training_tests;

use std::sync::atomic::{AtomicBool, Ordering};

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Phase, Plan, Result, Shape,
    State, ensure,
};
use lgm_proto::lgm_loss_parameter::{Likelihood, Metric};
use lgm_proto::{LayerParameter, LgmLossParameter, six_digits};

use super::pairs::Pairs;
use super::{Extents, mixture_shapes, warn_unused};
use crate::common::labels::{check_count, class_at};
use crate::common::margin_schedule::Margins;
use remedy::Remedy;

/// The least floor whose reciprocal's square still has digits in single precision.
const LEAST_FLOOR: f32 = 1e-12;

/// The layer; see the module.
pub struct LgmLoss {
    param: LgmLossParameter,
    margins: Margins,
    floor: f32,
    train: bool,
    extents: Extents,
    tops: usize,
    warned: AtomicBool,
}

/// Scratch memory, by number.
mod scratch {
    /// Σ⁻¹, shaped like the variances.
    pub const INVERSE: usize = 0;
    /// ½ ln Σ in forward, the gradient of Σ in backward, shaped like the variances.
    pub const SIGMA: usize = 1;
    /// d in forward, its gradient in backward, [M, N].
    pub const D: usize = 2;
    /// h in forward, its gradient in backward, [M, N].
    pub const H: usize = 3;
}

impl LgmLoss {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.lgm_loss_param.clone().unwrap_or_default();
        let metric = param.metric();
        ensure!(
            metric == Metric::L2,
            "the classes of LGMLoss are Gaussians, whose metric is L2; found metric {}",
            metric.as_str_name()
        );
        let floor = param.sigma_floor();
        ensure!(
            floor.is_finite() && floor >= LEAST_FLOOR,
            "sigma_floor must be a number of at least {LEAST_FLOOR:e}, found {floor:e}"
        );
        let margins = Margins::new(param.margin_mul.as_ref(), param.margin_add.as_ref())?
            .with_ramp(param.center_coef_ramp.as_ref())?;
        warn_unused(param.bias_term(), param.dropout_ratio());
        let likelihood = six_digits(param.center_coef());
        tracing::info!("metric: L2, alpha: {}, likelihood_coef = {likelihood}", margins.describe_mul());
        Node::compute(LgmLoss {
            train: cx.phase == Phase::Train,
            margins,
            floor,
            extents: Extents::default(),
            tops: 1,
            warned: AtomicBool::new(false),
            param,
        })
    }

    fn pairs<'a, T>(&self, x: &'a [T], w: &'a [T]) -> Pairs<'a, T> {
        let skip_zero = self.train && self.param.ignore_zero();
        Pairs { x, w, classes: self.extents.classes, width: self.extents.width, skip_zero }
    }

    fn over_all_classes(&self) -> bool {
        self.param.likelihood() == Likelihood::AllClasses
    }

    /// λ as it stands.
    fn lambda(&self) -> f64 {
        f64::from(self.param.center_coef()) * self.margins.ramp()
    }

    fn invert<T: Float>(&self, sigma: &[T], inverse: &mut [T]) {
        let floor = T::of(self.floor.into());
        inverse.iter_mut().zip(sigma).for_each(|(v, &s)| *v = T::one() / s.max(floor));
    }

    fn warn_of_small<T: Float>(&self, sigma: &[T]) {
        if self.warned.load(Ordering::Relaxed) {
            return;
        }
        let floor = f64::from(self.floor);
        if let Some(i) = sigma.iter().position(|s| s.f64() <= floor) {
            self.warned.store(true, Ordering::Relaxed);
            let (found, floor) = (six_digits(sigma[i].f64() as f32), six_digits(floor as f32));
            tracing::warn!("Dangerous sigma value, sigma[{i}]={found}; computing with sigma_floor, {floor}");
        }
    }

    /// d and h of every pair.
    fn distances<T: Float>(&self, pairs: Pairs<'_, T>, inverse: &[T], half_log: &[T], d: &mut [T], h: &mut [T]) {
        let half = T::of(0.5);
        if self.param.isotropic() {
            pairs.squares(d);
            for (i, (d, h)) in d.chunks_mut(self.extents.classes).zip(h.chunks_mut(self.extents.classes)).enumerate() {
                let observed = T::of(pairs.observed_count(i) as f64);
                for (((d, h), &v), &l) in d.iter_mut().zip(h).zip(inverse).zip(half_log) {
                    *d *= half * v;
                    *h = observed * l;
                }
            }
        } else {
            pairs.weighted_squares(inverse, d);
            d.iter_mut().for_each(|d| *d *= half);
            if pairs.skip_zero {
                pairs.observed(half_log, h);
            } else {
                let (first, rest) = h.split_at_mut(self.extents.classes.min(h.len()));
                let rows = half_log.chunks(self.extents.width);
                first.iter_mut().zip(rows).for_each(|(h, l)| *h = T::of(l.iter().map(|l| l.f64()).sum()));
                rest.chunks_mut(self.extents.classes).for_each(|h| h.copy_from_slice(first));
            }
        }
    }
}

impl Layer for LgmLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=3).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let features = &bottoms[0];
        let (classes, width, [centers, sigma]) =
            mixture_shapes(self.param.num_output(), self.param.isotropic(), features)?;
        let items = features.shape[0];
        check_count(&bottoms[1], items, features)?;
        (self.extents, self.tops) = (Extents { items, classes, width }, tops);
        self.margins.activate(self.train);
        let logits = features.with_shape([items, classes]);
        let scalar = features.with_shape(Shape::scalar());
        let variances = match &self.param.bias_filler {
            Some(filler) => ParamSpec::new(sigma.clone(), Some(filler)),
            None => ParamSpec::constant(sigma.clone(), 1.0),
        };
        Ok(Plan {
            tops: [scalar.clone(), logits.clone(), scalar].into_iter().take(tops).collect(),
            params: vec![
                ParamSpec::new(centers, self.param.weight_filler.as_ref()),
                ParamSpec { fixed: !self.param.update_sigma(), ..variances },
            ],
            saved: vec![logits.clone()],
            scratch: vec![features.with_shape(sigma.clone()), features.with_shape(sigma), logits.clone(), logits],
            backward_bottoms: vec![0, 1],
            flops: 4 * (items * classes * width) as u64,
            ..Plan::loss(features.dtype)
        })
    }

    fn begin_iteration(&mut self, iter: u64) -> Vec<String> {
        self.margins.begin_iteration(iter)
    }

    fn state(&self) -> State {
        self.margins.state()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.margins.restore(state)
    }
}

impl HostLayer for LgmLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let (w, sigma) = (io.param::<T>(0)?, io.param::<T>(1)?);
        self.warn_of_small(sigma);
        let inverse = io.scratch::<T>(scratch::INVERSE)?;
        self.invert(sigma, inverse);
        let half_log = io.scratch::<T>(scratch::SIGMA)?;
        let floor = T::of(self.floor.into());
        half_log.iter_mut().zip(sigma).for_each(|(l, &s)| *l = T::of(0.5) * s.max(floor).ln());
        let (d, h) = (io.scratch::<T>(scratch::D)?, io.scratch::<T>(scratch::H)?);
        self.distances(self.pairs(x, w), inverse, half_log, d, h);

        if self.tops > 1 {
            io.top::<T>(1)?.iter_mut().zip(&*d).zip(&*h).for_each(|((l, &d), &h)| *l = -d - h);
        }
        let (mul, add) = self.margins.values();
        let (factor, add) = (T::one() + T::of(mul), T::of(add));
        let (mut cross_entropy, mut likelihood) = (0.0, 0.0);
        let mut probabilities = io.saved::<T>(0)?;
        for (i, (d, h)) in d.chunks_mut(self.extents.classes).zip(h.chunks(self.extents.classes)).enumerate() {
            let label = class_at(labels, i, self.extents.classes)?;
            likelihood += if self.over_all_classes() {
                d.iter().zip(h).map(|(d, h)| d.f64() + h.f64()).sum::<f64>() / self.extents.classes as f64
            } else {
                d[label].f64() + h[label].f64()
            };
            d[label] = d[label] * factor + add;
            // From here on, d holds the logits with margin.
            d.iter_mut().zip(h).for_each(|(d, &h)| *d = -*d - h);
            let max = d.iter().fold(T::neg_infinity(), |m, &l| m.max(l));
            let sum: f64 = d.iter().map(|&l| (l - max).exp().f64()).sum();
            cross_entropy += sum.ln() - (d[label] - max).f64();
            if let Some(p) = &mut probabilities {
                let scale = T::of(1.0 / sum);
                let row = &mut p[i * self.extents.classes..(i + 1) * self.extents.classes];
                row.iter_mut().zip(&*d).for_each(|(p, &l)| *p = (l - max).exp() * scale);
            }
        }
        let items = self.extents.items.max(1) as f64;
        let (cross_entropy, likelihood) = (cross_entropy / items, likelihood / items);
        io.top::<T>(0)?[0] = T::of(cross_entropy + self.lambda() * likelihood);
        if self.tops > 2 {
            io.top::<T>(2)?[0] = T::of(likelihood);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let (w, sigma, p) = (io.param::<T>(0)?, io.param::<T>(1)?, io.saved::<T>(0)?);
        let pairs = self.pairs(x, w);
        let d_loss = io.top_diff::<T>(0)?[0];
        let d_likelihood = if self.tops > 2 { io.top_diff::<T>(2)?[0] } else { T::zero() };

        // The gradients of d and h.
        let items = T::of(self.extents.items.max(1) as f64);
        let per_item = d_loss / items;
        let of_likelihood = (T::of(self.lambda()) * d_loss + d_likelihood) / items;
        let (of_label, of_each) = if self.over_all_classes() {
            (T::zero(), of_likelihood / T::of(self.extents.classes as f64))
        } else {
            (of_likelihood, T::zero())
        };
        let mul = if self.param.block_mul_grad() { T::zero() } else { T::of(self.margins.values().0) };
        let (dd, dh) = (io.scratch::<T>(scratch::D)?, io.scratch::<T>(scratch::H)?);
        dh.iter_mut().zip(p).for_each(|(h, &p)| *h = of_each - per_item * p);
        if self.tops > 1 {
            dh.iter_mut().zip(io.top_diff::<T>(1)?).for_each(|(h, &l)| *h -= l);
        }
        dd.copy_from_slice(dh);
        for i in 0..self.extents.items {
            let label = class_at(labels, i, self.extents.classes)?;
            let at = i * self.extents.classes + label;
            let of_own = per_item * (T::one() - p[at]);
            dd[at] += per_item + of_label + mul * of_own;
            dh[at] += per_item + of_label;
        }

        let inverse = io.scratch::<T>(scratch::INVERSE)?;
        self.invert(sigma, inverse);
        let isotropic = self.param.isotropic();
        if let Some(ds) = io.param_diff::<T>(1)?.filter(|_| self.param.update_sigma()) {
            let gradient = io.scratch::<T>(scratch::SIGMA)?;
            if isotropic {
                pairs.variance_gradient(dd, dh, inverse, gradient);
            } else {
                pairs.diagonal_variance_gradient(dd, dh, inverse, gradient);
            }
            let remedy = Remedy::new(self.floor, d_loss);
            ds.iter_mut().zip(&*gradient).zip(sigma).for_each(|((ds, &g), &s)| *ds += remedy.apply(s, g));
        }
        if isotropic {
            for row in dd.chunks_mut(self.extents.classes) {
                row.iter_mut().zip(&*inverse).for_each(|(d, &v)| *d *= v);
            }
        }
        let weights = if isotropic { None } else { Some(&*inverse) };
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            pairs.sum_over_classes(dd, weights, |e| -e, dx);
        }
        if let Some(dw) = io.param_diff::<T>(0)? {
            pairs.sum_over_items(dd, weights, |e| e, dw);
        }
        Ok(())
    }
}
