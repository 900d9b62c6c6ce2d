//! SmoothL1Loss: 1/Z · Σ wₒ · f(wᵢ · (a − b)), where f(d) = ½σ²d² for ∣d∣ < 1/σ², else ∣d∣ − ½/σ²: quadratic near zero, so
//! that it has a gradient everywhere, and linear beyond, so that outliers count no more than they must.
//!
//! wᵢ and wₒ are the inside and outside weights, the third and the fourth bottom, 1 where absent; σ is
//! `smooth_l1_loss_param.sigma` (1); Z is the number of items unless `loss_param` has a `normalization`, which then chooses it, but
//! at least 1: `FULL` and `VALID`, all positions; `BATCH_SIZE`, items; `NONE`, 1; `PRE_FIXED`, `pre_fixed_normalizer`. Where it is
//! absent, the older `normalize` means VALID if true, BATCH_SIZE if false.
//!
//! SmoothL1LossOHEM is the same with σ = 1, without wₒ, and with all positions as Z unless it is chosen.
//!
//! Gradient: da = dL/Z · wᵢ · wₒ · f′(d), where f′(d) is σ²d or the sign of d; db = −da; none to the weights.
//!
//! Shapes: bottoms a, b and weights alike, [N, C, …]; tops the loss, optionally the loss at each position [N, 1, …], summed over
//! channels, which passes no gradient down.
//!
//! Source: Girshick, "Fast R-CNN" (ICCV 2015), the layer of this name in its fork of Caffe and those after it; Dai, Li, He and Sun,
//! "R-FCN" (NIPS 2016), whose fork has the second top and obeys `loss_param` (the others divide by the items whatever it says).
//! Where we differ: the inside weights may come without the outside ones.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Float, Fwd, Grid, Host,
    HostLayer, Layer, Node, Plan, Result, args, ensure,
};
use lgm_cpu::elementwise::reduce;
use lgm_cpu::for_each_block;
use lgm_proto::LayerParameter;
use lgm_proto::LossParameter;
use lgm_proto::loss_parameter::NormalizationMode;

use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;
use crate::common::loss::{Tally, fixed_normalizer};

/// The layer; see the module.
pub struct SmoothL1Loss {
    sigma2: f64,
    /// What chooses Z, if not the items are it.
    loss: Option<LossParameter>,
    /// Bottoms that it may have, and those that it has.
    most_bottoms: usize,
    bottoms: usize,
    tops: usize,
    /// Items, channels and positions of a channel.
    extents: [usize; 3],
}

/// SmoothL1Loss of the positions, not the items; see the module.
pub struct SmoothL1LossOhem;

impl SmoothL1LossOhem {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        SmoothL1Loss::node(1.0, Some(param.loss_param.clone().unwrap_or_default()), 3)
    }
}

/// a, b and the weights.
struct Values<'a, T> {
    a: &'a [T],
    b: &'a [T],
    inside: Option<&'a [T]>,
    outside: Option<&'a [T]>,
    sigma2: T,
}

impl<T: Float> Values<'_, T> {
    fn difference(&self, i: usize) -> T {
        let d = self.a[i] - self.b[i];
        self.inside.map_or(d, |w| w[i] * d)
    }

    fn loss(&self, i: usize) -> T {
        let (d, half) = (self.difference(i), T::of(0.5));
        let near = d.abs() < self.sigma2.recip();
        let loss = if near { half * d * d * self.sigma2 } else { d.abs() - half / self.sigma2 };
        self.outside.map_or(loss, |w| w[i] * loss)
    }

    fn slope(&self, i: usize) -> T {
        let d = self.difference(i);
        let slope = if d.abs() < self.sigma2.recip() { self.sigma2 * d } else { d.signum() };
        [self.inside, self.outside].into_iter().flatten().fold(slope, |slope, w| slope * w[i])
    }
}

impl SmoothL1Loss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let sigma = param.smooth_l1_loss_param.as_deref().copied().unwrap_or_default().sigma();
        let chosen = |loss: &LossParameter| loss.normalization.is_some() || loss.normalize.is_some();
        SmoothL1Loss::node(sigma, param.loss_param.clone().filter(chosen), 4)
    }

    fn node(sigma: f32, loss: Option<LossParameter>, most_bottoms: usize) -> Result<Node> {
        let sigma2 = f64::from(sigma * sigma);
        ensure!(sigma2.is_finite() && sigma2 > 0.0, "sigma must be a finite number other than 0, found {sigma}");
        Node::compute(SmoothL1Loss { sigma2, loss, most_bottoms, bottoms: 2, tops: 1, extents: [0; 3] })
    }

    fn count(&self) -> usize {
        self.extents.iter().product()
    }

    fn z(&self) -> f64 {
        let [items, _, inner] = self.extents;
        let positions = items * inner;
        let of_loss =
            |loss| fixed_normalizer(loss, NormalizationMode::Valid, positions, items).unwrap_or(positions as f64);
        self.loss.as_ref().map_or(items as f64, of_loss).max(1.0)
    }

    fn values<'a, T: Float>(&self, bottom: impl Fn(usize) -> Result<&'a [T]>) -> Result<Values<'a, T>> {
        let weights = |i: usize| (i < self.bottoms).then(|| bottom(i)).transpose();
        let (inside, outside) = (weights(2)?, weights(3)?);
        Ok(Values { a: bottom(0)?, b: bottom(1)?, inside, outside, sigma2: T::of(self.sigma2) })
    }

    /// a, b and the weights on a device, null where absent.
    fn addresses(&self, bottom: impl Fn(usize) -> Result<DevicePtr>) -> Result<[DevicePtr; 4]> {
        let mut found = [DevicePtr::NULL; 4];
        for (i, found) in found.iter_mut().enumerate().take(self.bottoms) {
            *found = bottom(i)?;
        }
        Ok(found)
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.count() }
    }
}

impl Layer for SmoothL1Loss {
    fn arity(&self) -> Arity {
        Arity::range(2..=self.most_bottoms, 1..=2).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(!shape.is_empty(), "the bottoms must have a batch axis, found a scalar");
        for (i, bottom) in bottoms.iter().enumerate() {
            if bottom.shape.count() != shape.count() || bottom.shape.first() != shape.first() {
                let what = format!("bottom {i} must have the shape of bottom 0");
                return Err(Error::Shape { what, expected: shape.clone(), found: bottom.shape.clone() });
            }
        }
        (self.bottoms, self.tops) = (bottoms.len(), tops);
        self.extents = [shape[0], shape.get(1).copied().unwrap_or(1), shape.count_from(2.min(shape.len()))];
        let mut plan = Plan {
            backward_bottoms: (0..bottoms.len()).collect(),
            no_gradient: (2..bottoms.len()).collect(),
            flops: 5 * shape.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        };
        if tops > 1 {
            plan.tops.push(bottoms[0].with_shape(shape.splice(1..2.min(shape.len()), [1])));
        }
        Ok(plan)
    }
}

impl HostLayer for SmoothL1Loss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let values = self.values(|i| io.bottom::<T>(i))?;
        let sum: T = reduce(self.count(), |r| T::of(r.map(|i| values.loss(i).f64()).sum()));
        io.top::<T>(0)?[0] = T::of(sum.f64() / self.z());
        if self.tops > 1 {
            let [_, channels, inner] = self.extents;
            for_rows(io.top::<T>(1)?, inner, 5 * channels * inner, |n, each| {
                for (s, each) in each.iter_mut().enumerate() {
                    *each = (0..channels).map(|c| values.loss((n * channels + c) * inner + s)).sum();
                }
            });
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let values = self.values(|i| io.bottom::<T>(i))?;
        let scale = T::of(io.top_diff::<T>(0)?[0].f64() / self.z());
        for (bottom, scale) in [scale, -scale].into_iter().enumerate() {
            if let Some(d) = io.bottom_diff::<T>(bottom)? {
                for_each_block(d, |at, d| {
                    d.iter_mut().enumerate().for_each(|(i, d)| *d = scale * values.slope(at + i));
                });
            }
        }
        Ok(())
    }
}

impl DeviceLayer for SmoothL1Loss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let [a, b, inside, outside] = self.addresses(|i| io.bottom(i))?;
        let (loss, partial, sigma2) = (io.top(0)?, io.scratch(0)?, self.sigma2 as f32);
        let args = args![partial, a, b, inside, outside, sigma2, self.count() as i64];
        io.launch("smooth_l1_partials", self.tally().grid(), args)?;
        self.tally().finish(io.call, (loss, None), partial, None, Some(self.z() as f32))?;
        if self.tops > 1 {
            let [items, channels, inner] = self.extents;
            let extents = [extent(items)?, extent(channels)?, extent(inner)?];
            let args = args![io.top(1)?, a, b, inside, outside, sigma2, extents[0], extents[1], extents[2]];
            io.launch("smooth_l1_positions", row_grid(items, inner), args)?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let [a, b, inside, outside] = self.addresses(|i| io.bottom(i))?;
        let (d_loss, scale, sigma2) = (io.top_diff(0)?, (1.0 / self.z()) as f32, self.sigma2 as f32);
        for (bottom, scale) in [scale, -scale].into_iter().enumerate() {
            if let Some(d) = io.bottom_diff(bottom) {
                let args = args![d, a, b, inside, outside, d_loss, scale, sigma2, self.count() as i64];
                io.launch("smooth_l1_backward", Grid::elements(self.count()), args)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn text(kind: &str, bottoms: usize, tops: usize, fields: &str) -> String {
        let bottoms: String =
            ["a", "b", "i", "o"].into_iter().take(bottoms).map(|b| format!("bottom: '{b}' ")).collect();
        let tops: String = ["l", "e"].into_iter().take(tops).map(|t| format!("top: '{t}' ")).collect();
        format!("layer {{ name: 's' type: '{kind}' {bottoms} {tops} {fields} }}")
    }

    #[test]
    fn cases() {
        let case = |bottoms, fields: &str, shape: &[usize]| {
            let case = Case::new(text("SmoothL1Loss", bottoms, 1, fields));
            (0..bottoms).fold(case, |case, _| case.bottom(shape))
        };
        let mut cases = vec![
            case(2, "", &[4, 6]),
            case(3, "smooth_l1_loss_param { sigma: 0.7 }", &[3, 4]),
            case(4, "smooth_l1_loss_param { sigma: 2 }", &[2, 4, 3]),
            case(4, "", &[5]),
            case(4, "", &[3, 4, 900]).without_gradients(),
        ];
        for mode in ["FULL", "VALID", "BATCH_SIZE", "NONE", "PRE_FIXED pre_fixed_normalizer: 3.5"] {
            let fields = format!("loss_param {{ normalization: {mode} }}");
            let case = Case::new(text("SmoothL1LossOHEM", 3, 2, &fields)).flat_top(1);
            cases.push((0..3).fold(case, |case, _| case.bottom([3, 4, 2])));
            let case = Case::new(text("SmoothL1Loss", 4, 2, &fields)).flat_top(1);
            cases.push((0..4).fold(case, |case, _| case.bottom([3, 4, 2])));
        }
        cases.push(case(3, "loss_param { normalize: true }", &[3, 4, 2]));
        cases.push(Case::new(text("SmoothL1LossOHEM", 2, 2, "")).flat_top(1).bottom([3, 5]).bottom([3, 5]));
        check(&crate::tests::registry(), &cases);
    }

    #[test]
    fn values() {
        let shapes = [[2, 2].into(), [2, 2].into(), [2, 2].into(), [2, 2].into()];
        let layer = text("SmoothL1Loss", 4, 1, "smooth_l1_loss_param { sigma: 2 }");
        let harness = Harness::new(&crate::tests::registry(), &layer, Phase::Train, DType::F64, &shapes).unwrap();
        let (a, b, inside, outside) =
            ([1.0, 2.0, 0.1, 5.0], [0.0, 2.5, 0.0, 5.0], [1.0, 2.0, 1.0, 1.0], [1.0, 3.0, 2.0, 1.0]);
        let mut inputs = harness.forward_inputs(&[&a, &b, &inside, &outside]).unwrap();
        inputs.top_diffs = vec![vec![2.0]];
        let out = harness.run(&inputs).unwrap();
        // With σ² = 4 the bound is a quarter.
        assert_close("loss", &out.tops[0], &[(0.875 + 3.0 * 0.875 + 2.0 * 0.02) / 2.0], 1e-12);
        let da = [1.0, -6.0, 0.8, 0.0];
        assert_close("da", out.bottom_diffs[0].as_ref().unwrap(), &da, 1e-12);
        assert_close("db", out.bottom_diffs[1].as_ref().unwrap(), &da.map(|d| -d), 1e-12);
    }

    #[test]
    fn normalizers() {
        // A loss of 1.5 at each of 2 · 3 · 5 elements: of 2 items, 10 positions.
        let loss = |kind: &str, fields: &str| {
            let layer = text(kind, 2, 1, fields);
            let shapes = [[2, 3, 5].into(), [2, 3, 5].into()];
            let harness = Harness::new(&crate::tests::registry(), &layer, Phase::Test, DType::F64, &shapes).unwrap();
            harness.run(&harness.forward_inputs(&[&[2.0; 30], &[0.0; 30]]).unwrap()).unwrap().tops[0][0] / 45.0
        };
        let fixed = "loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 4 }";
        for (fields, plain, ohem) in [
            ("", 2.0, 10.0),
            ("loss_param { ignore_label: 1 }", 2.0, 10.0),
            ("loss_param { normalization: FULL }", 10.0, 10.0),
            ("loss_param { normalization: VALID }", 10.0, 10.0),
            ("loss_param { normalization: BATCH_SIZE }", 2.0, 2.0),
            ("loss_param { normalization: NONE }", 1.0, 1.0),
            (fixed, 4.0, 4.0),
            ("loss_param { normalize: true }", 10.0, 10.0),
            ("loss_param { normalize: false }", 2.0, 2.0),
        ] {
            let got = [loss("SmoothL1Loss", fields), loss("SmoothL1LossOHEM", fields)];
            assert_close(fields, &got, &[1.0 / plain, 1.0 / ohem], 1e-12);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        let sigma = text("SmoothL1Loss", 2, 1, "smooth_l1_loss_param { sigma: 0 }");
        config_error(&registry, &sigma, &[[2].into(), [2].into()], &["sigma", "0"]);
        let three = text("SmoothL1Loss", 3, 1, "");
        let shapes = [[2, 3].into(), [2, 3].into(), [2, 2].into()];
        config_error(&registry, &three, &shapes, &["bottom 2", "(2, 3)", "(2, 2)"]);
        let scalars = [lgm_core::Shape::scalar(), lgm_core::Shape::scalar()];
        config_error(&registry, &text("SmoothL1Loss", 2, 1, ""), &scalars, &["batch axis"]);
    }

    #[test]
    fn the_loss_of_each_position_is_summed_over_channels() {
        let layer = text("SmoothL1LossOHEM", 2, 2, "");
        let shapes = [[1, 2, 2].into(), [1, 2, 2].into()];
        let harness = Harness::new(&crate::tests::registry(), &layer, Phase::Test, DType::F64, &shapes).unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[2.0, 0.5, 0.0, -3.0], &[0.0; 4]]).unwrap()).unwrap();
        assert_eq!(out.tops[1], [1.5, 0.125 + 2.5]);
    }

    #[test]
    fn nothing_is_lost_where_both_are_the_same() {
        let case = Case::new(text("SmoothL1Loss", 2, 1, "")).bottom_of([2], Fill::Given(vec![0.0; 2]));
        check(&crate::tests::registry(), &[case.bottom_of([2], Fill::Given(vec![0.0; 2]))]);
    }
}
