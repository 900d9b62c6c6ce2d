//! L1Loss: 1/Z · Σ ∣d∣ with d = a − b, or d = a where there is one bottom; what is not a number counts as nothing.
//!
//! With `l1_loss_param.plateau` p, smaller ∣d∣ count as nothing either. With `l2_per_location` the sum is Σ √(s + ε) over positions instead, where
//! s = Σ d² over the channels (over C times that with `l2_prescale_by_channels`), 0 where s < p², and ε is `epsilon` (0.01). Z is the
//! number of items or, with `normalize_by_num_entries`, the number of values that are numbers, over the channels, and 1 at least.
//!
//! Gradient: da = dL/Z · sign(d), or dL/Z · d / √(s + ε) (over C); 0 where d counts as nothing; db = −da. Shapes: bottoms alike,
//! [N, C, …]; top the loss.
//!
//! Source: the layer of this name of NVIDIA's fork and others, and of Ilg et al., "FlowNet 2.0" (2017), which has the fields of
//! `l1_loss_param`. Where we differ: FlowNet 2.0's takes the sign of 0 as −1, and leaves the least Z open.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Float, Fwd, Grid, Host,
    HostLayer, Layer, Node, Plan, Result, args, ensure,
};
use lgm_cpu::elementwise::reduce;
use lgm_proto::{L1LossParameter, LayerParameter};

use crate::common::launch::extent;
use crate::common::loops::for_rows;
use crate::common::loss::Tally;

/// The layer; see the module.
pub struct L1Loss {
    param: L1LossParameter,
    bottoms: usize,
    /// Items, channels and positions of a channel.
    extents: [usize; 3],
}

/// d, and how it counts.
struct Values<'a, T> {
    a: &'a [T],
    b: Option<&'a [T]>,
    plateau: T,
}

impl<T: Float> Values<'_, T> {
    /// d, if it is a number.
    fn known(&self, i: usize) -> Option<T> {
        let d = self.b.map_or(self.a[i], |b| self.a[i] - b[i]);
        (!d.is_nan()).then_some(d)
    }

    /// d, or 0 where it counts as nothing.
    fn counting(&self, i: usize) -> T {
        self.known(i).filter(|d| d.abs() >= self.plateau).unwrap_or_else(T::zero)
    }
}

impl L1Loss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.l1_loss_param.as_deref().copied().unwrap_or_default();
        for (name, value) in [("epsilon", param.epsilon()), ("plateau", param.plateau())] {
            ensure!(value.is_finite() && value >= 0.0, "{name} must be a number of at least 0, found {value}");
        }
        Node::compute(L1Loss { param, bottoms: 2, extents: [0; 3] })
    }

    fn count(&self) -> usize {
        self.extents.iter().product()
    }

    /// Positions of all items.
    fn positions(&self) -> usize {
        self.extents[0] * self.extents[2]
    }

    fn values<'a, T: Float>(&self, bottom: impl Fn(usize) -> Result<&'a [T]>) -> Result<Values<'a, T>> {
        let b = (self.bottoms > 1).then(|| bottom(1)).transpose()?;
        Ok(Values { a: bottom(0)?, b, plateau: T::of(self.param.plateau().into()) })
    }

    /// What s is of the sum of squares.
    fn share(&self) -> f64 {
        if self.param.l2_prescale_by_channels() { 1.0 / self.extents[1].max(1) as f64 } else { 1.0 }
    }

    fn z<T: Float>(&self, values: &Values<'_, T>) -> f64 {
        let [items, channels, _] = self.extents;
        if !self.param.normalize_by_num_entries() {
            return items.max(1) as f64;
        }
        let known: f64 = reduce(self.count(), |r| r.filter(|&i| values.known(i).is_some()).count() as f64);
        (known / channels.max(1) as f64).max(1.0)
    }

    /// The elements of a position's channels, with √(s + ε) of it; `None` where s counts as nothing.
    fn location<T: Float>(
        &self,
        values: &Values<'_, T>,
        position: usize,
    ) -> (impl Iterator<Item = usize> + use<T>, T, bool) {
        let [_, channels, inner] = self.extents;
        let base = position / inner * channels * inner + position % inner;
        let elements = (0..channels).map(move |c| base + c * inner);
        let known = |i: usize| values.known(i).unwrap_or_else(T::zero);
        let s = elements.clone().map(|i| known(i) * known(i)).sum::<T>() * T::of(self.share());
        let counts = s >= values.plateau * values.plateau;
        let root = (if counts { s } else { T::zero() } + T::of(self.param.epsilon().into())).sqrt();
        (elements, root, counts)
    }

    /// The arguments of a kernel, after its own.
    fn args(&self, bottom: impl Fn(usize) -> Result<DevicePtr>) -> Result<Vec<lgm_core::Arg>> {
        let b = if self.bottoms > 1 { bottom(1)? } else { DevicePtr::NULL };
        let [items, channels, inner] = self.extents;
        let (a, located) = (bottom(0)?, u32::from(self.param.l2_per_location()));
        let numbers = [self.share() as f32, self.param.epsilon(), self.param.plateau()];
        let mut args = args![a, b, located, numbers[0], numbers[1], numbers[2]].to_vec();
        for n in [items, channels, inner] {
            args.push(extent(n)?.into());
        }
        Ok(args)
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.positions() }
    }
}

impl Layer for L1Loss {
    fn arity(&self) -> Arity {
        Arity::range(1..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(!shape.is_empty(), "the bottoms must have a batch axis, found a scalar");
        if let Some(other) = bottoms.get(1).filter(|b| b.shape.count() != shape.count() || b.shape[..1] != shape[..1]) {
            let what = "bottom 1 must have the shape of bottom 0".into();
            return Err(Error::Shape { what, expected: shape.clone(), found: other.shape.clone() });
        }
        self.bottoms = bottoms.len();
        self.extents = [shape[0], shape.get(1).copied().unwrap_or(1), shape.count_from(2.min(shape.len()))];
        Ok(Plan {
            backward_bottoms: (0..bottoms.len()).collect(),
            no_gradient: vec![],
            flops: 3 * shape.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for L1Loss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let values = self.values(|i| io.bottom::<T>(i))?;
        let sum: f64 = if self.param.l2_per_location() {
            reduce(self.positions(), |r| r.map(|p| self.location(&values, p).1.f64()).sum())
        } else {
            reduce(self.count(), |r| r.map(|i| values.counting(i).abs().f64()).sum())
        };
        io.top::<T>(0)?[0] = T::of(sum / self.z(&values));
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let values = self.values(|i| io.bottom::<T>(i))?;
        let [_, channels, inner] = self.extents;
        let scale = io.top_diff::<T>(0)?[0].f64() / self.z(&values);
        for (bottom, scale) in [scale, -scale].into_iter().enumerate().take(self.bottoms) {
            let Some(d) = io.bottom_diff::<T>(bottom)? else { continue };
            let item = channels * inner;
            for_rows(d, item, 4 * item, |n, d| {
                if !self.param.l2_per_location() {
                    let scale = T::of(scale);
                    d.iter_mut().enumerate().for_each(|(k, d)| {
                        let v = values.counting(n * item + k);
                        *d = if v == T::zero() { v } else { scale * v.signum() };
                    });
                    return;
                }
                for s in 0..inner {
                    let (elements, root, counts) = self.location(&values, n * inner + s);
                    let scale = if counts { T::of(scale * self.share()) / root } else { T::zero() };
                    elements.for_each(|i| d[i - n * item] = scale * values.known(i).unwrap_or_else(T::zero));
                }
            });
        }
        Ok(())
    }
}

impl DeviceLayer for L1Loss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        // 1/Z.
        plan.saved = vec![plan.tops[0].with_shape([1])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (loss, partial, share) = (io.top(0)?, io.scratch(0)?, io.saved(0));
        let args = [args![partial].to_vec(), self.args(|i| io.bottom(i))?].concat();
        io.launch("l1_partials", self.tally().grid(), &args)?;
        let z = (!self.param.normalize_by_num_entries()).then(|| self.extents[0].max(1) as f32);
        self.tally().finish(io.call, (loss, share), partial, None, z)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (d_loss, share) = (io.top_diff(0)?, io.saved(0)?);
        for (bottom, sign) in [1.0f32, -1.0].into_iter().enumerate().take(self.bottoms) {
            if let Some(d) = io.bottom_diff(bottom) {
                let args = [args![d, d_loss, share, sign].to_vec(), self.args(|i| io.bottom(i))?].concat();
                io.launch("l1_backward", Grid::elements(self.positions()), &args)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 'l' type: 'L1Loss' {bottoms} top: 'l' l1_loss_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'a'";
    const TWO: &str = "bottom: 'a' bottom: 'b'";

    /// Values well away from 0, and from each other's negative.
    fn away(n: usize) -> Fill {
        Fill::Given((0..n).map(|i| if i % 3 == 0 { -1.3 } else { 0.4 } * (1.0 + i as f64 / 5.0)).collect())
    }

    #[test]
    fn cases() {
        let mut cases = Vec::new();
        for param in ["", "plateau: 0.9", "normalize_by_num_entries: true"] {
            cases.push(Case::new(layer(ONE, param)).bottom_of([3, 2, 2, 2], away(24)));
            cases.push(
                Case::new(layer(TWO, param))
                    .bottom_of([4, 3], away(12))
                    .bottom_of([4, 3, 1, 1], Fill::Uniform(-0.1, 0.1)),
            );
        }
        let located = "l2_per_location: true";
        for param in ["", "l2_prescale_by_channels: true epsilon: 0.1", "plateau: 2", "normalize_by_num_entries: true"]
        {
            let text = layer(TWO, &format!("{located} {param}"));
            cases.push(
                Case::new(text).bottom_of([2, 3, 2, 2], away(24)).bottom_of([2, 3, 2, 2], Fill::Uniform(-0.1, 0.1)),
            );
        }
        cases.push(Case::new(layer(TWO, located)).bottom([3, 40, 9, 7]).bottom([3, 40, 9, 7]).without_gradients());
        check(&registry(), &cases);
    }

    fn run(param: &str, shape: Shape, a: &[f64], b: &[f64]) -> (f64, Vec<f64>) {
        let harness =
            Harness::new(&registry(), &layer(TWO, param), Phase::Train, DType::F64, &[shape.clone(), shape]).unwrap();
        let mut inputs = harness.forward_inputs(&[a, b]).unwrap();
        inputs.top_diffs = vec![vec![1.0]];
        let out = harness.run(&inputs).unwrap();
        (out.tops[0][0], out.bottom_diffs[0].clone().unwrap())
    }

    #[test]
    fn what_is_not_a_number_counts_as_nothing() {
        let nan = f64::NAN;
        assert_eq!(
            run("", [2, 2].into(), &[1.0, nan, -3.0, 2.0], &[0.0, 0.0, 0.0, 2.0]),
            (2.0, vec![0.5, 0.0, -0.5, 0.0])
        );
        let (loss, gradient) =
            run("normalize_by_num_entries: true", [1, 4].into(), &[1.0, 2.0, 3.0, 4.0], &[nan, nan, 0.0, 0.0]);
        assert_eq!((loss, gradient), (7.0, vec![0.0, 0.0, 1.0, 1.0]));
        let (loss, gradient) =
            run("l2_per_location: true epsilon: 0", [1, 2, 2].into(), &[3.0, 6.0, 4.0, nan], &[0.0; 4]);
        assert_close("loss", &[loss], &[11.0], 1e-12);
        assert_close("gradient", &gradient, &[0.6, 1.0, 0.8, 0.0], 1e-12);
    }

    #[test]
    fn mistakes_are_named() {
        let x = [Shape::from([2, 3]), Shape::from([2, 3])];
        config_error(
            &registry(),
            &layer(TWO, "epsilon: -1"),
            &x,
            &["epsilon must be a number of at least 0, found -1"],
        );
        config_error(&registry(), &layer(TWO, "plateau: -2"), &x, &["plateau", "-2"]);
        config_error(&registry(), &layer(TWO, ""), &[[2, 3].into(), [3, 2].into()], &["bottom 1", "(2, 3)", "(3, 2)"]);
        config_error(&registry(), &layer(ONE, ""), &[[].into()], &["a batch axis"]);
    }
}
