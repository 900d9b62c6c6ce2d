//! IoULoss: −1/N · Σ ln(I/U), how far boxes are from overlapping the true ones, where I is the area that a predicted box and
//! the true one share, and U the area that they cover together.
//!
//! Each position of a map predicts a box by its distances to the box's sides: top, bottom, left, right, in pixels. A box of
//! distances t, b, l, r covers (t + b + 1) · (l + r + 1), and two boxes share (min t + min b + 1) · (min l + min r + 1). A
//! position whose true t + b is −1 has no box and does not count. Where two boxes share no more than 10⁻⁴, the logarithm
//! gives way to the sum of the distances' absolute differences, ∣t − t′∣ + ∣b − b′∣ + ∣l − l′∣ + ∣r − r′∣.
//!
//! Gradient: dt = dL/N · (w/U − \[t < t′\] · w′ · (1/U + 1/I)), w being the predicted box's width and w′ the shared one, and
//! likewise for the others; or dL/N · sign(t − t′). The true boxes get theirs likewise, where they are learned.
//!
//! Shapes: bottoms predicted and true distances [N, 4, …] alike; top the loss. Source: Yu, Jiang, Wang, Cao and Huang,
//! "UnitBox: An Advanced Object Detection Network" (2016); the L-GM fork's layer of this name. Where we differ: there the
//! differences count negative on a CPU, and from 10⁻² on a GPU; here they are added, from 10⁻⁴. Boxes that are apart both
//! ways, whose shared sides are negative, share nothing; there their product passes for an area.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Float, Fwd, Grid, Host, HostLayer, Layer,
    Node, Plan, Result, args, ensure,
};
use lgm_cpu::elementwise::reduce;
use lgm_proto::LayerParameter;

use crate::common::launch::extent;
use crate::common::loops::for_rows;
use crate::common::loss::Tally;

/// A shared area up to which boxes are apart.
const APART: f64 = 1e-4;

/// The layer; see the module.
pub struct IouLoss {
    items: usize,
    inner: usize,
}

impl IouLoss {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(IouLoss { items: 0, inner: 0 })
    }

    fn positions(&self) -> usize {
        self.items * self.inner
    }

    /// The four distances at a position.
    fn sides<T: Float>(&self, x: &[T], position: usize) -> [T; 4] {
        let (item, at) = (position / self.inner, position % self.inner);
        std::array::from_fn(|k| x[(item * 4 + k) * self.inner + at])
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.positions() }
    }
}

/// A predicted box beside the true one: heights and widths, of the predicted box and of what both share, and areas.
struct Overlap<T> {
    own: [T; 2],
    both: [T; 2],
    shared: T,
    together: T,
}

impl<T: Float> Overlap<T> {
    fn of(x: [T; 4], truth: [T; 4]) -> Self {
        let extents = |s: [T; 4]| [s[0] + s[1] + T::one(), s[2] + s[3] + T::one()];
        let area = |e: [T; 2]| e[0] * e[1];
        let own = extents(x);
        let both = extents(std::array::from_fn(|k| x[k].min(truth[k])));
        let shared = area(both);
        Overlap { own, both, shared, together: area(own) + area(extents(truth)) - shared }
    }

    fn apart(&self) -> bool {
        self.both[0] <= T::zero() || self.shared <= T::of(APART)
    }
}

/// Whether there is a box.
fn counts<T: Float>(truth: [T; 4]) -> bool {
    truth[0] + truth[1] != -T::one()
}

fn loss<T: Float>(x: [T; 4], truth: [T; 4]) -> T {
    let overlap = Overlap::of(x, truth);
    if !counts(truth) {
        T::zero()
    } else if overlap.apart() {
        x.iter().zip(truth).map(|(&x, t)| (x - t).abs()).sum()
    } else {
        overlap.together.ln() - overlap.shared.ln()
    }
}

/// The derivative of a box's loss by each distance of x, one of the two boxes.
fn slopes<T: Float>(x: [T; 4], other: [T; 4]) -> [T; 4] {
    let overlap = Overlap::of(x, other);
    let (by_union, apart) = (overlap.together.recip(), overlap.apart());
    let of_both = by_union + overlap.shared.recip();
    std::array::from_fn(|k| {
        // The extent across from the one that the distance is part of.
        let across = 1 - k / 2;
        let off = x[k] - other[k];
        if apart && off == T::zero() {
            T::zero()
        } else if apart {
            off.signum()
        } else {
            let shared = if off < T::zero() { overlap.both[across] * of_both } else { T::zero() };
            overlap.own[across] * by_union - shared
        }
    })
}

impl Layer for IouLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (x, truth) = (&bottoms[0].shape, &bottoms[1].shape);
        if x != truth {
            let what = "bottom 1, the true distances, must have the shape of bottom 0".into();
            return Err(Error::Shape { what, expected: x.clone(), found: truth.clone() });
        }
        let sides = x.get(1).copied();
        ensure!(
            sides == Some(4),
            "axis 1 must have 4 extents, the distances to top, bottom, left and right; found shape {x}"
        );
        (self.items, self.inner) = (x[0], x.count_from(2));
        Ok(Plan {
            backward_bottoms: vec![0, 1],
            no_gradient: vec![],
            flops: 20 * self.positions() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for IouLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, truth) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let at = |i: usize| loss(self.sides(x, i), self.sides(truth, i));
        let sum: T = reduce(self.positions(), |r| T::of(r.map(|i| at(i).f64()).sum()));
        io.top::<T>(0)?[0] = sum / T::of(self.items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, truth) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items.max(1) as f64);
        let len = 4 * self.inner;
        for (bottom, [one, other]) in [[x, truth], [truth, x]].into_iter().enumerate() {
            let Some(d) = io.bottom_diff::<T>(bottom)? else { continue };
            for_rows(d, len, 10 * len, |item, d| {
                for at in 0..self.inner {
                    let i = item * self.inner + at;
                    let scale = if counts(self.sides(truth, i)) { scale } else { T::zero() };
                    for (k, slope) in slopes(self.sides(one, i), self.sides(other, i)).into_iter().enumerate() {
                        d[k * self.inner + at] = scale * slope;
                    }
                }
            });
        }
        Ok(())
    }
}

impl DeviceLayer for IouLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, truth, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let args = args![partial, x, truth, extent(self.positions())?, extent(self.inner.max(1))?];
        io.launch("iou_partials", self.tally().grid(), args)?;
        self.tally().finish(io.call, (loss, None), partial, None, Some(self.items.max(1) as f32))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, truth, d_loss, items) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?, self.items.max(1) as f32);
        for (bottom, [one, other]) in [[x, truth], [truth, x]].into_iter().enumerate() {
            let Some(d) = io.bottom_diff(bottom) else { continue };
            let (positions, inner) = (extent(self.positions())?, extent(self.inner.max(1))?);
            let args = args![d, one, other, truth, d_loss, items, positions, inner];
            io.launch("iou_backward", Grid::elements(self.positions()), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    const LAYER: &str = "layer { name: 'i' type: 'IoULoss' bottom: 'x' bottom: 'g' top: 'l' }";

    #[test]
    fn cases() {
        let boxes = |low, high| Fill::Uniform(low, high);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/fork_iou"),
                Case::new(LAYER).bottom_of([2, 4, 3, 2], boxes(0.0, 8.0)).bottom_of([2, 4, 3, 2], boxes(0.0, 8.0)),
                Case::new(LAYER).bottom_of([3, 4], boxes(-2.0, 6.0)).bottom_of([3, 4], boxes(0.0, 6.0)),
                // No box; boxes apart in height, in width, and in both. A box begins to count where there is none.
                Case::new(LAYER)
                    .kink(1, 0.0, 0.01)
                    .kink(1, -1.0, 0.01)
                    .bottom_of([4, 4], Fill::Given([[1.0, 2.0, 3.0, 4.0], [-6.0, 2.0, 3.0, 4.0]].concat().repeat(2)))
                    .bottom_of(
                        [4, 4],
                        Fill::Given(
                            [[0.0, -1.0, 3.0, 4.0], [3.0, 1.0, 2.0, 9.0], [2.0, 1.0, -9.0, 9.0], [1.0, 0.0, -9.5, 9.0]]
                                .concat(),
                        ),
                    ),
                Case::new(LAYER)
                    .bottom_of([2, 4, 700], boxes(0.0, 9.0))
                    .bottom_of([2, 4, 700], boxes(0.0, 9.0))
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn boxes_apart_are_brought_nearer() {
        let harness =
            Harness::new(&crate::tests::registry(), LAYER, Phase::Train, DType::F64, &[[1, 4].into(), [1, 4].into()])
                .unwrap();
        let mut inputs = harness.forward_inputs(&[&[-5.0, 2.0, 3.0, -6.0], &[3.0, 1.0, 3.0, 4.0]]).unwrap();
        inputs.top_diffs = vec![vec![2.0]];
        let out = harness.run(&inputs).unwrap();
        assert_close("loss", &out.tops[0], &[8.0 + 1.0 + 10.0], 1e-12);
        assert_eq!(out.bottom_diffs[0].as_ref().unwrap(), &[-2.0, 2.0, 0.0, -2.0]);
        assert_eq!(out.bottom_diffs[1].as_ref().unwrap(), &[2.0, -2.0, 0.0, 2.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        config_error(&registry, LAYER, &[[2, 4, 3].into(), [2, 4, 2].into()], &["bottom 1", "(2, 4, 3)", "(2, 4, 2)"]);
        config_error(&registry, LAYER, &[[2, 3].into(), [2, 3].into()], &["4 extents", "(2, 3)"]);
        config_error(&registry, LAYER, &[[2].into(), [2].into()], &["4 extents", "(2)"]);
    }
}
