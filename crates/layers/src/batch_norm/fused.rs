//! BatchNorm, Scale, the sum with another blob (Eltwise) and ReLU in as few passes over memory as the mathematics needs.
//!
//! Computes what the layers compute one after another (see [`crate::batch_norm`], [`crate::scale`], [`crate::eltwise`],
//! [`crate::relu`]; the last two may be missing): with x̂ = (x − μ)/√(σ² + ε), y = max(γ·x̂ + β + r, 0). Forward reads x
//! twice (statistics, then y) and r once. Backward reads x and dy twice; without r it does not read y again, as the sign
//! of γ·x̂ + β tells what passed the ReLU, and with r it reads y once.
//!
//! Gradient: with g = dy where y > 0, dr = g, dβ = Σg, dγ = Σ g·x̂, dx = γ/√(σ² + ε) · (g − Σg/m − x̂·Σ(g·x̂)/m); with
//! global statistics dx = γ/√(σ² + ε) · g.
//!
//! Shapes: bottoms x [M, C, …] and, where it is added, r alike; top alike. Parameters: those of BatchNorm (mean, variance,
//! factor), then Scale's γ [C] and, with `bias_term`, β [C]. Never named in a prototxt: nets put it in the place of the
//! layers, and of a BatchNorm that has a Scale of its own.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result, Sharing,
};
use lgm_cpu::batchnorm::{Affine, Joined, Normalization, Normalized, Rectified, backward_data};
use lgm_proto::{FillerParameter, LayerParameter};

use super::statistics::{Statistics, axes};
use crate::common::diff::diff_source;
use crate::common::fusable::{is_plain_relu, is_plain_sum_of_two};

mod device;

/// The layer; see the module.
pub struct FusedBatchNorm {
    statistics: Statistics,
    /// How γ and β start, where they are the normalisation's own parameters.
    fillers: [FillerParameter; 2],
    bias: bool,
    /// Whether a second bottom is added.
    joins: bool,
    relu: bool,
    axes: Axes3,
}

/// Index of γ among the parameters.
const SCALE: usize = 3;
/// Index of β among the parameters.
const SHIFT: usize = 4;

/// Whether a BatchNorm has γ and β of its own.
pub(super) fn has_own_scale(norm: &LayerParameter) -> bool {
    let given = norm.batch_norm_param.as_ref();
    given.is_some_and(|p| p.scale_bias() || p.scale_filler.is_some() || p.bias_filler.is_some())
}

/// A BatchNorm that has γ and β of its own.
pub(super) fn scaled(norm: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    FusedBatchNorm::node(norm, true, [false; 2], cx)
}

impl FusedBatchNorm {
    fn node(norm: &LayerParameter, bias: bool, [joins, relu]: [bool; 2], cx: &BuildCx) -> Result<Node> {
        let phase = norm.phase.map_or(cx.phase, |_| norm.phase());
        let statistics = Statistics::new(norm, &BuildCx { phase, ..*cx }, has_own_scale(norm))?;
        let p = &statistics.param;
        let one = FillerParameter { value: Some(1.0), ..Default::default() };
        let fillers = [p.scale_filler.clone().unwrap_or(one), p.bias_filler.clone().unwrap_or_default()];
        Node::compute(FusedBatchNorm { statistics, fillers, bias, joins, relu, axes: Axes3::default() })
    }

    /// The layer that stands for a BatchNorm and what follows it, and how many layers it stands for; `None` when it
    /// cannot.
    pub(crate) fn of(run: &[&LayerParameter], cx: &BuildCx) -> Result<Option<(Node, usize)>> {
        let (norm, bias, own, rest) = match run {
            [norm, rest @ ..] if norm.r#type() == "BatchNorm" && has_own_scale(norm) => (norm, true, 1, rest),
            [norm, scale, rest @ ..] if norm.r#type() == "BatchNorm" && scale.r#type() == "Scale" => {
                let affine = scale.scale_param.clone().unwrap_or_default();
                let bounded = affine.min_value.is_some() || affine.max_value.is_some();
                // With a second bottom, that is the scale.
                if bounded || affine.axis() != 1 || affine.num_axes() != 1 || scale.bottom.len() != 1 {
                    return Ok(None);
                }
                (norm, affine.bias_term(), 2, rest)
            }
            _ => return Ok(None),
        };
        let joins = rest.first().is_some_and(|next| is_plain_sum_of_two(next));
        let relu = rest.get(joins as usize).is_some_and(|next| is_plain_relu(next));
        let layers = own + joins as usize + relu as usize;
        if layers == 1 {
            return Ok(None);
        }
        Ok(Some((FusedBatchNorm::node(norm, bias, [joins, relu], cx)?, layers)))
    }

    /// γ/√(σ² + ε), as `normalize` rounds it.
    fn scales<T: Float>(inv_std: &[T], gamma: &[T], out: &mut [T]) {
        for ((out, &i), &g) in out.iter_mut().zip(inv_std).zip(gamma) {
            *out = i * g;
        }
    }
}

impl Layer for FusedBatchNorm {
    fn arity(&self) -> Arity {
        Arity::exactly(1 + self.joins as usize, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0];
        self.axes = axes(&bottom.shape)?;
        let channel = bottom.with_shape([self.axes.channels]);
        let learned = 1 + self.bias as usize;
        let mut params = self.statistics.params(self.axes.channels);
        let own = self.fillers.iter().take(learned);
        params.extend(own.map(|filler| ParamSpec::new([self.axes.channels], Some(filler))));
        Ok(Plan {
            tops: vec![bottom.clone()],
            params,
            saved: vec![channel.clone(); 2],
            scratch: vec![channel; 3],
            share_data: if self.joins { vec![(0, 1, Sharing::InPlace)] } else { Vec::new() },
            share_diff: vec![(0, self.joins as usize)],
            backward_bottoms: vec![0],
            backward_tops: if self.joins && self.relu { vec![0] } else { Vec::new() },
            ..Default::default()
        })
    }
}

impl HostLayer for FusedBatchNorm {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let (mean, inv_std) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?);
        self.statistics.forward(x, self.axes, &mut io, mean, inv_std)?;
        let scale = io.param::<T>(SCALE)?;
        let shift = if self.bias { Some(io.param::<T>(SHIFT)?) } else { None };
        let affine = Some(Affine { scale, shift });
        let normalization = Normalization { mean, inv_std, affine, relu: self.relu };
        if self.joins {
            let r = io.bottom_unless_shared::<T>(1)?;
            normalization.apply_and_add(x, r, self.axes, y);
        } else {
            normalization.apply(Some(x), self.axes, y);
        }
        if let (Some(kept_mean), Some(kept_inv_std)) = (io.saved::<T>(0)?, io.saved::<T>(1)?) {
            kept_mean.copy_from_slice(mean);
            kept_inv_std.copy_from_slice(inv_std);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (mean, inv_std) = (io.saved::<T>(0)?, io.saved::<T>(1)?);
        let (scale, sum_g, sum_g_xhat) = (io.scratch::<T>(0)?, io.scratch::<T>(1)?, io.scratch::<T>(2)?);
        Self::scales(inv_std, io.param::<T>(SCALE)?, scale);
        let shift = if self.bias { Some(io.param::<T>(SHIFT)?) } else { None };
        let (x, relu) = (io.bottom::<T>(0)?, self.relu);
        let rectified = Rectified { x, mean, scale, shift, relu };
        let joined = Joined { x, mean, inv_std, y: if self.joins && relu { Some(io.top::<T>(0)?) } else { None } };
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        // With a second bottom, its gradient may share the top's memory; else dx may.
        let mut dr = if self.joins { io.bottom_diff::<T>(1)? } else { None };
        if self.joins {
            joined.sums(own, dr.as_deref_mut(), self.axes, sum_g, sum_g_xhat);
        } else {
            rectified.sums(diff_source(own, dx.as_deref())?, self.axes, inv_std, sum_g, sum_g_xhat);
        }
        let learned = [(SCALE, &*sum_g_xhat), (SHIFT, &*sum_g)];
        for (param, sums) in learned.into_iter().take(1 + self.bias as usize) {
            if let Some(diff) = io.param_diff::<T>(param)? {
                diff.iter_mut().zip(sums).for_each(|(d, &s)| *d += s);
            }
        }
        let Some(dx) = dx else { return Ok(()) };
        if self.statistics.global {
            sum_g.fill(T::zero());
            sum_g_xhat.fill(T::zero());
        }
        match dr {
            Some(g) => {
                let normalized = Normalized::From { x, mean, inv_std };
                backward_data(normalized, Some(g), self.axes, scale, sum_g, sum_g_xhat, dx);
            }
            None if self.joins => joined.data(diff_source(own, None)?, self.axes, scale, sum_g, sum_g_xhat, dx),
            None => rectified.data(own, self.axes, inv_std, sum_g, sum_g_xhat, dx),
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lgm_core::{DType, Phase, Registry};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check};

    /// One layer entry that holds the settings of all.
    fn run_of(param: &LayerParameter) -> Vec<LayerParameter> {
        let joins = (param.bottom.len() == 2).then_some("Eltwise");
        let last = if param.relu_param.is_some() { "ReLU" } else { "Power" };
        let kinds = ["BatchNorm", "Scale"].into_iter().chain(joins).chain([last]);
        kinds.map(|kind| of_kind(param, kind)).collect()
    }

    /// The entry as a layer of a type: normalisation and scale have one bottom.
    pub(crate) fn of_kind(param: &LayerParameter, kind: &str) -> LayerParameter {
        let mut layer = LayerParameter { r#type: Some(kind.into()), ..param.clone() };
        if kind != "Eltwise" {
            layer.bottom.truncate(1);
        }
        layer
    }

    fn registry() -> Registry {
        let mut registry = crate::tests::registry();
        registry.add("Fused", |param, cx| {
            let run = run_of(param);
            Ok(FusedBatchNorm::of(&run.iter().collect::<Vec<_>>(), cx)?.unwrap().0)
        });
        registry
    }

    fn layer(kind: &str, param: &str) -> String {
        format!("layer {{ name: 'l' type: '{kind}' bottom: 'x' top: 'y' {param} }}")
    }

    const BIAS: &str = "batch_norm_param { eps: 0.01 } scale_param { bias_term: true }";
    const PLAIN: &str = "batch_norm_param {} scale_param {}";
    const GLOBAL: &str = "batch_norm_param { use_global_stats: true } scale_param { bias_term: true }";

    fn drawn(case: Case) -> Case {
        let case = case.param(0, Fill::Normal(0.0, 1.0)).param(1, Fill::Uniform(0.5, 2.0));
        case.param(2, Fill::Given(vec![1.7])).param(3, Fill::Uniform(-1.5, 1.5))
    }

    #[test]
    fn gradients() {
        let case = |param: &str, relu: &str| drawn(Case::new(layer("Fused", &format!("{param} {relu}"))));
        let mut cases = Vec::new();
        for relu in ["", "relu_param {}"] {
            cases.push(case(BIAS, relu).param(4, Fill::Normal(0.0, 0.5)).bottom([3, 2, 2, 2]));
            cases.push(case(PLAIN, relu).bottom([5, 3]));
            cases.push(case(GLOBAL, relu).param(4, Fill::Normal(0.0, 0.5)).bottom([3, 2, 3]));
            cases.push(case(BIAS, relu).param(4, Fill::Normal(0.0, 0.5)).test_phase().bottom([2, 3, 2]));
            let joined = |param: &str| {
                let text = layer("Fused", &format!("{param} {relu}")).replace("bottom: 'x'", "bottom: 'x' bottom: 'r'");
                drawn(Case::new(text)).param(4, Fill::Normal(0.0, 0.5))
            };
            cases.push(joined(BIAS).bottom([3, 2, 2, 2]).bottom([3, 2, 2, 2]));
            cases.push(joined(GLOBAL).bottom([3, 2, 3]).bottom([3, 2, 3]));
        }
        check(&registry(), &cases);
    }

    #[test]
    fn equals_the_layers() {
        let n = 4 * 3 * 50;
        let x: Vec<f64> = (0..n).map(|i| ((i * 37 % 101) as f64 - 40.0) / 17.0).collect();
        let (gamma, beta) = (vec![0.7, -1.2, 2.0], vec![0.1, 0.4, -0.3]);
        for phase in [Phase::Train, Phase::Test] {
            let run = |text: &str, bottoms: &[&[f64]], params: Vec<Vec<f64>>| {
                let shapes = vec![[4, 3, 50].into(); bottoms.len()];
                let harness = Harness::new(&registry(), text, phase, DType::F64, &shapes).unwrap();
                let mut inputs = harness.forward_inputs(bottoms).unwrap();
                inputs.params = params;
                harness.run(&inputs).unwrap()
            };
            let forward = |kind: &str, param: &str, x: &[f64], params| run(&layer(kind, param), &[x], params);
            let statistics = vec![vec![0.3, 0.1, -0.2], vec![1.5, 2.5, 0.5], vec![1.3]];
            let norm = forward("BatchNorm", BIAS, &x, statistics.clone());
            let scaled = forward("Scale", BIAS, &norm.tops[0], vec![gamma.clone(), beta.clone()]);
            let rectified = forward("ReLU", "", &scaled.tops[0], vec![]);
            let all = statistics.into_iter().chain([gamma.clone(), beta.clone()]).collect();
            let all: Vec<_> = all;
            let fused = forward("Fused", &format!("{BIAS} relu_param {{}}"), &x, all.clone());
            assert_close("top", &fused.tops[0], &rectified.tops[0], 1e-12);
            assert_close("statistics", &fused.params[..3].concat(), &norm.params.concat(), 1e-12);
            let r: Vec<f64> = x.iter().rev().map(|v| v / 3.0).collect();
            let text = layer("Fused", &format!("bottom: 'r' {BIAS} relu_param {{}}"));
            let joined = run(&text, &[&x, &r], all);
            let sum: Vec<f64> = scaled.tops[0].iter().zip(&r).map(|(y, r)| (y + r).max(0.0)).collect();
            assert_close("sum", &joined.tops[0], &sum, 1e-12);
        }
    }

    #[test]
    fn other_runs_are_left_alone() {
        let cx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 0 };
        let of = |kinds: &[&str], scale: &str| {
            let param = lgm_testkit::parse_layer(&layer("Scale", scale)).unwrap();
            let run: Vec<_> = kinds.iter().map(|kind| of_kind(&param, kind)).collect();
            FusedBatchNorm::of(&run.iter().collect::<Vec<_>>(), &cx).unwrap().map(|(_, len)| len)
        };
        assert_eq!(of(&["BatchNorm", "Scale", "ReLU"], ""), Some(3));
        assert_eq!(of(&["BatchNorm", "Scale", "ReLU"], "relu_param { negative_slope: 0.1 }"), Some(2));
        assert_eq!(of(&["BatchNorm", "Scale"], ""), Some(2));
        assert_eq!(of(&["BatchNorm", "ReLU", "Scale"], ""), None);
        assert_eq!(of(&["BatchNorm", "Scale"], "scale_param { axis: 0 }"), None);
        assert_eq!(of(&["BatchNorm", "Scale"], "scale_param { min_value: 0 }"), None);
        assert_eq!(of(&["BatchNorm"], ""), None);
        let own = "batch_norm_param { scale_bias: true }";
        assert_eq!(of(&["BatchNorm", "ReLU"], own), Some(2));
        assert_eq!(of(&["BatchNorm", "Scale"], own), None);
        assert_eq!(of(&["BatchNorm", "Eltwise", "ReLU"], &format!("bottom: 'r' {own}")), Some(3));
        assert_eq!(of(&["BatchNorm", "Scale", "Eltwise", "ReLU"], "bottom: 'r'"), Some(4));
        assert_eq!(of(&["BatchNorm", "Scale", "Eltwise"], "bottom: 'r'"), Some(3));
        assert_eq!(
            of(&["BatchNorm", "Scale", "Eltwise", "ReLU"], "bottom: 'r' eltwise_param { operation: MAX }"),
            Some(2)
        );
        assert_eq!(of(&["BatchNorm", "Scale", "Eltwise"], "bottom: 'r' eltwise_param { coeff: 1 coeff: -1 }"), Some(2));
        assert_eq!(of(&["BatchNorm", "Scale", "Eltwise"], "bottom: 'r' bottom: 's'"), Some(2));
        // A scale that comes from another layer.
        let given = lgm_testkit::parse_layer(&layer("Scale", "bottom: 's'")).unwrap();
        let norm = of_kind(&given, "BatchNorm");
        assert!(FusedBatchNorm::of(&[&norm, &given], &cx).unwrap().is_none());
    }
}
