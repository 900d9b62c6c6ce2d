//! Upsample: the values of a pooled blob back where they were found, zeros elsewhere: the inverse of a MAX Pooling, by its
//! second top.
//!
//! y\[n, c, m\[i\]\] = x\[n, c, i\], with m the indices within the plane; of several i with one m the last counts.
//! Gradient: dx\[i\] = dy\[m\[i\]\]; none to the indices. Shapes: x and m [N, C, H, W]; top [N, C, H', W'] with H' =
//! `upsample_h` and W' = `upsample_w`, or by the older fields H · `scale` (2) or `scale_h`, less 1 with `pad_out_h`, and
//! alike for the width. An index outside the plane is an error that names it.
//!
//! Without m, y\[n, c, i, j\] = x\[n, c, ⌊i H / H'⌋, ⌊j W / W'⌋\], and dx sums dy over the copies; H divides H' and W
//! divides W'.
//!
//! Source: Badrinarayanan et al., "SegNet" (2015); the layer of this name of its fork. Without m: the layer of this name
//! of YOLOv3's forks (Redmon and Farhadi, 2018).

mod nearest;

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Fault, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, args, count, ensure,
};
use lgm_proto::{LayerParameter, UpsampleParameter};

use crate::common::indices::{self, index_at};
use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;
use nearest::Nearest;

/// The layer; see the module.
pub struct Upsample {
    param: UpsampleParameter,
    planes: usize,
    area: usize,
    top_area: usize,
}

impl Upsample {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let indexed = param.bottom.len() != 1;
        let param = *param.upsample_param.clone().unwrap_or_default();
        if !indexed {
            return Node::compute(Nearest::new(param));
        }
        Node::compute(Upsample { param, planes: 0, area: 0, top_area: 0 })
    }
}

/// The extents of the top's planes.
fn extents(p: &UpsampleParameter, [height, width]: [usize; 2]) -> Result<[usize; 2]> {
    match (p.upsample_h, p.upsample_w) {
        (Some(h), Some(w)) => {
            ensure!(h > 1 && w > 1, "upsample_h and upsample_w must be at least 2, found {h} and {w}");
            return Ok([h as usize, w as usize]);
        }
        (None, None) => {}
        _ => return Err(Error::config("upsample_h and upsample_w go together; one is missing")),
    }
    let scales = match (p.scale_h, p.scale_w) {
        (Some(h), Some(w)) if p.scale.is_none() => [h as usize, w as usize],
        (None, None) => [usize::try_from(p.scale()).unwrap_or(0); 2],
        _ => return Err(Error::config("give upsample_h and upsample_w, or scale, or scale_h and scale_w")),
    };
    let side = |name: &str, n: usize, scale: usize, less: bool| {
        ensure!(scale > 1, "the scale of the {name} must be at least 2, found {scale}");
        ensure!(!less || scale == 2, "pad_out needs a scale of 2 for the {name}, found {scale}");
        Ok(n.saturating_mul(scale).saturating_sub(usize::from(less)))
    };
    Ok([side("height", height, scales[0], p.pad_out_h())?, side("width", width, scales[1], p.pad_out_w())?])
}

impl Layer for Upsample {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        if bottoms[1].shape != *shape {
            let what = "the indices, bottom 1, must have the shape of bottom 0".into();
            return Err(Error::Shape { what, expected: shape.clone(), found: bottoms[1].shape.clone() });
        }
        let extents = extents(&self.param, [shape[2], shape[3]])?;
        (self.planes, self.area, self.top_area) = (shape.span(0..2), shape.count_from(2), count(&extents));
        let top = bottoms[0].with_shape(shape.splice(2..4, extents));
        Ok(Plan { backward_bottoms: vec![1], no_gradient: vec![1], ..Plan::new(vec![top]) })
    }
}

impl HostLayer for Upsample {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, at, area) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, self.area);
        (0..at.len()).try_for_each(|i| index_at(at, i, self.top_area).map(drop))?;
        for_rows(io.top::<T>(0)?, self.top_area, self.top_area, |plane, y| {
            y.fill(T::zero());
            let found = x[plane * area..][..area].iter().zip(&at[plane * area..]);
            found.for_each(|(&x, at)| y[at.f64() as usize] = x);
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (dy, at, area) = (io.top_diff::<T>(0)?, io.bottom::<T>(1)?, self.area);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        for_rows(dx, area, area, |plane, dx| {
            let dy = &dy[plane * self.top_area..][..self.top_area];
            dx.iter_mut().zip(&at[plane * area..]).for_each(|(dx, at)| *dx = dy[at.f64() as usize]);
        });
        Ok(())
    }
}

impl DeviceLayer for Upsample {
    fn explain(&self, fault: Fault) -> Error {
        indices::explain(fault, self.top_area)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, at, y) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let (planes, area, top_area) = (extent(self.planes)?, extent(self.area)?, extent(self.top_area)?);
        let check = args![at, top_area, extent(self.planes * self.area)?, io.call.fault];
        io.launch("arrange_check", Grid::rows(1, 1024), check)?;
        io.queue().zero(y, 4 * self.planes * self.top_area)?;
        let grid = Grid::rows(self.planes.min(1 << 16), Grid::THREADS);
        io.launch("arrange_unpool", grid, args![y, x, at, planes, area, top_area])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (planes, area, top_area) = (extent(self.planes)?, extent(self.area)?, extent(self.top_area)?);
        let args = args![dx, io.top_diff(0)?, io.bottom(1)?, planes, area, top_area];
        io.launch("arrange_unpool_backward", row_grid(self.planes, self.area), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'u' type: 'Upsample' bottom: 'x' bottom: 'm' top: 'y' upsample_param {{ {param} }} }}")
    }

    /// Every window of 2 × 2 has its value in another of its corners.
    fn corners([n, c, height, width]: [usize; 4]) -> Fill {
        let corner = |i: usize| {
            let (h, w) = (i / width % height, i % width);
            (2 * h + i / 3 % 2) * 2 * width + 2 * w + i % 2
        };
        Fill::Given((0..n * c * height * width).map(|i| corner(i) as f64).collect())
    }

    #[test]
    fn cases() {
        let case =
            |param: &str, shape: [usize; 4]| Case::new(layer(param)).bottom(shape).bottom_of(shape, corners(shape));
        check(
            &registry(),
            &[
                case("", [2, 3, 2, 3]),
                case("upsample_h: 5 upsample_w: 4", [1, 2, 2, 2]),
                case("scale_h: 2 scale_w: 3", [1, 2, 2, 2]),
                case("scale: 2 pad_out_h: true", [1, 1, 1, 1]).without_gradients(),
                case("", [3, 2, 17, 19]).without_gradients(),
            ],
        );
    }

    #[test]
    fn without_indices_values_are_repeated() {
        let layer = |param: &str| layer(param).replace("bottom: 'm'", "");
        check(
            &registry(),
            &[
                Case::new(layer("scale: 2")).bottom([2, 3, 2, 3]),
                Case::new(layer("scale_h: 3 scale_w: 2")).bottom([1, 2, 3, 2]),
                Case::new(layer("upsample_h: 4 upsample_w: 9")).bottom([2, 1, 2, 3]),
                Case::new(layer("")).bottom([3, 2, 33, 35]).without_gradients(),
            ],
        );
        let shapes = [[1, 1, 2, 2].into()];
        let harness = Harness::new(&registry(), &layer(""), Phase::Test, DType::F32, &shapes).unwrap();
        let out = harness.run(&harness.forward_inputs(&[&[1.0, 2.0, 3.0, 4.0]]).unwrap()).unwrap();
        assert_eq!(out.tops[0], [1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.]);
        let needles = ["second bottom", "2 × 2 cannot become 4 × 5"];
        config_error(&registry(), &layer("upsample_h: 4 upsample_w: 5"), &shapes, &needles);
    }

    #[test]
    fn of_several_the_last_counts_in_every_space() {
        let places = (0..300).map(|i| f64::from(i * 7 % 11)).collect();
        let case = Case::new(layer("")).bottom([1, 1, 20, 15]).bottom_of([1, 1, 20, 15], Fill::Given(places));
        check(&registry(), &[case.without_gradients()]);
    }

    #[test]
    fn an_index_outside_the_plane_is_named() {
        let shapes = [[1, 1, 1, 2].into(), [1, 1, 1, 2].into()];
        let harness = Harness::new(&registry(), &layer(""), Phase::Train, DType::F32, &shapes).unwrap();
        let error = harness.run(&harness.forward_inputs(&[&[1.0, 2.0], &[3.0, 8.0]]).unwrap()).unwrap_err().to_string();
        assert!(error.contains("index 8 at position 1") && error.contains("0 to 7"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        let x: Shape = [1, 2, 3, 4].into();
        let refused =
            |param: &str, needles: &[&str]| config_error(&registry(), &layer(param), &[x.clone(), x.clone()], needles);
        refused("upsample_h: 4", &["upsample_h and upsample_w go together"]);
        refused("upsample_h: 1 upsample_w: 4", &["at least 2", "found 1 and 4"]);
        refused("scale_h: 2", &["scale_h and scale_w"]);
        refused("scale: 1", &["height", "at least 2, found 1"]);
        refused("scale: 3 pad_out_h: true", &["pad_out", "found 3"]);
        config_error(&registry(), &layer(""), &[[2, 3].into(), [2, 3].into()], &["4 axes", "(2, 3)"]);
        config_error(&registry(), &layer(""), &[x, [1, 2, 3, 3].into()], &["(1, 2, 3, 4)", "(1, 2, 3, 3)"]);
    }
}
