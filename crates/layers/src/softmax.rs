//! Softmax along one axis: yᵢ = eˣⁱ / Σⱼ eˣʲ, from x less its largest value.
//!
//! Gradient: dxᵢ = yᵢ · (dyᵢ − Σⱼ dyⱼ·yⱼ). Shapes: one top like the bottom, softmax along `axis` (1) for each position of
//! the others; runs in place. Source: Caffe's layer of this name.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostRun, Layer, Node, Plan, Result};
use lgm_proto::LayerParameter;

use crate::pointwise::{for_rows, sum};

/// The layer; see the module.
pub struct Softmax {
    axis: i32,
    along: Along,
}

/// Where in a blob an axis lies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Along {
    /// Positions before the axis.
    pub outer: usize,
    /// The axis's extent.
    pub channels: usize,
    /// Positions after the axis.
    pub inner: usize,
}

/// Positions after the axis that are worked on at once.
const TILE: usize = 64;

impl Along {
    /// Finds `axis` in the shape of `blob`.
    ///
    /// # Errors
    /// When the shape has no such axis.
    pub fn new(blob: &BlobSpec, axis: i32) -> Result<Along> {
        let (shape, axis) = (&blob.shape, blob.shape.axis(axis)?);
        Ok(Along { outer: shape.span(0..axis), channels: shape[axis], inner: shape.count_from(axis + 1) })
    }

    fn block(&self) -> usize {
        self.channels * self.inner
    }

    /// dst = softmax(src), or of dst itself when `src` is absent.
    pub fn softmax<T: Float>(&self, src: Option<&[T]>, dst: &mut [T]) {
        let block = self.block();
        for_rows(dst, block, 16 * block, |o, y| {
            if let Some(src) = src {
                y.copy_from_slice(&src[o * block..(o + 1) * block]);
            }
            if self.inner == 1 {
                row(y);
            } else {
                (0..self.inner).step_by(TILE).for_each(|s| self.columns(y, s, TILE.min(self.inner - s)));
            }
        });
    }

    fn columns<T: Float>(&self, y: &mut [T], from: usize, n: usize) {
        let (mut max, mut total) = ([T::neg_infinity(); TILE], [T::zero(); TILE]);
        for y in y.chunks(self.inner) {
            max.iter_mut().zip(&y[from..from + n]).for_each(|(m, &y)| *m = m.max(y));
        }
        for y in y.chunks_mut(self.inner) {
            for ((y, &m), t) in y[from..from + n].iter_mut().zip(&max).zip(&mut total) {
                *y = (*y - m).exp();
                *t += *y;
            }
        }
        for y in y.chunks_mut(self.inner) {
            y[from..from + n].iter_mut().zip(&total).for_each(|(y, &t)| *y /= t);
        }
    }

    /// dx = y · (dy − Σ dy·y); `dy` absent means that dx holds it.
    pub fn gradient<T: Float>(&self, y: &[T], dy: Option<&[T]>, dx: &mut [T]) {
        let block = self.block();
        for_rows(dx, block, 4 * block, |o, dx| {
            let y = &y[o * block..(o + 1) * block];
            if let Some(dy) = dy {
                dx.copy_from_slice(&dy[o * block..(o + 1) * block]);
            }
            if self.inner == 1 {
                let dot = sum(y, dx, |y, d| y * d);
                dx.iter_mut().zip(y).for_each(|(d, &y)| *d = y * (*d - dot));
                return;
            }
            for from in (0..self.inner).step_by(TILE) {
                let n = TILE.min(self.inner - from);
                let mut dot = [T::zero(); TILE];
                for (y, d) in y.chunks(self.inner).zip(dx.chunks(self.inner)) {
                    let products = y[from..from + n].iter().zip(&d[from..from + n]);
                    dot.iter_mut().zip(products).for_each(|(t, (&y, &d))| *t += y * d);
                }
                for (y, d) in y.chunks(self.inner).zip(dx.chunks_mut(self.inner)) {
                    let both = d[from..from + n].iter_mut().zip(&y[from..from + n]);
                    both.zip(&dot).for_each(|((d, &y), &t)| *d = y * (*d - t));
                }
            }
        });
    }
}

fn row<T: Float>(y: &mut [T]) {
    let max = y.iter().fold(T::neg_infinity(), |m, &y| m.max(y));
    y.iter_mut().for_each(|y| *y = (*y - max).exp());
    let total = sum(y, y, |y, _| y);
    y.iter_mut().for_each(|y| *y /= total);
}

impl Softmax {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Softmax { axis: param.softmax_param.unwrap_or_default().axis(), along: Along::default() })
    }
}

impl Layer for Softmax {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.along = Along::new(&bottoms[0], self.axis)?;
        let flops = 6 * bottoms[0].shape.count() as u64;
        Ok(Plan { backward_tops: vec![0], flops, ..Plan::elementwise(&bottoms[0]) })
    }
}

impl HostRun for Softmax {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        self.along.softmax(io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (y, dy) = (io.top::<T>(0)?, io.top_diff_unless_shared::<T>(0)?);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.along.gradient(y, dy, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Draw, check, config_error};

    fn softmax(axis: i32) -> Case {
        Case::new(format!(
            r#"layer {{ name: "s" type: "Softmax" bottom: "x" top: "y" softmax_param {{ axis: {axis} }} }}"#
        ))
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/softmax_0"),
                Case::golden("layers/softmax_1"),
                softmax(1).bottom([3, 37]),
                softmax(0).bottom([5, 3]),
                softmax(-1).bottom([2, 3, 4]),
                // More positions than are worked on at once.
                softmax(1).bottom([2, 3, 7, 11]),
                softmax(1).bottom_of([2, 3], Draw::Given(vec![1e4, -1e4, 0.0, 88.0, 89.0, 90.0])),
            ],
        );
    }

    #[test]
    fn the_axis_must_exist() {
        let text = r#"layer { name: "s" type: "Softmax" bottom: "x" top: "y" softmax_param { axis: 2 } }"#;
        config_error(&crate::tests::registry(), text, &[[4, 5].into()], &["axis 2", "(4, 5)"]);
    }
}
