//! Interp: planes brought to another size by bilinear interpolation, corners upon corners.
//!
//! With r = (H − 1)/(H' − 1), row i of the top lies at row r·i of the bottom, between two of its rows; columns alike: y is the
//! mean of the four neighbours, weighted by how near they are. A top of one row takes the first. Negative `pad_beg` and
//! `pad_end` first cut off so many rows and columns at the beginning and the end.
//!
//! The top's size H' × W', from the H × W that are left: ⌊(H − 1)/s⌋ + 1 with `shrink_factor` s, H + (H − 1)(z − 1) with
//! `zoom_factor` z, both one after the other, or `height` and `width`. Shapes: bottom [N, C, H, W]; top [N, C, H', W'].
//! Gradient: each of the four gets its weight's part of dy.
//!
//! Source: Chen et al., "DeepLab" (2015), and PSPNet's fork; the layer of this name of several forks.

use lgm_core::{
    Arg, Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Float, Formats, Fwd, Host, HostLayer, Layer, Node,
    Offer, Plan, Result, args, ensure, kernel,
};
use lgm_proto::{InterpParameter, LayerParameter};

use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;

/// The layer; see the module.
pub struct Interp {
    param: InterpParameter,
    planes: usize,
    /// Rows and columns.
    sides: [Side; 2],
}

/// An axis: `len` elements of the bottom's `input`, from `start` on, become `output`.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    input: usize,
    start: usize,
    len: usize,
    output: usize,
}

impl Side {
    fn ratio(self) -> f32 {
        if self.output > 1 { (self.len - 1) as f32 / (self.output - 1) as f32 } else { 0.0 }
    }

    /// The two elements of the bottom that element `i` of the top lies between, and how near it is to the second.
    fn between(self, i: usize) -> (usize, usize, f32) {
        // In single precision, as the forks and the kernels have it.
        let at = self.ratio() * i as f32;
        let first = (at as usize).min(self.len - 1);
        (self.start + first, self.start + (first + 1).min(self.len - 1), at - first as f32)
    }
}

impl Interp {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = *param.interp_param.clone().unwrap_or_default();
        for (name, pad) in [("pad_beg", param.pad_beg()), ("pad_end", param.pad_end())] {
            ensure!(pad <= 0, "{name} must not be positive: it cuts off elements, found {pad}");
        }
        Node::compute(Interp { param, planes: 0, sides: [Side::default(); 2] })
    }

    fn side(&self, name: &str, input: usize, given: Option<i32>) -> Result<Side> {
        let p = &self.param;
        let start = p.pad_beg().unsigned_abs() as usize;
        let cut = start + p.pad_end().unsigned_abs() as usize;
        ensure!(cut < input, "pad_beg and pad_end cut off {cut} of a {name} of {input}: nothing is left");
        let len = input - cut;
        let factor = |name: &str, value: i32| {
            usize::try_from(value)
                .ok()
                .filter(|v| *v > 0)
                .ok_or_else(|| Error::config(format!("{name} must be at least 1, found {value}")))
        };
        let (shrink, zoom) = (factor("shrink_factor", p.shrink_factor())?, factor("zoom_factor", p.zoom_factor())?);
        let shrunk = |len: usize| (len - 1) / shrink + 1;
        let zoomed = |len: usize| (len - 1).saturating_mul(zoom).saturating_add(1);
        let output = match (p.shrink_factor, p.zoom_factor, given) {
            (Some(_), None, _) => shrunk(len),
            (None, Some(_), _) => zoomed(len),
            (_, _, Some(given)) if p.height.is_some() && p.width.is_some() => factor(name, given)?,
            (Some(_), Some(_), _) => zoomed(shrunk(len)),
            _ => return Err(Error::config("interp_param must give shrink_factor, zoom_factor, or height and width")),
        };
        Ok(Side { input, start, len, output })
    }

    fn area(&self, of: fn(Side) -> usize) -> usize {
        self.sides.map(of).into_iter().product()
    }

    /// The sides as the kernels' last arguments.
    fn args(&self) -> Result<Vec<Arg>> {
        let each = |s: &Side| [s.input, s.start, s.len, s.output];
        self.sides.iter().flat_map(each).map(|n| extent(n).map(Arg::from)).collect()
    }
}

impl Layer for Interp {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(shape.len() == 4, "the bottom must have 4 axes (images, channels, height, width), found shape {shape}");
        let (height, width) = (self.param.height, self.param.width);
        self.sides = [self.side("height", shape[2], height)?, self.side("width", shape[3], width)?];
        self.planes = shape.span(0..2);
        let top = bottoms[0].with_shape(shape.splice(2..4, self.sides.map(|s| s.output)));
        Ok(Plan { flops: (8 * top.shape.count()) as u64, ..Plan::new(vec![top]) })
    }
}

impl HostLayer for Interp {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom::<T>(0)?, io.top::<T>(0)?);
        let ([down, across], area) = (self.sides, self.area(|s| s.input));
        for_rows(y, across.output, 4 * across.output, |row, y| {
            let (plane, (above, below, near)) = (row / down.output * area, down.between(row % down.output));
            let of_row = |i: usize| &x[plane + i * across.input..][..across.input];
            let (above, below, near) = (of_row(above), of_row(below), T::of(near.into()));
            for (j, y) in y.iter_mut().enumerate() {
                let (left, right, nearer) = across.between(j);
                let nearer = T::of(nearer.into());
                let mean = |row: &[T]| (T::one() - nearer) * row[left] + nearer * row[right];
                *y = (T::one() - near) * mean(above) + near * mean(below);
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff::<T>(0)?;
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let ([down, across], area) = (self.sides, self.area(|s| s.output));
        for_rows(dx, self.area(|s| s.input), 4 * area, |plane, dx| {
            dx.fill(T::zero());
            for (i, dy) in dy[plane * area..][..area].chunks(across.output.max(1)).enumerate() {
                let (above, below, near) = down.between(i);
                let near = T::of(near.into());
                for (j, &dy) in dy.iter().enumerate() {
                    let (left, right, nearer) = across.between(j);
                    let nearer = T::of(nearer.into());
                    for (row, part) in [(above, (T::one() - near) * dy), (below, near * dy)] {
                        dx[row * across.input + left] += (T::one() - nearer) * part;
                        dx[row * across.input + right] += nearer * part;
                    }
                }
            }
        });
        Ok(())
    }
}

impl DeviceLayer for Interp {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let mut args = args![io.top(0)?, io.bottom(0)?, extent(self.planes)?].to_vec();
        args.extend(self.args()?);
        args.extend(self.sides.map(|s| Arg::F32(s.ratio())));
        io.launch(kernel!("interp_forward"), row_grid(self.planes, self.area(|s| s.output)), &args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let mut args = args![dx, io.top_diff(0)?, extent(self.planes)?].to_vec();
        args.extend(self.args()?);
        args.extend(self.sides.map(|s| Arg::F32(s.ratio())));
        io.launch(kernel!("interp_backward"), row_grid(self.planes, self.area(|s| s.input)), &args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'i' type: 'Interp' bottom: 'x' top: 'y' interp_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let case = |param: &str, shape: [usize; 4]| Case::new(layer(param)).bottom(shape);
        check(
            &registry(),
            &[
                case("zoom_factor: 2", [2, 2, 3, 4]),
                case("shrink_factor: 2", [1, 2, 6, 5]),
                case("shrink_factor: 2 zoom_factor: 3", [1, 1, 4, 5]),
                case("height: 7 width: 2", [1, 2, 3, 5]),
                case("height: 1 width: 1", [1, 2, 3, 4]),
                case("height: 4 width: 3", [1, 2, 1, 1]),
                case("zoom_factor: 2 pad_beg: -1 pad_end: -2", [1, 2, 5, 6]),
                case("height: 3 width: 4", [1, 2, 3, 4]),
                case("height: 65 width: 33", [2, 3, 9, 10]).without_gradients(),
                case("height: 40 width: 7", [1, 2, 17, 40]).without_gradients(),
                case("height: 3 width: 2", [1, 2, 41, 16]).without_gradients(),
                case("height: 16 width: 34", [1, 2, 17, 17]).without_gradients(),
            ],
        );
    }

    #[test]
    fn corners_stay_and_between_them_all_is_even() {
        let run = |param: &str, shape: [usize; 4], x: &[f64]| {
            let harness = Harness::new(&registry(), &layer(param), Phase::Test, DType::F64, &[shape.into()]).unwrap();
            let out = harness.run(&harness.forward_inputs(&[x]).unwrap()).unwrap();
            (harness.plan.tops[0].shape.clone(), out.tops[0].clone())
        };
        assert_eq!(
            run("zoom_factor: 2", [1, 1, 1, 3], &[0.0, 2.0, 6.0]),
            ([1, 1, 1, 5].into(), vec![0.0, 1.0, 2.0, 4.0, 6.0])
        );
        let (shape, y) = run("height: 2 width: 3", [1, 1, 2, 2], &[0.0, 1.0, 2.0, 3.0]);
        assert_eq!((shape, y), (Shape::from([1, 1, 2, 3]), vec![0.0, 0.5, 1.0, 2.0, 2.5, 3.0]));
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |param: &str, needles: &[&str]| {
            config_error(&registry(), &layer(param), &[[1, 2, 3, 4].into()], needles);
        };
        refused("pad_beg: 1 zoom_factor: 2", &["pad_beg must not be positive", "found 1"]);
        refused("pad_end: -3 zoom_factor: 2", &["cut off 3 of a height of 3"]);
        refused("shrink_factor: 0", &["shrink_factor must be at least 1, found 0"]);
        refused("height: 0 width: 2", &["height must be at least 1, found 0"]);
        refused("height: 3", &["must give shrink_factor, zoom_factor, or height and width"]);
        config_error(&registry(), &layer("zoom_factor: 2"), &[[2, 3].into()], &["4 axes", "(2, 3)"]);
    }
}
