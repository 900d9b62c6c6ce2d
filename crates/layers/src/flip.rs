//! Flip: planes turned round, left to right with `flip_width` (true), upside down with `flip_height` (false).
//!
//! y\[n, c, i, j\] = x\[n, c, H − 1 − i or i, W − 1 − j or j\]. Gradient: dy turned round. Shapes: bottom and top
//! [N, C, H, W]. Where nothing is turned, the top is a view of the bottom. Source: the layer of this name of face
//! recognition's forks (Wang et al., "NormFace", 2017), which test with the mirrored face besides.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::{FlipParameter, LayerParameter};

use crate::common::rearrange::{self, Order, Rearrange};
use crate::common::strided::Strided;

/// The layer; see the module.
pub struct Flip {
    param: FlipParameter,
}

impl Flip {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        rearrange::node(Flip { param: *param.flip_param.clone().unwrap_or_default() })
    }
}

impl Rearrange for Flip {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        let turned = [false, false, self.param.flip_height(), self.param.flip_width()];
        if !(0..4).any(|axis| turned[axis] && shape[axis] > 1) {
            return Ok((shape.clone(), Order::Same));
        }
        let stride = |axis: usize| shape.count_from(axis + 1);
        let last = (0..4).filter(|&axis| turned[axis]).map(|axis| shape[axis].saturating_sub(1) * stride(axis)).sum();
        let axes = (0..4).map(|axis| {
            let stride = stride(axis) as isize;
            (shape[axis], if turned[axis] { -stride } else { stride })
        });
        let there = Strided::signed(axes, last);
        Ok((shape.clone(), Order::Other(there.clone(), there)))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'f' type: 'Flip' bottom: 'x' top: 'y' flip_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::new(layer("")).bottom([2, 3, 4, 5]),
                Case::new(layer("flip_height: true")).bottom([2, 3, 4, 5]),
                Case::new(layer("flip_height: true flip_width: false")).bottom([2, 1, 3, 4]),
                Case::new(layer("flip_width: false")).bottom([2, 1, 3, 4]),
                Case::new(layer("")).bottom([2, 2, 3, 1]),
                Case::new(layer("flip_height: true")).bottom([3, 5, 33, 70]).without_gradients(),
            ],
        );
    }

    #[test]
    fn planes_are_turned_round() {
        let flipped = |param: &str| {
            let shapes = [[1, 2, 2, 3].into()];
            let harness = Harness::new(&registry(), &layer(param), Phase::Test, DType::F32, &shapes).unwrap();
            let x: Vec<f64> = (0..12).map(f64::from).collect();
            harness.run(&harness.forward_inputs(&[&x]).unwrap()).unwrap().tops[0].clone()
        };
        assert_eq!(flipped(""), [2., 1., 0., 5., 4., 3., 8., 7., 6., 11., 10., 9.]);
        assert_eq!(flipped("flip_height: true"), [5., 4., 3., 2., 1., 0., 11., 10., 9., 8., 7., 6.]);
        assert_eq!(flipped("flip_height: true flip_width: false"), [3., 4., 5., 0., 1., 2., 9., 10., 11., 6., 7., 8.]);
        config_error(&registry(), &layer(""), &[[2, 3].into()], &["4 axes", "(2, 3)"]);
    }
}
