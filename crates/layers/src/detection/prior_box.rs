//! PriorBox: for every position of a blob, boxes of given sizes and shapes around it, and the variances of offsets from them.
//!
//! The centre of position (row, column) is at ((column + o) · step_w, (row + o) · step_h) of the image, with o = `offset`. Around it,
//! for each `min_size` s: a square of s; if there are `max_size`s, one of √(s · its max_size); and for each `aspect_ratio` r, and
//! with `flip` 1 / r, a box of s · √r by s / √r. With `clip` corners lie within the image. Sizes count in whole pixels, as in SSD's
//! Caffe.
//!
//! PriorBoxClustered has boxes of each `width` and `height` instead, in pixels and as they are.
//!
//! Bottoms: the blob `[N, C, H, W]`; the images `[N, C', height, width]`, whose size `img_size`, or `img_h` and `img_w`, may replace;
//! steps are image over blob unless `step`, or `step_h` and `step_w`, are given. Top `[1, 2, H · W · boxes · 4]`: the corners of each box,
//! and the `variance`s, one for all (0.1) or four, of each. No gradient.
//!
//! Source: see [`super`]; PriorBoxClustered is of OpenCV's training toolbox.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, Error, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer,
    Plan, Result, Shape, args, ensure,
};
use lgm_cpu::for_each_row;
use lgm_proto::{LayerParameter, PriorBoxParameter};

use crate::common::launch::{extent, row_grid};

/// The layer; see the module.
pub struct PriorBox {
    param: PriorBoxParameter,
    /// Width and height of the boxes around a position, in pixels.
    sizes: Vec<[f32; 2]>,
    variances: [f32; 4],
    /// Height and width of the blob.
    positions: [usize; 2],
    /// Height and width of the image.
    image: [f32; 2],
    /// Pixels from a position to the next, down and across.
    steps: [f32; 2],
}

/// PriorBox with boxes of given widths and heights; see the module.
pub struct PriorBoxClustered;

impl PriorBoxClustered {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        PriorBox::with_sizes(param, clustered)
    }
}

/// Ratios nearer than this are the same.
const SAME: f32 = 1e-6;

impl PriorBox {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        PriorBox::with_sizes(param, sizes)
    }

    fn with_sizes(param: &LayerParameter, sizes: fn(&PriorBoxParameter) -> Result<Vec<[f32; 2]>>) -> Result<Node> {
        let param = param.prior_box_param.clone().map(|p| *p).unwrap_or_default();
        let sizes = sizes(&param)?;
        let variances = match param.variance[..] {
            [] => [0.1; 4],
            [one] => [one; 4],
            [a, b, c, d] => [a, b, c, d],
            _ => {
                let found = param.variance.len();
                return Err(Error::config(format!("variance must be given once or four times, found {found} times")));
            }
        };
        ensure!(variances.iter().all(|&v| v > 0.0), "every variance must be positive, found {variances:?}");
        Node::compute(PriorBox { param, sizes, variances, positions: [0; 2], image: [0.0; 2], steps: [0.0; 2] })
    }

    /// Corner `k` of box `i` of those of a row of positions.
    fn corner(&self, row: usize, i: usize, k: usize) -> f32 {
        let (column, size) = (i / self.sizes.len(), self.sizes[i % self.sizes.len()]);
        let across = k.is_multiple_of(2);
        let (at, axis) = if across { (column, 1) } else { (row, 0) };
        let center = (at as f32 + self.param.offset()) * self.steps[axis];
        let half = size[usize::from(!across)] / 2.0;
        let corner = (if k < 2 { center - half } else { center + half }) / self.image[axis];
        if self.param.clip() { corner.clamp(0.0, 1.0) } else { corner }
    }
}

/// One number for both axes, or one for each, rows first; nothing where neither is given.
fn pair(name: &str, both: Option<f32>, h: Option<f32>, w: Option<f32>) -> Result<Option<[f32; 2]>> {
    let found = match (both, h, w) {
        (None, None, None) => return Ok(None),
        (Some(v), None, None) => [v, v],
        (None, Some(h), Some(w)) => [h, w],
        (None, ..) => return Err(Error::config(format!("{name}_h and {name}_w go together; one is missing"))),
        _ => return Err(Error::config(format!("{name} is given for both axes and for each; keep one way"))),
    };
    ensure!(found.iter().all(|&v| v > 0.0 && v.is_finite()), "every {name} must be a positive number, found {found:?}");
    Ok(Some(found))
}

/// Width and height of the boxes around a position, given as such.
fn clustered(p: &PriorBoxParameter) -> Result<Vec<[f32; 2]>> {
    ensure!(
        p.min_size.is_empty() && p.max_size.is_empty() && p.aspect_ratio.is_empty(),
        "boxes are given by width and height; min_size, max_size and aspect_ratio are PriorBox's"
    );
    ensure!(
        !p.width.is_empty() && p.width.len() == p.height.len(),
        "prior_box_param needs widths and as many heights, at least one, found {} and {}",
        p.width.len(),
        p.height.len()
    );
    for (name, values) in [("width", &p.width), ("height", &p.height)] {
        let wrong = values.iter().find(|v| !(v.is_finite() && **v > 0.0));
        ensure!(
            wrong.is_none(),
            "every {name} must be a positive number, found {}",
            wrong.copied().unwrap_or_default()
        );
    }
    Ok(p.width.iter().zip(&p.height).map(|(&width, &height)| [width, height]).collect())
}

/// Width and height of the boxes around a position.
fn sizes(p: &PriorBoxParameter) -> Result<Vec<[f32; 2]>> {
    ensure!(p.width.is_empty() && p.height.is_empty(), "width and height are PriorBoxClustered's; set that type");
    ensure!(!p.min_size.is_empty(), "prior_box_param needs a min_size");
    ensure!(
        p.max_size.is_empty() || p.max_size.len() == p.min_size.len(),
        "there must be no max_size or one for each of the {} min_sizes, found {}",
        p.min_size.len(),
        p.max_size.len()
    );
    let mut ratios: Vec<f32> = Vec::new();
    for &ratio in &p.aspect_ratio {
        ensure!(ratio > 0.0 && ratio.is_finite(), "every aspect_ratio must be a positive number, found {ratio}");
        let is_there = (ratio - 1.0).abs() < SAME || ratios.iter().any(|r| (r - ratio).abs() < SAME);
        if !is_there {
            ratios.push(ratio);
            ratios.extend(p.flip().then_some(1.0 / ratio));
        }
    }
    let mut sizes = Vec::new();
    for (i, &min) in p.min_size.iter().enumerate() {
        ensure!(min >= 1.0 && min.is_finite(), "every min_size must be at least one pixel, found {min}");
        let min_pixels = min.trunc();
        sizes.push([min_pixels; 2]);
        if let Some(&max) = p.max_size.get(i) {
            ensure!(max > min && max.is_finite(), "max_size {max} must be greater than the min_size, {min}");
            sizes.push([(min_pixels * max.trunc()).sqrt(); 2]);
        }
        sizes.extend(ratios.iter().map(|r| [min_pixels * r.sqrt(), min_pixels / r.sqrt()]));
    }
    Ok(sizes)
}

impl Layer for PriorBox {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let p = &self.param;
        for (i, bottom) in bottoms.iter().enumerate() {
            let shape = &bottom.shape;
            ensure!(
                shape.len() == 4 && shape.count() > 0,
                "bottom {i} must have 4 axes (images, channels, height, width) and not be empty, found shape {shape}"
            );
        }
        let extents = |i: usize| [2, 3].map(|axis| bottoms[i].shape[axis]);
        self.positions = extents(0);
        let given = pair("img", p.img_size.map(|v| v as f32), p.img_h.map(|v| v as f32), p.img_w.map(|v| v as f32))?;
        self.image = given.unwrap_or(extents(1).map(|n| n as f32));
        let [height, width] = self.positions;
        let steps = pair("step", p.step, p.step_h, p.step_w)?;
        self.steps = steps.unwrap_or([self.image[0] / height as f32, self.image[1] / width as f32]);
        let numbers = lgm_core::count(&[height, width, self.sizes.len(), 4]);
        Ok(Plan { no_backward: true, ..Plan::new(vec![bottoms[0].with_shape(Shape::from([1, 2, numbers]))]) })
    }
}

impl HostLayer for PriorBox {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let row = self.positions[1] * self.sizes.len() * 4;
        for_each_row(io.top::<T>(0)?, row, |r, out| {
            for (at, out) in out.iter_mut().enumerate() {
                *out = T::of(f64::from(match r < self.positions[0] {
                    true => self.corner(r, at / 4, at % 4),
                    false => self.variances[at % 4],
                }));
            }
        });
        Ok(())
    }
}

impl DeviceLayer for PriorBox {
    /// The bottoms as they come: only their extents count.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        Formats { bottoms: offer.arriving.into(), ..Formats::default() }
    }

    /// The sizes, then the variances.
    fn dynamic(&self) -> Vec<f32> {
        self.sizes.as_flattened().iter().chain(&self.variances).copied().collect()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let ([height, width], boxes) = (self.positions, self.sizes.len());
        let (numbers, y) = (io.call.dynamic, io.top(0)?);
        let args = args![
            y,
            numbers,
            numbers.floats(2 * boxes),
            extent(height)?,
            extent(width)?,
            extent(boxes)?,
            self.param.offset(),
            self.steps[0],
            self.steps[1],
            self.image[0],
            self.image[1],
            u32::from(self.param.clip()),
        ];
        io.launch("prior_box", row_grid(2 * height, width * boxes), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'p' type: 'PriorBox' bottom: 'x' bottom: 'data' top: 'y' prior_box_param {{ {param} }} }}"
        )
    }

    #[test]
    fn cases() {
        let case = |param: &str| Case::new(layer(param)).bottom([2, 3, 3, 5]).bottom([2, 1, 30, 40]);
        check(
            &registry(),
            &[
                case("min_size: 7"),
                case(
                    "min_size: 7.9 max_size: 20 aspect_ratio: 2 aspect_ratio: 3 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2",
                ),
                case("min_size: 4 min_size: 9 aspect_ratio: 2 aspect_ratio: 0.5 flip: true clip: true variance: 0.3"),
                case("min_size: 4 aspect_ratio: 1 aspect_ratio: 2 flip: false step: 8 offset: 0.25 img_size: 64"),
                case("min_size: 4 step_h: 8 step_w: 16 img_h: 24 img_w: 80"),
            ],
        );
    }

    fn clustered(param: &str) -> String {
        layer(param).replace("'PriorBox'", "'PriorBoxClustered'")
    }

    #[test]
    fn clustered_boxes_have_their_widths_and_heights() {
        let text = clustered("width: 10 height: 5 width: 4.5 height: 20 step: 16");
        check(&registry(), &[Case::new(&text).bottom([2, 3, 3, 5]).bottom([2, 1, 30, 40])]);
        let shapes = [Shape::from([1, 1, 1, 1]), [1, 1, 20, 40].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &shapes).unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[0.0], &[0.0; 800]]).unwrap()).unwrap();
        // Around (8, 8).
        let want = [0.075, 0.275, 0.325, 0.525, 0.14375, -0.1, 0.25625, 0.9];
        lgm_testkit::assert_close("boxes", &out.tops[0][..8], &want, 1e-6);
    }

    #[test]
    fn boxes_lie_around_their_centres() {
        let text =
            layer("min_size: 10 max_size: 40 aspect_ratio: 4 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2");
        let shapes = [Shape::from([1, 1, 1, 2]), [1, 1, 20, 40].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F32, &shapes).unwrap();
        assert_eq!(harness.plan.tops[0].shape, Shape::from([1, 2, 2 * 4 * 4]));
        let out = harness.run(&harness.forward_inputs(&[&[0.0; 2], &[0.0; 800]]).unwrap()).unwrap();
        let near = |found: &[f64], want: [f64; 4]| found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        let y = &out.tops[0];
        assert!(near(&y[0..4], [0.125, 0.25, 0.375, 0.75]), "a square of 10 around (10, 10)");
        assert!(near(&y[4..8], [0.0, 0.0, 0.5, 1.0]), "a square of 20");
        assert!(near(&y[8..12], [0.0, 0.375, 0.5, 0.625]), "20 by 5");
        assert!(near(&y[12..16], [0.1875, 0.0, 0.3125, 1.0]), "5 by 20");
        assert!(near(&y[16..20], [0.625, 0.25, 0.875, 0.75]), "around (30, 10)");
        assert!(near(&y[60..64], [0.1, 0.1, 0.2, 0.2]));
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [Shape::from([1, 1, 2, 2]), [1, 1, 8, 8].into()];
        for (param, needles) in [
            ("", &["needs a min_size"][..]),
            ("min_size: 0", &["min_size", "at least one pixel", "0"]),
            ("min_size: 4 min_size: 8 max_size: 9", &["one for each of the 2 min_sizes", "found 1"]),
            ("min_size: 4 max_size: 4", &["max_size 4", "greater"]),
            ("min_size: 4 aspect_ratio: 0", &["aspect_ratio", "positive"]),
            ("min_size: 4 variance: 0.1 variance: 0.2", &["once or four times", "found 2"]),
            ("min_size: 4 variance: -1", &["variance", "positive"]),
            ("min_size: 4 step_h: 2", &["step_h and step_w go together"]),
            ("min_size: 4 step: 2 step_w: 2", &["step is given for both axes and for each"]),
            ("min_size: 4 img_h: 2 img_w: 0", &["every img must be a positive number"]),
        ] {
            config_error(&registry(), &layer(param), &shapes, needles);
        }
        let wrong = |text: &str, needles: &[&str]| config_error(&registry(), text, &shapes, needles);
        wrong(&layer("min_size: 4 width: 3 height: 3"), &["PriorBoxClustered"]);
        wrong(&clustered("min_size: 4 width: 3 height: 3"), &["min_size", "PriorBox's"]);
        wrong(&clustered("width: 3 width: 4 height: 3"), &["found 2 and 1"]);
        wrong(&clustered("width: 3 height: -1"), &["every height", "-1"]);
        config_error(
            &registry(),
            &layer("min_size: 4"),
            &[[1, 2].into(), [1, 1, 8, 8].into()],
            &["bottom 0", "4 axes"],
        );
    }
}
