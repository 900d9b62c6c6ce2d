//! Reorg: planes cut by steps of s = `stride` into channels, as YOLO's passthrough has it; with `reverse`, channels
//! spread into planes.
//!
//! With c = C/s², let P be the blob of C channels in which channel (i·s + j)·c + k holds position (h, w), and Q the one of c
//! channels whose channel k holds that at (h·s + i, w·s + j). With `reverse` the bottom is P, [N, C, H, W], and the top Q,
//! [N, C/s², H·s, W·s]. Without, the bottom's memory is read as Q, of c channels of H·s × W·s, and P's goes to the top,
//! [N, C·s², H/s, W/s]: the elements are those of Darknet, though the shapes say otherwise. Gradient: dy moved back.
//!
//! s² divides C, and without `reverse` s divides H and W. Source: Redmon and Farhadi, "YOLO9000" (2016); the layer of
//! this name of several forks, which leave the gradient undefined.

use lgm_core::{BuildCx, Error, Node, Result, Shape, ensure};
use lgm_proto::{LayerParameter, ReorgParameter};

use crate::common::rearrange::{self, Order, Rearrange};
use crate::common::strided::Strided;

/// The layer; see the module.
pub struct Reorg {
    param: ReorgParameter,
    stride: usize,
}

impl Reorg {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = *param.reorg_param.clone().unwrap_or_default();
        let stride = param.stride.ok_or_else(|| Error::config("reorg_param must give stride"))? as usize;
        ensure!((1..1 << 16).contains(&stride), "stride must be from 1 to {}, found {stride}", (1 << 16) - 1);
        rearrange::node(Reorg { param, stride })
    }
}

impl Rearrange for Reorg {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        let &[n, channels, height, width] = &shape[..] else {
            return Err(Error::config(format!(
                "the bottom must have 4 axes (images, channels, height, width), found {shape}"
            )));
        };
        let (s, area) = (self.stride, height * width);
        ensure!(channels.is_multiple_of(s * s), "stride² is {}, which does not divide the {channels} channels", s * s);
        let reverse = self.param.reverse();
        ensure!(
            reverse || height.is_multiple_of(s) && width.is_multiple_of(s),
            "stride is {s}, which does not divide planes of {height} × {width}"
        );
        let (few, wide) = (channels / (s * s), width * s);
        let whole = (n, channels * area);
        let cut = [whole, (s, wide), (s, 1), (few, height * s * wide), (height, s * wide), (width, s)];
        let spread = [whole, (few, area), (height, width), (s, s * few * area), (width, 1), (s, few * area)];
        let (cut, spread) = (Strided::new(cut, 0), Strided::new(spread, 0));
        let (top, order) = if reverse {
            ([n, few, height * s, wide], Order::Other(spread, cut))
        } else {
            ([n, channels.saturating_mul(s * s), height / s, width / s], Order::Other(cut, spread))
        };
        Ok((top.into(), order))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'r' type: 'Reorg' bottom: 'x' top: 'y' reorg_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let case = |param: &str, shape: [usize; 4]| Case::new(layer(param)).bottom(shape);
        check(
            &registry(),
            &[
                case("stride: 2", [2, 4, 4, 6]),
                case("stride: 2 reverse: true", [2, 8, 3, 2]),
                case("stride: 3", [1, 9, 6, 3]),
                case("stride: 1", [2, 3, 2, 2]),
            ],
        );
    }

    fn run(param: &str, shape: [usize; 4]) -> Vec<f64> {
        let shape = Shape::from(shape);
        let harness =
            Harness::new(&registry(), &layer(param), Phase::Test, DType::F32, std::slice::from_ref(&shape)).unwrap();
        let x: Vec<f64> = (0..shape.count()).map(|i| i as f64).collect();
        harness.run(&harness.forward_inputs(&[&x]).unwrap()).unwrap().tops.remove(0)
    }

    #[test]
    fn elements_lie_where_the_definition_says() {
        let (s, channels, height, width) = (2, 8, 2, 4);
        let few = channels / (s * s);
        let at = |c: usize, h: usize, w: usize| (c * height + h) * width + w;
        let spread = |c: usize, h: usize, w: usize| (c * height * s + h) * width * s + w;
        let (back, forth) = (run("stride: 2 reverse: true", [1, 8, 2, 4]), run("stride: 2", [1, 8, 2, 4]));
        for c in 0..channels {
            let (k, offset) = (c % few, c / few);
            for (h, w) in (0..height).flat_map(|h| (0..width).map(move |w| (h, w))) {
                let (p, q) = (at(c, h, w), spread(k, h * s + offset / s, w * s + offset % s));
                assert_eq!((back[q], forth[p]), (p as f64, q as f64));
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |param: &str, x: Shape, needles: &[&str]| config_error(&registry(), &layer(param), &[x], needles);
        refused("", [1, 4, 2, 2].into(), &["must give stride"]);
        refused("stride: 0", [1, 4, 2, 2].into(), &["stride must be from 1", "found 0"]);
        refused("stride: 2", [4, 2, 2].into(), &["4 axes", "(4, 2, 2)"]);
        refused("stride: 2", [1, 6, 2, 2].into(), &["stride² is 4", "6 channels"]);
        refused("stride: 2", [1, 4, 3, 2].into(), &["stride is 2", "3 × 2"]);
    }
}
