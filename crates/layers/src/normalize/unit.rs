//! NormFace's Normalize: the channels at each position brought to unit length: y = x / ∥x∥, with ∥x∥ = √(Σ x² + 1e-6), or Σ ∣x∣ + 1e-6 by
//! `normalize_type: "L1"`.
//!
//! Gradient: dx = (dy − u · Σ dy·y) / ∥x∥ with u = y, by L1 the sign of x; with `bp_norm`, the gradient by the norm times u besides.
//!
//! Shapes: bottom [N, C, …]; tops like it, in its memory if the net wants, and optionally the norms [N, 1, …], which pass a gradient
//! down by `bp_norm` alone. Source: Wang, Xiang, Cheng and Yuille, "NormFace" (2017); the layer of this name in Wang's fork.
//! `fix_gradient` has no effect there either.

use lgm_core::{
    Arity, Axes3, BlobSpec, Bwd, Device, DeviceLayer, DeviceQueue, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, Sharing, args, ensure,
};
use lgm_cpu::for_each_row_of;
use lgm_proto::LayerParameter;

use crate::common::launch::extent;

/// Added to what norms are made of.
const EPS: f32 = 1e-6;

/// The layer; see the module.
struct Unit {
    l1: bool,
    bp_norm: bool,
    axes: Axes3,
    shows_norm: bool,
}

/// Builds the layer.
pub(super) fn build(param: &LayerParameter) -> Result<Node> {
    let p = param.normalize_param.clone().map(|p| *p).unwrap_or_default();
    let others = p.across_spatial.is_some()
        || p.scale_filler.is_some()
        || p.channel_shared.is_some()
        || p.eps.is_some()
        || p.fix_scale.is_some();
    ensure!(
        !others,
        "normalize_param has fields of another fork's Normalize (across_spatial, scale_filler, channel_shared, eps, fix_scale), \
         which is not carried out there: SSD's has them in norm_param"
    );
    let l1 = match p.normalize_type() {
        "L2" => false,
        "L1" => true,
        other => return Err(lgm_core::Error::config(format!("normalize_type must be L1 or L2, found '{other}'"))),
    };
    Node::compute(Unit { l1, bp_norm: p.bp_norm(), axes: Axes3::default(), shows_norm: false })
}

impl Unit {
    fn args(&self) -> Result<[lgm_core::Arg; 4]> {
        let Axes3 { outer, channels, inner } = self.axes;
        Ok([u32::from(self.l1).into(), extent(outer * inner)?.into(), extent(channels)?.into(), extent(inner)?.into()])
    }

    fn grid(&self) -> Grid {
        Grid::elements(self.axes.outer * self.axes.inner * 32)
    }
}

impl Layer for Unit {
    fn arity(&self) -> Arity {
        Arity::range(1..=1, 1..=2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() >= 2, "the bottom needs channels, on its second axis; found shape {shape}");
        self.axes = Axes3::around(shape, 1..2);
        self.shows_norm = tops > 1;
        let norms = bottoms[0].with_shape(shape.splice(1..2, [1]));
        Ok(Plan {
            saved: vec![norms.clone()],
            scratch: vec![norms.clone()],
            share_data: vec![(0, 0, Sharing::InPlace)],
            backward_tops: vec![0],
            flops: 3 * shape.count() as u64,
            ..Plan::new([bottoms[0].clone()].into_iter().chain(self.shows_norm.then_some(norms)).collect())
        })
    }
}

impl HostLayer for Unit {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let Axes3 { outer, channels, inner } = self.axes;
        let item = channels * inner;
        if let Some(x) = x {
            lgm_cpu::elementwise::copy(x, y);
        }
        let kept = io.saved::<T>(0)?.map_or_else(|| io.scratch::<T>(0), Ok)?;
        for_each_row_of([(y, item), (&mut *kept, inner)], outer, 1, |_, [y, norms]| {
            norms.fill(T::of(EPS.into()));
            for y in y.chunks(inner.max(1)) {
                norms.iter_mut().zip(y).for_each(|(sum, &y)| *sum += if self.l1 { y.abs() } else { y * y });
            }
            if !self.l1 {
                norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
            }
            for y in y.chunks_mut(inner.max(1)) {
                y.iter_mut().zip(&*norms).for_each(|(y, &norm)| *y /= norm);
            }
        });
        if self.shows_norm {
            io.top::<T>(1)?.copy_from_slice(kept);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (y, dy, norms) = (io.top::<T>(0)?, io.top_diff::<T>(0)?, io.saved::<T>(0)?);
        let d_norm = if self.shows_norm && self.bp_norm { Some(io.top_diff::<T>(1)?) } else { None };
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (along, Axes3 { outer, channels, inner }) = (io.scratch::<T>(0)?, self.axes);
        let item = channels * inner;
        for_each_row_of([(dx, item), (along, inner)], outer, 1, |n, [dx, along]| {
            let (y, dy) = (&y[n * item..][..item], &dy[n * item..][..item]);
            let norms = &norms[n * inner..][..inner];
            along.fill(T::zero());
            for (y, dy) in y.chunks(inner.max(1)).zip(dy.chunks(inner.max(1))) {
                along.iter_mut().zip(y.iter().zip(dy)).for_each(|(sum, (&y, &dy))| *sum += y * dy);
            }
            // What u takes part of, divided by the norm as dy is.
            if let Some(d_norm) = d_norm {
                let each = along.iter_mut().zip(norms.iter().zip(&d_norm[n * inner..]));
                each.for_each(|(along, (&norm, &d))| *along -= norm * d);
            }
            for (dx, (y, dy)) in dx.chunks_mut(inner.max(1)).zip(y.chunks(inner.max(1)).zip(dy.chunks(inner.max(1)))) {
                let places = dx.iter_mut().zip(y.iter().zip(dy)).zip(along.iter().zip(norms));
                places.for_each(|((dx, (&y, &dy)), (&along, &norm))| {
                    *dx = (dy - if self.l1 { sign(y) } else { y } * along) / norm;
                });
            }
        });
        Ok(())
    }
}

fn sign<T: Float>(v: T) -> T {
    if v == T::zero() { v } else { v.signum() }
}

impl DeviceLayer for Unit {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.clear();
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let shown = if self.shows_norm { Some(io.top(1)?) } else { None };
        let args = [args![y, io.saved(0), shown, x, EPS].to_vec(), self.args()?.to_vec()].concat();
        io.launch("unit_channels", self.grid(), &args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let d_norm = if self.shows_norm && self.bp_norm { Some(io.top_diff(1)?) } else { None };
        let blobs = args![dx, io.top_diff(0)?, io.top(0)?, io.saved(0)?, d_norm].to_vec();
        io.launch("unit_channels_backward", self.grid(), &[blobs, self.args()?.to_vec()].concat())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn layer(tops: &str, param: &str) -> String {
        format!("layer {{ name: 'n' type: 'Normalize' bottom: 'x' {tops} {param} }}")
    }

    const ONE: &str = "top: 'y'";
    const TWO: &str = "top: 'y' top: 'norm'";

    #[test]
    fn cases() {
        let away =
            || Fill::Given((0..24).map(|i| if i % 3 == 0 { -1.3 } else { 0.4 } * (1.0 + f64::from(i) / 7.0)).collect());
        let l1 = "normalize_param { normalize_type: 'L1' }";
        check(
            &registry(),
            &[
                Case::new(layer(ONE, "")).bottom([3, 5]),
                Case::new(layer(ONE, "normalize_param { normalize_type: 'L2' }")).bottom([2, 3, 2, 2]),
                Case::new(layer(ONE, l1)).bottom_of([4, 6], away()),
                Case::new(layer(TWO, "")).flat_top(1).bottom([2, 3, 2]),
                Case::new(layer(TWO, "normalize_param { bp_norm: true }")).bottom([2, 3, 2]),
                Case::new(layer(TWO, "normalize_param { bp_norm: true normalize_type: 'L1' }"))
                    .bottom_of([2, 3, 2, 2], away()),
                Case::new(layer(TWO, "")).test_phase().flat_top(1).bottom([9, 70]).without_gradients(),
            ],
        );
    }

    #[test]
    fn channels_have_unit_length_and_norms_are_shown() {
        for phase in [Phase::Train, Phase::Test] {
            let shapes = [Shape::from([1, 2, 2])];
            let harness = Harness::new(&registry(), &layer(TWO, ""), phase, DType::F64, &shapes).unwrap();
            let out = harness.run(&harness.forward_inputs(&[&[3.0, 0.0, 4.0, -2.0]]).unwrap()).unwrap();
            assert_close("y", &out.tops[0], &[0.6, 0.0, 0.8, -1.0], 1e-6);
            assert_close("norms", &out.tops[1], &[5.0, 2.0], 1e-6);
            assert_eq!(harness.plan.tops[1].shape, Shape::from([1, 1, 2]));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let x = [Shape::from([2, 3])];
        let refused = |param: &str, needles: &[&str]| config_error(&registry(), &layer(ONE, param), &x, needles);
        refused("normalize_param { normalize_type: 'L3' }", &["normalize_type must be L1 or L2", "'L3'"]);
        refused("normalize_param { across_spatial: false }", &["another fork's Normalize", "norm_param"]);
        refused("normalize_param {} norm_param {}", &["both norm_param and normalize_param"]);
        config_error(&registry(), &layer(ONE, ""), &[[2].into()], &["second axis", "(2)"]);
    }
}
