//! ClassDistance: how near features are to each class's center, as logits, with a margin on the label's.
//!
//! With features x [M, K], centers w [N, K], variances s (\[N\] when isotropic, else [N, K]) and s⁺ = max(s, 0):
//!
//! | metric | logit of item i for class j |
//! | --- | --- |
//! | `L2`, isotropic | −½ · Σₖ (wⱼₖ − xᵢₖ)² / (s⁺ⱼ + 10⁻⁴) |
//! | `L2`, diagonal | −½ · Σₖ (wⱼₖ − xᵢₖ)² / max(sⱼₖ, 10⁻⁸) |
//! | `IP` | Σₖ wⱼₖ · xᵢₖ |
//! | `L1` | −Σₖ ∣wⱼₖ − xᵢₖ∣ |
//!
//! In training, the logit z of an item's own class y becomes z · (1 + `margin_mul`) − `margin_add`; both margins may grow
//! (see `margin_schedule`). With L2, unit variances and `center_coef` this is the large-margin Gaussian Mixture
//! loss of Wan et al., "Rethinking Feature Distribution for Loss Functions in Image Classification" (CVPR 2018), less the
//! loss itself, a SoftmaxWithLoss after it; [`LgmLoss`](super::LgmLoss) is the whole loss, log-determinants included.
//!
//! Shapes: bottom features [M, …] (K elements an item), optionally labels (M elements); top logits [M, N]. Parameters:
//! centers [N, K] (`weight_filler`), then variances (`bias_filler`; zero when absent, as every Caffe filler). IP and L1
//! have variances too, which they never use.
//!
//! Gradient: that of the logits as above, and, given labels, of `center_coef` · 1/(2M) · Σᵢ |xᵢ − w_y|², with L1 of
//! `center_coef` · 1/M · Σᵢ Σₖ ∣xᵢₖ − w_yₖ∣, a term that no top shows. `block_mul_grad` leaves the factor 1 + `margin_mul` out of the gradient. Variances have a gradient only
//! with metric L2 and `update_sigma`, and none where the max clips. `ignore_zero`, in training, leaves out features that
//! are zero: of the distances, of their gradients and of the center term; it means nothing to IP.
//!
//! Source: the L-GM fork's layer of this name. Where we differ, ours is the gradient of the forward pass and theirs is
//! not: the L1 gradient of the centers (theirs reads other elements), the L2 gradient without labels (theirs leaves out
//! the variances), the gradient of variances under `iter_size` (theirs keeps only the last sub-batch's) and the epsilons
//! of gradients (theirs mixes 10⁻⁸, 10⁻⁴ and none). Theirs applies `ignore_zero` to gradients in both phases, forgets it
//! in L1's forward pass, and reads the wrong variances with it in the diagonal one. The fork's schema lost `margin_add`,
//! which its code has. `bias_term` and `dropout_ratio` do nothing, there as here.

mod device;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Phase, Plan, Result, State,
};
use lgm_cpu::{Gemm, MatMut, MatRef};
use lgm_proto::class_distance_parameter::Metric;
use lgm_proto::{ClassDistanceParameter, LayerParameter, six_digits};

use super::pairs::Pairs;
use super::{Extents, mixture_shapes, warn_unused};
use crate::common::labels::{check_count, class_at};
use crate::common::margin_schedule::Margins;

/// Added to an isotropic variance of ClassDistance.
pub const ISOTROPIC_EPSILON: f64 = 1e-4;
/// The least diagonal variance of ClassDistance.
pub const DIAGONAL_FLOOR: f64 = 1e-8;
/// Variances up to here are warned of.
const DANGEROUS: f64 = 1e-4;

/// The layer; see the module.
pub struct ClassDistance {
    param: ClassDistanceParameter,
    margins: Margins,
    train: bool,
    labelled: bool,
    extents: Extents,
    warned: AtomicBool,
}

impl ClassDistance {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.class_distance_param.clone().unwrap_or_default();
        let margins = Margins::new(param.margin_mul.as_ref(), param.margin_add.as_ref())?;
        let layer = ClassDistance {
            train: cx.phase == Phase::Train,
            margins,
            labelled: false,
            extents: Extents::default(),
            warned: AtomicBool::new(false),
            param,
        };
        let param = &layer.param;
        warn_unused(param.bias_term(), param.dropout_ratio());
        tracing::info!(
            "metric: {}, alpha: {}, likelihood_coef = {}",
            param.metric().as_str_name(),
            layer.margins.describe_mul(),
            six_digits(param.center_coef())
        );
        Node::compute(layer)
    }

    fn pairs<'a, T>(&self, x: &'a [T], w: &'a [T]) -> Pairs<'a, T> {
        let skip_zero = self.train && self.param.ignore_zero();
        Pairs { x, w, classes: self.extents.classes, width: self.extents.width, skip_zero }
    }

    /// Σ⁻¹ as the metric computes it, and whether the variance is free to move it.
    fn inverse<T: Float>(&self, s: T) -> (T, bool) {
        if self.param.isotropic() {
            (T::one() / (s.max(T::zero()) + T::of(ISOTROPIC_EPSILON)), s > T::zero())
        } else {
            (T::one() / s.max(T::of(DIAGONAL_FLOOR)), s > T::of(DIAGONAL_FLOOR))
        }
    }

    fn warn_of_small<T: Float>(&self, sigma: &[T]) {
        if self.warned.load(Ordering::Relaxed) {
            return;
        }
        if let Some(i) = sigma.iter().position(|s| s.f64() <= DANGEROUS) {
            self.warned.store(true, Ordering::Relaxed);
            tracing::warn!("Dangerous sigma value, sigma[{i}]={}", six_digits(sigma[i].f64() as f32));
        }
    }
}

impl Layer for ClassDistance {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let features = &bottoms[0];
        let (classes, width, [centers, sigma]) =
            mixture_shapes(self.param.num_output(), self.param.isotropic(), features)?;
        let items = features.shape[0];
        self.extents = Extents { items, classes, width };
        self.labelled = bottoms.len() == 2;
        if let Some(labels) = bottoms.get(1) {
            check_count(labels, items, features)?;
        }
        self.margins.activate(self.train && self.labelled);
        let logits = features.with_shape([items, classes]);
        Ok(Plan {
            params: vec![
                ParamSpec::new(centers, self.param.weight_filler.as_ref()),
                ParamSpec::new(sigma.clone(), self.param.bias_filler.as_ref()),
            ],
            scratch: vec![logits.clone(), features.with_shape(sigma.clone()), features.with_shape(sigma)],
            backward_bottoms: if self.labelled { vec![0, 1] } else { vec![0] },
            no_gradient: if self.labelled { vec![1] } else { vec![] },
            flops: 3 * (items * classes * width) as u64,
            ..Plan::new(vec![logits])
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

impl HostLayer for ClassDistance {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let Extents { items, classes, width } = self.extents;
        let (x, w, sigma, top) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.param::<T>(1)?, io.top::<T>(0)?);
        let pairs = self.pairs(x, w);
        match self.param.metric() {
            Metric::L2 => {
                let inverse = io.scratch::<T>(1)?;
                inverse.iter_mut().zip(sigma).for_each(|(v, &s)| *v = self.inverse(s).0);
                self.warn_of_small(sigma);
                let minus_half = T::of(-0.5);
                if self.param.isotropic() {
                    pairs.squares(top);
                    top.chunks_mut(classes)
                        .for_each(|row| row.iter_mut().zip(&*inverse).for_each(|(z, &v)| *z *= minus_half * v));
                } else {
                    pairs.weighted_squares(inverse, top);
                    top.iter_mut().for_each(|z| *z *= minus_half);
                }
            }
            Metric::Ip => {
                let (x, w) = (MatRef::new(x, items, width), MatRef::new(w, classes, width));
                Gemm { alpha: T::one(), a: x, b: w.t(), beta: T::zero(), c: MatMut::new(top, items, classes) }.run();
            }
            Metric::L1 => {
                pairs.absolutes(top);
                top.iter_mut().for_each(|z| *z = -*z);
            }
        }
        if self.labelled && self.train {
            let labels = io.bottom::<T>(1)?;
            let (mul, add) = self.margins.values();
            let (factor, add) = (T::one() + T::of(mul), T::of(add));
            for (i, row) in top.chunks_mut(classes).enumerate() {
                let z = &mut row[class_at(labels, i, classes)?];
                *z = *z * factor - add;
            }
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let Extents { items, classes, width } = self.extents;
        let (x, w, sigma) = (io.bottom::<T>(0)?, io.param::<T>(0)?, io.param::<T>(1)?);
        let (mut dx, mut dw, ds) = (io.bottom_diff::<T>(0)?, io.param_diff::<T>(0)?, io.param_diff::<T>(1)?);
        let labels = if self.labelled { Some(io.bottom::<T>(1)?) } else { None };
        let pairs = self.pairs(x, w);

        let pull = T::of(f64::from(self.param.center_coef()) / items as f64);
        // What reaches the logits before the margin; with L1 the center term acts as another part of it.
        let c = io.scratch::<T>(0)?;
        c.copy_from_slice(io.top_diff::<T>(0)?);
        if let Some(labels) = labels {
            let mul = if self.param.block_mul_grad() { 0.0 } else { self.margins.values().0 };
            for (i, row) in c.chunks_mut(classes).enumerate() {
                let own = &mut row[class_at(labels, i, classes)?];
                *own *= T::one() + T::of(mul);
                if self.param.metric() == Metric::L1 {
                    *own -= pull;
                }
            }
        }

        match self.param.metric() {
            Metric::L2 if self.param.isotropic() => {
                if let Some(ds) = ds.filter(|_| self.param.update_sigma()) {
                    let squares = io.scratch::<T>(1)?;
                    pairs.squares_by_class(c, squares);
                    for ((d, &sq), &s) in ds.iter_mut().zip(&*squares).zip(sigma) {
                        *d += curvature(self.inverse(s)) * sq;
                    }
                }
                for row in c.chunks_mut(classes) {
                    row.iter_mut().zip(sigma).for_each(|(c, &s)| *c *= self.inverse(s).0);
                }
                each(dx.as_deref_mut(), |dx| pairs.sum_over_classes(c, None, |e| e, dx));
                each(dw.as_deref_mut(), |dw| pairs.sum_over_items(c, None, |e| -e, dw));
            }
            Metric::L2 => {
                if let Some(ds) = ds.filter(|_| self.param.update_sigma()) {
                    let v = io.scratch::<T>(2)?;
                    v.iter_mut().zip(sigma).for_each(|(v, &s)| *v = curvature(self.inverse(s)));
                    pairs.sum_over_items(c, Some(v), |e| e * e, ds);
                }
                let v = io.scratch::<T>(1)?;
                v.iter_mut().zip(sigma).for_each(|(v, &s)| *v = self.inverse(s).0);
                each(dx.as_deref_mut(), |dx| pairs.sum_over_classes(c, Some(v), |e| e, dx));
                each(dw.as_deref_mut(), |dw| pairs.sum_over_items(c, Some(v), |e| -e, dw));
            }
            Metric::Ip => {
                let (alpha, a) = (T::one(), MatRef::new(c, items, classes));
                let (x, w) = (MatRef::new(x, items, width), MatRef::new(w, classes, width));
                each(dx.as_deref_mut(), |dx| {
                    Gemm { alpha, a, b: w, beta: T::zero(), c: MatMut::new(dx, items, width) }.run();
                });
                each(dw.as_deref_mut(), |dw| {
                    Gemm { alpha, a: a.t(), b: x, beta: T::one(), c: MatMut::new(dw, classes, width) }.run();
                });
            }
            Metric::L1 => {
                each(dx.as_deref_mut(), |dx| pairs.sum_over_classes(c, None, sign, dx));
                each(dw.as_deref_mut(), |dw| pairs.sum_over_items(c, None, |e| -sign(e), dw));
            }
        }

        if let Some(labels) = labels.filter(|_| pull != T::zero() && self.param.metric() != Metric::L1) {
            let pairs = Pairs { skip_zero: pairs.skip_zero && self.param.metric() != Metric::Ip, ..pairs };
            let class_of = |i| class_at(labels, i, classes);
            (0..items).try_for_each(|i| class_of(i).map(drop))?;
            pairs.pull(pull, |i| class_of(i).unwrap_or(0), dx, dw);
        }
        Ok(())
    }
}

/// ½ · v², the derivative of −½ · v by the variance; zero where the variance is clipped.
fn curvature<T: Float>((inverse, free): (T, bool)) -> T {
    if free { T::of(0.5) * inverse * inverse } else { T::zero() }
}

fn sign<T: Float>(e: T) -> T {
    if e > T::zero() {
        T::one()
    } else if e < T::zero() {
        -T::one()
    } else {
        T::zero()
    }
}

fn each<T>(slice: Option<&mut [T]>, f: impl FnOnce(&mut [T])) {
    if let Some(slice) = slice {
        f(slice);
    }
}
