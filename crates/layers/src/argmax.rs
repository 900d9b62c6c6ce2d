//! ArgMax: the `top_k` (1) largest values of each item, or, where `axis` is given, along that axis: their places, largest
//! first. Of equal values that with the greater index comes first; what is not a number comes before all others.
//!
//! | | top | holds |
//! | --- | --- | --- |
//! | no `axis` | [N, 1, k] | indices into the item's elements |
//! | no `axis`, `out_max_val` | [N, 2, k] | the indices, then the values |
//! | `axis` | the bottom's shape with k for that extent | indices along the axis, or with `out_max_val` the values |
//!
//! Bottoms of four and more axes give tops without `axis` as many, the others of extent 1. No backward. Indices above
//! 2²⁴ are rounded, since blobs are in single precision. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Device, DeviceLayer, DevicePtr, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, Shape, args, ensure,
};
use lgm_proto::{ArgMaxParameter, LayerParameter};

use crate::common::launch::extent;
use crate::common::loops::for_rows;
use crate::common::row_sums::threads;

/// Positions beside each other that the host goes along together.
const LANES: usize = 32;

/// The layer; see the module.
pub struct ArgMax {
    param: ArgMaxParameter,
    /// The bottom around what is searched.
    along: Axes3,
    /// How many are looked for.
    top_k: usize,
}

impl ArgMax {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.argmax_param.unwrap_or_default();
        ensure!(param.top_k() > 0, "top_k must be at least 1, found 0");
        let top_k = param.top_k() as usize;
        Node::compute(ArgMax { param, along: Axes3::default(), top_k })
    }

    fn has_indices(&self) -> bool {
        !self.param.out_max_val() || self.param.axis.is_none()
    }

    /// Elements of the top for each outer index.
    fn row(&self) -> usize {
        let both = self.param.out_max_val() && self.param.axis.is_none();
        (1 + usize::from(both)) * self.top_k * self.along.inner
    }

    /// The largest alone, of `LANES` positions at a time.
    fn largest<T: Float>(&self, x: &[T], y: &mut [T]) {
        let inner = self.along.inner;
        for start in (0..inner).step_by(LANES) {
            let n = LANES.min(inner - start);
            let (mut best, mut places) = ([T::neg_infinity(); LANES], [T::zero(); LANES]);
            for (c, x) in x.chunks(inner).enumerate() {
                let c = T::of(c as f64);
                for ((best, place), &x) in best.iter_mut().zip(&mut places).zip(&x[start..start + n]) {
                    let ahead = x >= *best || x.is_nan();
                    *best = if ahead { x } else { *best };
                    *place = if ahead { c } else { *place };
                }
            }
            let found = if self.has_indices() { places } else { best };
            y[start..start + n].copy_from_slice(&found[..n]);
        }
    }

    /// As many as are wanted for position `i`: each value is put where it belongs among the largest so far, by places
    /// (`at`) and, in the end, by values.
    fn sorted<T: Float>(&self, x: &[T], i: usize, y: &mut [T]) {
        let (inner, k) = (self.along.inner, self.top_k);
        let value = |c: usize| x[c * inner + i];
        let ahead = |a: T, b: T| a >= b || a.is_nan();
        for c in 0..self.along.channels {
            let held = c.min(k);
            let mut to = held;
            while to > 0 && ahead(value(c), value(y[(to - 1) * inner + i].f64() as usize)) {
                to -= 1;
            }
            if to == k {
                continue;
            }
            for j in (to..held.min(k - 1)).rev() {
                y[(j + 1) * inner + i] = y[j * inner + i];
            }
            y[to * inner + i] = T::of(c as f64);
        }
        for j in 0..k {
            let v = value(y[j * inner + i].f64() as usize);
            if !self.has_indices() {
                y[j * inner + i] = v;
            } else if self.param.out_max_val() {
                y[k + j] = v;
            }
        }
    }
}

impl Layer for ArgMax {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (shape, k) = (&bottoms[0].shape, self.top_k);
        let axes = match self.param.axis {
            Some(axis) => {
                let axis = shape.axis(axis)?;
                axis..axis + 1
            }
            None => {
                ensure!(!shape.is_empty(), "the bottom is a scalar; it needs a first axis of items");
                1..shape.len()
            }
        };
        self.along = Axes3::around(shape, axes.clone());
        ensure!(
            k <= self.along.channels,
            "top_k is {k}, more than the {} values of the bottom {shape} that it is chosen from",
            self.along.channels
        );
        let top = match self.param.axis {
            Some(_) => shape.splice(axes, [k]),
            None => {
                let values = if self.param.out_max_val() { 2 } else { 1 };
                Shape::new([shape[0], values, k].into_iter().chain((3..shape.len()).map(|_| 1)))
            }
        };
        let flops = shape.count() as u64;
        Ok(Plan { no_backward: true, flops, ..Plan::new(vec![bottoms[0].with_shape(top)]) })
    }
}

impl HostLayer for ArgMax {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let item = self.along.channels * self.along.inner;
        for_rows(y, self.row(), item, |o, y| {
            let x = &x[o * item..][..item];
            if self.top_k == 1 && y.len() == self.along.inner {
                return self.largest(x, y);
            }
            (0..self.along.inner).for_each(|i| self.sorted(x, i, y));
        });
        Ok(())
    }
}

impl DeviceLayer for ArgMax {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        let Axes3 { outer, channels, inner } = self.along;
        let rows = outer * inner;
        if rows == 0 {
            return Ok(());
        }
        let (indices, values) = match (self.has_indices(), self.param.out_max_val()) {
            (true, true) => (y, y.floats(self.top_k)),
            (true, false) => (y, DevicePtr::NULL),
            _ => (DevicePtr::NULL, y),
        };
        let (k, pitch) = (self.top_k as u32, self.row() as i64);
        if inner == 1 && channels >= 64 {
            let args = args![indices, values, x, k, pitch, extent(channels)?];
            return io.launch("arrange_largest_of_row", Grid::rows(rows, threads(channels)), args);
        }
        let args = args![indices, values, x, k, pitch, extent(channels)?, extent(inner)?, extent(rows)?];
        io.launch("arrange_largest", Grid::elements(rows), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'a' type: 'ArgMax' bottom: 'x' top: 'y' argmax_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let mut cases: Vec<Case> = (0..4).map(|i| Case::golden(&format!("layers/argmax_more_{i}"))).collect();
        cases.push(Case::golden("layers/argmax"));
        for param in ["", "out_max_val: true", "top_k: 3", "top_k: 5 out_max_val: true"] {
            for axis in ["", "axis: 1", "axis: 0", "axis: -1"] {
                let fields = format!("{param} {axis}");
                // Whole numbers, so that many are equal.
                cases.push(Case::new(layer(&fields)).bottom_of([6, 7, 5, 6], Fill::Labels(4)));
            }
            cases.push(Case::new(layer(param)).bottom_of([3, 1000], Fill::Labels(90)));
            cases.push(Case::new(layer(&format!("{param} axis: 1"))).bottom_of([2, 9, 70], Fill::Normal(0.0, 1.0)));
        }
        check(&registry(), &cases);
    }

    #[test]
    fn of_equal_values_the_last_comes_first() {
        let run = |param: &str| {
            let harness = Harness::new(&registry(), &layer(param), Phase::Test, DType::F32, &[[1, 5].into()]).unwrap();
            let x = [2.0, 3.0, 3.0, f64::NEG_INFINITY, 2.0];
            harness.run(&harness.forward_inputs(&[&x]).unwrap()).unwrap().tops.remove(0)
        };
        assert_eq!(run("top_k: 4 out_max_val: true"), [2.0, 1.0, 4.0, 0.0, 3.0, 3.0, 2.0, 2.0]);
        assert_eq!(run(""), [2.0]);
        assert_eq!(run("axis: 1 top_k: 2 out_max_val: true"), [3.0, 3.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let refused =
            |param: &str, needles: &[&str]| config_error(&registry(), &layer(param), &[[2, 3].into()], needles);
        refused("top_k: 0", &["top_k must be at least 1"]);
        refused("top_k: 4", &["top_k is 4", "3 values", "(2, 3)"]);
        refused("axis: 0 top_k: 3", &["top_k is 3", "2 values"]);
        refused("axis: 2", &["axis 2", "(2, 3)"]);
        config_error(&registry(), &layer(""), &[[].into()], &["the bottom is a scalar"]);
    }
}
