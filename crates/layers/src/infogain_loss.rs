//! InfogainLoss: −1/Z · Σ Σⱼ H[y, j] · ln pⱼ over the positions that count, with p the softmax of the scores, y a
//! position's label, and H a matrix that weighs the classes j for each label: the identity gives SoftmaxWithLoss.
//!
//! H, of as many rows and columns as there are classes, is the third bottom, else `infogain_loss_param.source`, a blob in
//! Caffe's binary format. A position does not count when its label is `ignore_label`. `loss_param.normalization` chooses Z,
//! but at least 1: `FULL`, all positions; `VALID` (default), those that count; `BATCH_SIZE`, positions before the class axis;
//! `NONE`, 1; `PRE_FIXED`, `pre_fixed_normalizer` (of forks). As in Caffe, a probability below 10⁻²⁰ counts as that, and the older `normalize` is refused.
//!
//! Gradient: dxⱼ = dL/Z · (pⱼ · Σₖ H[y, k] − H[y, j]) where the position counts, else 0; plus, through the second top, that
//! of the softmax (Caffe passes none). None reaches the labels and H.
//!
//! Shapes: bottoms scores, with classes along `infogain_loss_param.axis` (1), labels, one for each other position, and
//! perhaps H; tops the loss, optionally the probabilities, shaped like the scores. Source: Caffe's layer of this name. Where
//! we differ: a label outside the classes is an error that names it.

use std::path::{Path, PathBuf};

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure,
};
use lgm_cpu::math::ln;
use lgm_cpu::softmax::{softmax, softmax_backward};
use lgm_proto::loss_parameter::NormalizationMode;
use lgm_proto::{BlobProto, LayerParameter, LossParameter, read_binary, strings};

use crate::common::labels::{Labels, check_count, check_items};
use crate::common::loops::{for_rows, total};
use crate::common::loss::{LEAST_PROBABILITY, fixed_normalizer};
use crate::common::softmax::probabilities;

mod device;
#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct InfogainLoss {
    loss: LossParameter,
    axis: i32,
    source: Option<PathBuf>,
    /// What `source` holds; empty where the third bottom does.
    matrix: Vec<f64>,
    along: Axes3,
    labels: Labels,
    with_probabilities: bool,
}

impl InfogainLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let loss = param.loss_param.clone().unwrap_or_default();
        ensure!(
            loss.normalize.is_none(),
            "normalize is not for InfogainLoss; give normalization: VALID for true, BATCH_SIZE for false"
        );
        let param = param.infogain_loss_param.clone().unwrap_or_default();
        Node::compute(InfogainLoss {
            loss,
            axis: param.axis(),
            source: param.source.as_deref().map(strings::to_path),
            matrix: Vec::new(),
            along: Axes3::default(),
            labels: Labels::default(),
            with_probabilities: false,
        })
    }

    /// Z, unless it is the number of positions that count.
    fn fixed_normalizer(&self) -> Option<f64> {
        let Axes3 { outer, inner, .. } = self.along;
        fixed_normalizer(&self.loss, NormalizationMode::Valid, outer * inner, outer)
    }

    /// Writes H, from the file where it is there.
    fn matrix<T: Float>(&self, bottom: Option<&[T]>, h: &mut [T]) {
        match bottom {
            Some(bottom) => h.copy_from_slice(bottom),
            None => h.iter_mut().zip(&self.matrix).for_each(|(h, &v)| *h = T::of(v)),
        }
    }

    /// Σ over a row of classes, or over the positions of one class, of H · ln p, with their signs turned.
    fn row<T: Float>(&self, row: usize, p: &[T], labels: &[T], h: &[T]) -> T {
        let Axes3 { channels, inner, .. } = self.along;
        let least = T::of(LEAST_PROBABILITY);
        // NaN stays NaN, so that it is seen.
        let term = |h: T, p: T| -h * ln(if p < least { least } else { p });
        if inner == 1 {
            let own = self.labels.known(labels, row);
            return own.map_or(T::zero(), |own| T::of(total(&h[own * channels..][..channels], p, term)));
        }
        let (first, class) = (row / channels * inner, row % channels);
        let own = |i: usize| self.labels.known(labels, first + i);
        p.iter().enumerate().filter_map(|(i, &p)| Some(term(h[own(i)? * channels + class], p))).sum()
    }
}

/// Reads H of `classes` classes.
fn read_matrix(path: &Path, classes: usize) -> Result<Vec<f64>> {
    let blob: BlobProto = read_binary(path)?;
    let values = blob.values_f64().map_err(|e| Error::data(path, e.to_string()))?;
    if Some(values.len()) != classes.checked_mul(classes) {
        let found = blob.extents().map_err(|e| Error::data(path, e.to_string()))?;
        let what = format!(
            "the infogain matrix has shape {found:?}, expected {classes} × {classes}, a row and a column for each class of \
             the scores"
        );
        return Err(Error::data(path, what));
    }
    Ok(values.into_owned())
}

/// Scratch memory, by number.
mod scratch {
    /// H on the host, the sums of its rows on a device.
    pub const MATRIX: usize = 1;
    /// The sums of rows on the host, what blocks put on a device.
    pub const SUMS: usize = 2;
}

impl Layer for InfogainLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=3, 1..=2).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let scores = &bottoms[0];
        let axis = scores.shape.axis(self.axis)?;
        self.along = Axes3::around(&scores.shape, axis..axis + 1);
        let Axes3 { outer, channels, inner } = self.along;
        check_count(&bottoms[1], outer * inner, scores)?;
        check_items(&bottoms[1], scores)?;
        self.labels = Labels { ignored: self.loss.ignore_label, ..Labels::of(channels) };
        match (bottoms.get(2), &self.source) {
            (Some(h), _) => {
                ensure!(
                    Some(h.shape.count()) == channels.checked_mul(channels),
                    "the infogain matrix, bottom 2, has shape {}, expected {channels} × {channels}, a row and a column for \
                     each class of the scores of shape {}",
                    h.shape,
                    scores.shape
                );
                // As in Caffe, the bottom goes before a file.
                self.source = None;
            }
            (None, Some(source)) => self.matrix = read_matrix(source, channels)?,
            (None, None) => {
                return Err(Error::config(
                    "there is no infogain matrix: give infogain_loss_param.source, a file, or a third bottom",
                ));
            }
        }
        self.with_probabilities = tops == 2;
        let rows = if inner == 1 { outer } else { outer * channels };
        let mut plan = Plan {
            backward_bottoms: (1..bottoms.len()).collect(),
            no_gradient: (1..bottoms.len()).collect(),
            flops: 8 * scores.shape.count() as u64,
            scratch: vec![
                if self.with_probabilities { scores.with_shape([0]) } else { scores.clone() },
                scores.with_shape([channels, channels]),
                scores.with_shape([rows.max(channels)]),
            ],
            ..Plan::loss(scores.dtype)
        };
        if self.with_probabilities {
            plan.tops.push(scores.clone());
            plan.backward_tops = vec![1];
        } else {
            plan.saved = vec![scores.clone()];
        }
        Ok(plan)
    }
}

impl HostLayer for InfogainLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (scores, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let h = io.scratch::<T>(scratch::MATRIX)?;
        self.matrix(io.bottom_unless_shared::<T>(2)?, h);
        let p = probabilities(&mut io, self.with_probabilities)?;
        softmax(Some(scores), p, self.along);
        let counted = self.labels.count(labels)?;
        let Axes3 { outer, channels, inner } = self.along;
        let (rows, len) = if inner == 1 { (outer, channels) } else { (outer * channels, inner) };
        let sums = &mut io.scratch::<T>(scratch::SUMS)?[..rows];
        let (p, h) = (&*p, &*h);
        for_rows(sums, 1, 10 * len, |row, sum| sum[0] = self.row(row, &p[row * len..][..len], labels, h));
        let loss: f64 = sums.iter().map(|s| s.f64()).sum();
        io.top::<T>(0)?[0] = T::of(loss / self.fixed_normalizer().unwrap_or(counted.max(1) as f64));
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let labels = io.bottom::<T>(1)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let p = if self.with_probabilities { io.top::<T>(1)? } else { io.saved::<T>(0)? };
        let h = io.scratch::<T>(scratch::MATRIX)?;
        self.matrix(if self.source.is_none() { Some(io.bottom::<T>(2)?) } else { None }, h);
        let h = &*h;
        let Axes3 { channels, inner, .. } = self.along;
        let sums = &mut io.scratch::<T>(scratch::SUMS)?[..channels];
        sums.iter_mut()
            .zip(h.chunks(channels.max(1)))
            .for_each(|(s, row)| *s = T::of(row.iter().map(|v| v.f64()).sum()));
        let sums = &*sums;
        if self.with_probabilities {
            softmax_backward(p, Some(io.top_diff::<T>(1)?), dx, self.along);
        } else {
            dx.fill(T::zero());
        }
        let counted = self.labels.count(labels)?;
        let z = self.fixed_normalizer().unwrap_or(counted.max(1) as f64);
        let scale = T::of(io.top_diff::<T>(0)?[0].f64() / z);
        let len = channels * inner;
        for_rows(dx, len, 3 * len, |o, dx| {
            for (c, (dx, p)) in dx.chunks_mut(inner).zip(p[o * len..][..len].chunks(inner)).enumerate() {
                for (i, (dx, &p)) in dx.iter_mut().zip(p).enumerate() {
                    if let Some(own) = self.labels.known(labels, o * inner + i) {
                        *dx += scale * (p * sums[own] - h[own * channels + c]);
                    }
                }
            }
        });
        Ok(())
    }
}
