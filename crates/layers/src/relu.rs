//! ReLU: y = max(x, 0) + a · min(x, 0), with `negative_slope` a (0 unless given). ReLU6, or `relu6: true`: the smaller of that
//! and 6.
//!
//! Gradient: dx = dy for positive x, a · dy elsewhere; 0 where a ReLU6 gives 6. With a ≥ 0 the sign of y tells, so backward reads the top and the
//! layer runs in place; with a < 0 it reads the bottom.
//!
//! Where the layer below applies the ReLU to its top ([`fuse_relu`](lgm_core::Layer::fuse_relu)), forward has nothing left to do and the top is a
//! view of the bottom; backward is the same.
//!
//! Shapes: one top like the bottom. Source: Nair & Hinton (2010); the leaky form, Maas et al. (2013).
//! Where we differ from Caffe: with a negative slope Caffe in place takes the wrong branch in backward; ours does not
//! run in place then. ReLU6 is of several forks, which read its slope in `relu6_param`.

use lgm_core::{BuildCx, Compute, Float, Node, Result, Sharing, ensure};
use lgm_cpu::elementwise::{leaky, leaky_gradient, rectified};
use lgm_proto::LayerParameter;

use crate::common::fusable::is_plain_relu;
use crate::common::pointwise::{self, Elementwise, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct ReLU {
    slope: f32,
    /// Whether 6 is the most.
    six: bool,
    /// The layer below has done it: the top is the bottom.
    done: bool,
}

/// The layer that takes the place of a plain ReLU that the layer before it applies
/// ([`fuse_relu`](lgm_core::Layer::fuse_relu)).
pub(crate) fn applied_before(param: &LayerParameter) -> Option<Compute> {
    is_plain_relu(param).then(|| Compute::Everywhere(Box::new(ReLU::done())))
}

impl ReLU {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let (relu, six) = match param.r#type() {
            "ReLU6" => (param.relu6_param.clone().map(|relu| *relu).unwrap_or_default(), true),
            _ => (param.relu_param.unwrap_or_default(), param.relu_param.unwrap_or_default().relu6()),
        };
        let slope = relu.negative_slope();
        ensure!(slope.is_finite(), "negative_slope must be a finite number, found {slope}");
        pointwise::node(ReLU { slope, six, done: false })
    }

    /// A ReLU without negative slope that the layer below applies ([`fuse_relu`](lgm_core::Layer::fuse_relu)): backward is
    /// all that is left.
    fn done() -> Elementwise<ReLU> {
        Elementwise::new(ReLU { slope: 0.0, six: false, done: true })
    }
}

impl Pointwise for ReLU {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        let slope = T::of(self.slope.into());
        if self.six {
            let six = T::of(6.0);
            map.each(|x| {
                let y = leaky(x, slope);
                if y > six { six } else { y }
            });
        } else if self.slope == 0.0 {
            map.each(rectified);
        } else {
            map.each(|x| leaky(x, slope));
        }
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        let slope = T::of(self.slope.into());
        if self.six {
            let six = T::of(6.0);
            gradient.each(|v, dy| {
                // Not within the branch, or the compiler makes no vectors.
                let below = leaky_gradient(v, dy, slope);
                if v < six { below } else { T::zero() }
            });
        } else {
            gradient.each(|sign, dy| leaky_gradient(sign, dy, slope));
        }
    }

    fn spec(&self) -> Spec {
        let reads = if self.slope >= 0.0 { Reads::Top } else { Reads::Bottom };
        let sharing = if self.done { Sharing::View } else { Sharing::InPlace };
        let kernels = if self.six { kernels!("relu6") } else { kernels!("relu") };
        Spec { numbers: vec![self.slope], sharing, ..Spec::new(kernels, reads, 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::{DType, Phase, Registry, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn leaky(slope: f32) -> Case {
        let text = format!(
            r#"layer {{ name: "r" type: "ReLU" bottom: "x" top: "y" relu_param {{ negative_slope: {slope} }} }}"#
        );
        Case::new(text).bottom([3, 4, 5]).kink(0, 0.0, 1e-3)
    }

    fn six(kind: &str, param: &str) -> Case {
        let text = format!("layer {{ name: 'r' type: '{kind}' bottom: 'x' top: 'y' {param} }}");
        Case::new(text).bottom_of([3, 4, 5], Fill::Normal(3.0, 5.0)).kink(0, 0.0, 1e-3).kink(0, 6.0, 1e-2)
    }

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/relu_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/relu_leaky_0").kink(0, 0.0, 1e-3),
                leaky(0.0),
                leaky(0.1),
                leaky(2.0),
                leaky(-0.5),
                six("ReLU6", ""),
                six("ReLU6", "relu6_param { negative_slope: 0.1 }"),
                six("ReLU", "relu_param { relu6: true }"),
            ],
        );
    }

    fn told(node: &mut Node) -> bool {
        match node {
            Node::Compute(layer) => layer.fuse_relu(),
            Node::Source(_) | Node::Sink(_) => false,
        }
    }

    /// A layer of the type that its name says, told to rectify; and a ReLU of what is rectified already.
    fn rectifying() -> Registry {
        let mut registry = crate::tests::registry();
        registry.add("Rectified", |param, cx| {
            let inner = LayerParameter { r#type: Some(param.name().into()), ..param.clone() };
            let mut node = crate::tests::registry().build(&inner, cx)?;
            assert!(told(&mut node), "{} cannot", param.name());
            Ok(node)
        });
        registry.add("Done", |_, _| Node::compute(ReLU::done()));
        registry
    }

    fn layer(kind: &str, name: &str, bottoms: usize, more: &str) -> String {
        let bottoms: String = (0..bottoms).map(|b| format!("bottom: 'x{b}' ")).collect();
        format!("layer {{ name: '{name}' type: '{kind}' {bottoms} top: 'y' {more} }}")
    }

    /// Layers that can, in all the ways they compute: their type, settings and bottoms.
    fn makers() -> Vec<(&'static str, String, Vec<Shape>)> {
        let conv = |fields: &str, shape: &[usize]| {
            let more = format!("convolution_param {{ {fields} bias_filler {{ value: 0.1 }} }}");
            ("Convolution", more, vec![Shape::from(shape)])
        };
        let product = |fields: &str| {
            ("InnerProduct", format!("inner_product_param {{ {fields} }}"), vec![Shape::from([3, 4, 5])])
        };
        let sum =
            |fields: &str, n: usize| ("Eltwise", format!("eltwise_param {{ {fields} }}"), vec![[2, 3, 5].into(); n]);
        vec![
            conv("num_output: 5 kernel_size: 3 pad: 1", &[2, 3, 5, 7]),
            conv("num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 2 bias_term: false", &[2, 4, 5, 6]),
            conv("num_output: 7 kernel_size: 1", &[2, 9, 4, 5]),
            conv("num_output: 4 kernel_size: 3 pad: 1 group: 4", &[2, 4, 5, 6]),
            conv("num_output: 4 kernel_size: 3 pad: 1 group: 4 bias_term: false", &[2, 4, 5, 6]),
            conv("num_output: 16 kernel_size: 3 pad: 1", &[4, 16, 8, 8]),
            conv("num_output: 3 kernel_size: 2 pad: 1 group: 3", &[2, 3, 3, 4, 5]),
            conv("num_output: 3 kernel_size: 2 bias_term: false", &[2, 2, 3, 4, 5]),
            conv("num_output: 2 kernel_size: 2 pad: 1", &[2, 1, 2, 3, 2, 2]),
            product("num_output: 33 bias_filler { value: 0.1 }"),
            product("num_output: 2 axis: 2 transpose: true bias_term: false"),
            sum("", 2),
            sum("coeff: 0.5 coeff: -2 coeff: 1", 3),
        ]
    }

    #[test]
    fn layers_that_rectify_do_so_in_every_space() {
        let mut cases = vec![];
        for (kind, more, shapes) in makers() {
            let case = Case::new(layer("Rectified", kind, shapes.len(), &more)).without_gradients();
            cases.push(shapes.into_iter().fold(case, Case::bottom));
        }
        // Backward of what is done already: true for what a layer that rectifies leaves.
        let done = |shape: Shape| Case::new(layer("Done", "r", 1, "")).bottom_of(shape, Fill::Uniform(0.5, 2.0));
        cases.extend([done([3, 4].into()), done([2, 3, 4, 5].into())]);
        check(&rectifying(), &cases);
    }

    #[test]
    fn rectified_values_have_the_bits_of_a_relu() {
        for (kind, more, shapes) in makers() {
            for dtype in [DType::F32, DType::F64] {
                let run = |text: &str, shapes: &[Shape], bottoms: &[Vec<f64>], params: Option<&Vec<Vec<f64>>>| {
                    let harness = Harness::new(&rectifying(), text, Phase::Test, dtype, shapes).unwrap();
                    let bottoms: Vec<&[f64]> = bottoms.iter().map(Vec::as_slice).collect();
                    let mut inputs = harness.forward_inputs(&bottoms).unwrap();
                    inputs.params = params.cloned().unwrap_or(inputs.params);
                    (harness.run(&inputs).unwrap().tops.remove(0), harness.plan.tops[0].shape.clone(), inputs.params)
                };
                let noise = |n: usize| (0..n).map(|i| ((i * 37 + n) % 101) as f64 / 32.0 - 1.5).collect::<Vec<f64>>();
                let bottoms: Vec<Vec<f64>> = shapes.iter().map(|s| noise(s.count())).collect();
                let text = |as_type: &str| layer(as_type, kind, shapes.len(), &more);
                let (_, _, mut params) = run(&text(kind), &shapes, &bottoms, None);
                params.iter_mut().for_each(|p| *p = noise(p.len()));
                let (plain, shape, _) = run(&text(kind), &shapes, &bottoms, Some(&params));
                let (found, ..) = run(&text("Rectified"), &shapes, &bottoms, Some(&params));
                let relu = layer("ReLU", "r", 1, "");
                let (want, ..) = run(&relu, std::slice::from_ref(&shape), std::slice::from_ref(&plain), None);
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(plain.iter().any(|&y| y < 0.0) && want.iter().any(|&y| y > 0.0), "{kind} {more}");
                assert_eq!(bits(&found), bits(&want), "{kind} {more}");
            }
        }
    }

    #[test]
    fn layers_that_cannot_rectify_say_so() {
        let cx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 0 };
        let rectifies = |text: &str| {
            let param = lgm_testkit::parse_layer(text).unwrap();
            told(&mut crate::tests::registry().build(&param, &cx).unwrap())
        };
        let conv = "convolution_param { num_output: 2 kernel_size: 1 }";
        assert!(rectifies(&layer("Convolution", "c", 1, conv)) && !rectifies(&layer("Convolution", "c", 2, conv)));
        let eltwise =
            |operation: &str| layer("Eltwise", "e", 2, &format!("eltwise_param {{ operation: {operation} }}"));
        assert_eq!(["SUM", "PROD", "MAX"].map(|op| rectifies(&eltwise(op))), [true, false, false]);
        assert!(!rectifies(&layer("Pooling", "p", 1, "pooling_param { kernel_size: 2 }")));
        assert!(!rectifies(&layer("ReLU", "r", 1, "")));
    }

    #[test]
    fn a_slope_must_be_a_number() {
        let text = r#"layer { name: "r" type: "ReLU" bottom: "x" top: "y" relu_param { negative_slope: nan } }"#;
        config_error(&crate::tests::registry(), text, &[[2].into()], &["negative_slope"]);
    }
}
