//! Convolution (cross-correlation, as all of deep learning says): y = W ∗ x + b over any number of spatial axes.
//!
//! `y[n, o, p] = b[o] + Σ W[o, c, q] · x[n, c, p · stride + q · dilation − pad]`, over the channels c of o's group and the
//! kernel positions q.
//!
//! Shapes: bottoms `[N…, C, spatial…]`, the channels at `axis`, all of one shape; a top for each,
//! `[N…, O, (spatial + 2 · pad − dilation · (kernel − 1) − 1) / stride + 1 …]`, the quotient rounded to zero as in Caffe, so that there
//! is one position too where the kernel reaches beyond the padded input by less than a stride; O is `num_output`. Parameters, shared by
//! all bottoms: W `[O, C / group, kernel…]` and, unless `bias_term` is false, b `[O]`.
//! Gradient: dx is dy spread back through W; `dW[o, c, q] = Σ dy[n, o, p] · x[n, c, …]`; `db[o] = Σ dy[n, o, p]`.
//!
//! `kernel_size`, `stride`, `pad` and `dilation` are given once for all spatial axes or once for each; with two axes, the
//! first three also as `kernel_h` and `kernel_w`, and so on. With two axes `pad_t`, `pad_b`, `pad_l` and `pad_r`, of Synopsys' fork,
//! pad each side by its own; on a GPU our own kernels compute such, not a library. `engine` and `force_nd_im2col` choose nothing here.
//!
//! ConvolutionDepthwise and DepthwiseConvolution are the same with as many groups as channels, and `num_output` as many.
//!
//! Source: Caffe's layer of this name; depthwise, those of several forks.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result,
    Shape, Window, ensure,
};
use lgm_cpu::{ConvGeometry, Epilogue, elementwise};
use lgm_proto::{ConvolutionParameter, LayerParameter};

use crate::common::shapes::sides;

mod deconvolution;
mod depthwise;
mod device;
mod direct;
mod geometry;
mod im2col;
mod reorder;
mod volume;

pub use deconvolution::Deconvolution;
pub use im2col::Im2col;

/// The layer; see the module.
pub struct Convolution {
    param: ConvolutionParameter,
    /// The layer is Deconvolution: its forward is this convolution's backward-data pass, its gradient by its bottoms this
    /// convolution's forward pass.
    transposed: bool,
    /// The layer is of a type that has a filter for each channel alone.
    depthwise: bool,
    geometry: Option<ConvGeometry>,
    batch: usize,
    bottoms: usize,
    relu: bool,
    device: Option<device::Device2d>,
    volume: Option<volume::Volume>,
}

impl Convolution {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Convolution::node(param, false)
    }

    fn node(param: &LayerParameter, transposed: bool) -> Result<Node> {
        let bottoms = param.bottom.len();
        let depthwise = matches!(param.r#type(), "ConvolutionDepthwise" | "DepthwiseConvolution");
        let mut param = param.convolution_param.clone().unwrap_or_default();
        let outputs = param.num_output();
        ensure!(outputs > 0, "convolution_param needs a num_output of at least 1");
        if depthwise {
            let group = param.group.replace(outputs).unwrap_or(outputs);
            ensure!(
                group == 1 || group == outputs,
                "group is the number of channels here, num_output {outputs}; found {group}: take it out"
            );
        }
        let (geometry, device, volume) = (None, None, None);
        let (batch, relu) = (0, false);
        Node::compute(Convolution { param, transposed, depthwise, geometry, batch, bottoms, relu, device, volume })
    }

    /// On a device with three spatial axes.
    fn volume(&self) -> Option<volume::Volume> {
        let end = (self.param.bias_term(), self.relu);
        volume::Volume::of(self.geometry.as_ref()?, self.transposed, self.batch, self.bottoms, end)
    }

    /// A top, as the bias sees it.
    fn tops(&self, geometry: &ConvGeometry) -> Axes3 {
        match self.transposed {
            true => Axes3::new(self.batch, geometry.in_channels, geometry.input_area()),
            false => Axes3::new(self.batch, geometry.out_channels, geometry.output_area()),
        }
    }

    fn geometry(&self) -> Result<&ConvGeometry> {
        self.geometry.as_ref().ok_or_else(|| Error::internal("a convolution ran before it was planned"))
    }
}

/// The windows along the spatial axes of so many positions of the bottom.
fn windows(p: &ConvolutionParameter, bottom: &[usize], transposed: bool) -> Result<Vec<Window>> {
    let axes = bottom.len();
    let (high, wide) = (("kernel_h", p.kernel_h), ("kernel_w", p.kernel_w));
    let kernel = per_axis("kernel_size", &p.kernel_size, high, wide, axes, None)?;
    let stride = per_axis("stride", &p.stride, ("stride_h", p.stride_h), ("stride_w", p.stride_w), axes, Some(1))?;
    let pad = per_axis("pad", &p.pad, ("pad_h", p.pad_h), ("pad_w", p.pad_w), axes, Some(0))?;
    let sides = sides([p.pad_t, p.pad_b, p.pad_l, p.pad_r])?;
    if sides.is_some() {
        let given = !p.pad.is_empty() || p.pad_h.is_some() || p.pad_w.is_some();
        ensure!(!given, "both pad and pad_t, pad_b, pad_l or pad_r are given; keep one way");
        ensure!(axes == 2, "pad_t, pad_b, pad_l and pad_r are for two spatial axes; the bottom has {axes}: use pad");
        ensure!(!transposed, "pad_t, pad_b, pad_l and pad_r are for Convolution; Deconvolution takes pad");
    }
    let dilation = per_axis("dilation", &p.dilation, ("", None), ("", None), axes, Some(1))?;
    let window = |i: usize| {
        let made = match sides {
            None if transposed => Window::transposed(bottom[i], kernel[i], stride[i], pad[i], dilation[i]),
            _ => {
                let pad = sides.map_or([pad[i]; 2], |sides| sides[i]);
                Window::of_convolution(bottom[i], kernel[i], stride[i], pad, dilation[i])
            }
        };
        made.map_err(|error| Error::config(format!("spatial axis {i}: {error}")))
    };
    (0..axes).map(window).collect()
}

type Named = (&'static str, Option<u32>);

/// One value for each of `axes` axes, from a repeated field `name` or, with two axes, from the fields `h` and `w`.
fn per_axis(name: &str, list: &[u32], h: Named, w: Named, axes: usize, default: Option<u32>) -> Result<Vec<usize>> {
    if h.1.is_some() || w.1.is_some() {
        ensure!(axes == 2, "{} and {} are for two spatial axes; the bottom has {axes}: use {name}", h.0, w.0);
        ensure!(list.is_empty(), "both {name} and {} or {} are given; keep one way", h.0, w.0);
        let value = |(field, value): Named| {
            let given = value.or(default.filter(|&d| d == 0));
            given
                .map(|v| v as usize)
                .ok_or_else(|| Error::config(format!("{} and {} go together; {field} is missing", h.0, w.0)))
        };
        return Ok(vec![value(h)?, value(w)?]);
    }
    match (list, default) {
        ([], None) if axes > 0 => Err(Error::config(format!("{name} is missing"))),
        ([], default) => Ok(vec![default.unwrap_or_default() as usize; axes]),
        ([one], _) => Ok(vec![*one as usize; axes]),
        _ => {
            ensure!(
                list.len() == axes,
                "{name} must be given once, or once for each of the {axes} spatial axes; found {} times",
                list.len()
            );
            Ok(list.iter().map(|&v| v as usize).collect())
        }
    }
}

impl Layer for Convolution {
    // More than three spatial axes run on the host.
    fn arity(&self) -> Arity {
        Arity::pairs()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let (p, shape) = (&self.param, &bottoms[0].shape);
        for (i, bottom) in bottoms.iter().enumerate() {
            if bottom.shape != *shape {
                let what = format!("bottom {i} shares the weights of bottom 0 and must have its shape");
                return Err(Error::Shape { what, expected: shape.clone(), found: bottom.shape.clone() });
            }
        }
        let axis = shape.axis(p.axis())?;
        let (channels, outputs, group) = (shape[axis], p.num_output() as usize, p.group() as usize);
        ensure!(
            !self.depthwise || channels == outputs,
            "a depthwise convolution gives as many channels as it has: num_output is {outputs}, the bottom {shape} has \
             {channels}"
        );
        let make = if self.transposed { ConvGeometry::transposed } else { ConvGeometry::new };
        let geometry = make(channels, outputs, group, windows(p, &shape[axis + 1..], self.transposed)?)?;

        let along = |extent: fn(&Window) -> usize| geometry.windows.iter().map(extent);
        let positions = along(if self.transposed { |w| w.input } else { |w| w.output });
        let top = shape.splice(axis..shape.len(), [outputs].into_iter().chain(positions));
        let mut plan = Plan::new(vec![bottoms[0].with_shape(top); tops]);
        let filters = [geometry.out_channels, geometry.in_channels / group];
        let weight = Shape::new(filters.into_iter().chain(along(|w| w.kernel)));
        plan.params = vec![ParamSpec::new(weight, p.weight_filler.as_ref())];
        if p.bias_term() {
            plan.params.push(ParamSpec::new([outputs], p.bias_filler.as_ref()));
        }
        self.batch = shape.span(0..axis);
        plan.flops = (geometry.multiply_adds(self.batch) as u64).saturating_mul(2 * self.bottoms as u64);
        plan.backward_bottoms = (0..self.bottoms).collect();
        self.geometry = Some(geometry);
        Ok(plan)
    }

    fn fuse_relu(&mut self) -> bool {
        self.relu = self.bottoms == 1;
        self.relu
    }
}

impl HostLayer for Convolution {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let geometry = self.geometry()?;
        let w = io.param::<T>(0)?;
        let bias = if self.param.bias_term() { Some(io.param::<T>(1)?) } else { None };
        let epilogue = Epilogue { bias, relu: self.relu };
        for i in 0..self.bottoms {
            let (x, y) = (io.bottom::<T>(i)?, io.top::<T>(i)?);
            match self.transposed {
                true => geometry.forward_transposed(self.batch, x, w, epilogue, y),
                false => geometry.forward(self.batch, x, w, epilogue, y),
            }
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let geometry = self.geometry()?;
        let mut dw = io.param_diff::<T>(0)?;
        let mut db = if self.param.bias_term() { io.param_diff::<T>(1)? } else { None };
        for i in 0..self.bottoms {
            let dy = io.top_diff::<T>(i)?;
            if let Some(dw) = &mut dw {
                let x = io.bottom::<T>(i)?;
                let (input, output) = if self.transposed { (dy, x) } else { (x, dy) };
                geometry.backward_weights(self.batch, input, output, dw);
            }
            if let Some(db) = &mut db {
                elementwise::sum_per_channel(dy, self.tops(geometry), db);
            }
            if let Some(dx) = io.bottom_diff::<T>(i)? {
                let w = io.param::<T>(0)?;
                match self.transposed {
                    true => geometry.forward(self.batch, dy, w, Epilogue::default(), dx),
                    false => geometry.backward_data(self.batch, w, dy, dx),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'c' type: 'Convolution' bottom: 'x' top: 'y' convolution_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let golden = |i: usize| Case::golden(&format!("layers/conv_{i}"));
        check(
            &registry(),
            &[
                Case::new(layer("num_output: 3 kernel_size: 3 pad_t: 2 pad_r: 1")).bottom([2, 2, 5, 4]),
                Case::new(layer("num_output: 2 kernel_size: 1 pad_b: 1")).bottom([2, 3, 3, 2]),
                Case::new(layer("num_output: 4 kernel_size: 3 stride: 2 group: 4 pad_b: 1 pad_r: 1")).bottom([2, 4, 4, 6]),
                Case::new(layer("num_output: 16 kernel_size: 3 pad_l: 1 pad_b: 2")).bottom([1, 16, 13, 14]).without_gradients(),
                Case::new(layer("num_output: 2 kernel_size: 3 dilation: 2 stride: 2 pad_t: 3 pad_l: 1")).bottom([1, 2, 6, 7]),
                golden(0),
                golden(1),
                golden(2),
                golden(3),
                golden(4),
                golden(5),
                Case::golden("layers/conv_two_bottoms"),
                Case::new(layer("num_output: 4 kernel_size: 3 pad: 1 group: 4 stride: 2")).bottom([2, 4, 5, 4]),
                Case::new(layer("num_output: 6 kernel_size: 3 pad: 1 group: 2 stride: 2")).bottom([2, 4, 5, 4]),
                Case::new(layer("num_output: 4 kernel_size: 2 dilation: 2 pad: 1 group: 2")).bottom([1, 6, 4, 5]),
                Case::new(layer("num_output: 8 kernel_size: 1 group: 4")).bottom([2, 8, 3, 3]),
                Case::new(layer("num_output: 8 kernel_size: 3 pad: 1 group: 8")).bottom([2, 8, 3, 5]),
                Case::new(layer("num_output: 8 kernel_h: 2 kernel_w: 3 group: 4 dilation: 2").replace("bottom: 'x' top: 'y'", "bottom: 'x' bottom: 'z' top: 'y' top: 'v'"))
                    .bottom([1, 4, 4, 6])
                    .bottom([1, 4, 4, 6]),
                Case::new(layer("num_output: 2 kernel_size: 3 kernel_size: 2 dilation: 1 dilation: 2"))
                    .bottom([1, 3, 4, 5]),
                Case::new(layer("num_output: 3 kernel_size: 3 axis: 2 force_nd_im2col: true")).bottom([2, 2, 3, 4, 4]),
                Case::new(layer("num_output: 2 kernel_size: 3 pad: 1 engine: CUDNN")).bottom([2, 3, 6]),
                Case::new(layer("num_output: 2 bias_term: false")).bottom([3, 4]),
                Case::new(layer("num_output: 2 kernel_size: 2 stride: 2 pad: 1 dilation: 2 group: 2"))
                    .bottom([1, 4, 3, 3, 4]),
                Case::new(layer("num_output: 3 kernel_size: 1 kernel_size: 2 kernel_size: 3 pad: 0 pad: 1 pad: 2 stride: 1 stride: 2 stride: 3"))
                    .bottom([2, 2, 2, 5, 7]),
                Case::new(layer("num_output: 4 kernel_size: 3 bias_term: false group: 4").replace("bottom: 'x' top: 'y'", "bottom: 'x' bottom: 'z' top: 'y' top: 'v'"))
                    .bottom([3, 4, 3, 4, 3])
                    .bottom([3, 4, 3, 4, 3]),
                Case::new(layer("num_output: 2 kernel_size: 2 pad: 1")).bottom([2, 1, 2, 3, 2, 2]),
            ],
        );
    }

    /// By less than a stride; what is there counts as 0.
    #[test]
    fn a_kernel_may_reach_beyond_the_input() {
        let case = |param: &str, shape: &[usize]| Case::new(layer(param)).bottom(shape);
        check(
            &registry(),
            &[
                case("num_output: 3 kernel_size: 5 stride: 3", &[2, 2, 3, 4]),
                case("num_output: 4 kernel_size: 3 stride: 4 pad: 1 dilation: 2 group: 4", &[2, 4, 2, 1]),
                case("num_output: 16 kernel_size: 3 stride: 2", &[2, 16, 2, 2]).without_gradients(),
                case("num_output: 32 kernel_size: 4 stride: 2", &[4, 32, 3, 5]).without_gradients(),
                case("num_output: 32 kernel_size: 4 stride: 2 pad: 1", &[1, 32, 1, 9]).without_gradients(),
                case("num_output: 2 kernel_size: 2 stride: 2 stride: 1 group: 2", &[1, 4, 1, 3]),
                case("num_output: 2 kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 2 pad_t: 1", &[1, 2, 1, 1]),
                case("num_output: 3 kernel_size: 4 stride: 3", &[2, 3, 2]),
                case("num_output: 2 kernel_size: 3 stride: 3", &[1, 2, 1, 4, 2]),
            ],
        );
        let ones = "weight_filler { type: 'constant' value: 1 } bias_term: false";
        let text = layer(&format!("num_output: 1 kernel_size: 5 stride: 3 {ones}"));
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &[[1, 1, 3, 4].into()]).unwrap();
        let x: Vec<f64> = (1..13).map(f64::from).collect();
        assert_eq!(harness.run(&harness.forward_inputs(&[&x]).unwrap()).unwrap().tops[0], [78.0]);
        let far = layer("num_output: 1 kernel_size: 5 stride: 2");
        config_error(&registry(), &far, &[[1, 1, 3, 6].into()], &["spatial axis 0", "reaches over 5", "has 3"]);
    }

    #[test]
    fn plan() {
        let text = layer("num_output: 4 group: 2 kernel_h: 3 kernel_w: 5 pad_w: 2 stride_h: 2 stride_w: 1");
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 6, 9, 8].into()]).unwrap();
        assert_eq!(harness.plan.tops[0].shape, Shape::from([2, 4, 4, 8]));
        assert_eq!(harness.params[0].shape, Shape::from([4, 3, 3, 5]));
        assert_eq!(harness.plan.flops, 2 * (2 * 4 * 4 * 8) * (3 * 3 * 5));
    }

    #[test]
    fn depthwise_types_have_a_group_for_each_channel() {
        let text = |kind: &str, param: &str| layer(param).replace("'Convolution'", &format!("'{kind}'"));
        let case = |kind: &str, param: &str| Case::new(text(kind, param)).bottom([2, 4, 5, 4]);
        check(
            &registry(),
            &[
                case("ConvolutionDepthwise", "num_output: 4 kernel_size: 3 pad: 1"),
                case("DepthwiseConvolution", "num_output: 4 kernel_size: 3 stride: 2 group: 4 bias_term: false"),
            ],
        );
        let refused = |param: &str, needles: &[&str]| {
            config_error(&registry(), &text("DepthwiseConvolution", param), &[[1, 4, 6, 6].into()], needles);
        };
        refused("num_output: 4 kernel_size: 3 group: 2", &["number of channels", "num_output 4; found 2"]);
        refused("num_output: 2 kernel_size: 3", &["num_output is 2", "has 4"]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = [Shape::from([1, 4, 6, 6])];
        for (param, needles) in [
            ("kernel_size: 3", &["num_output"][..]),
            ("num_output: 2 kernel_size: 3 pad: 1 pad_l: 1", &["both pad and pad_t"]),
            ("num_output: 2 kernel_size: 3 pad_t: -1", &["padding must not be negative", "-1"]),
            ("num_output: 2", &["kernel_size is missing"]),
            ("num_output: 2 kernel_size: 0", &["kernel size", "positive"]),
            ("num_output: 2 kernel_size: 3 stride: 0", &["stride", "positive"]),
            ("num_output: 2 kernel_size: 7", &["7", "6"]),
            ("num_output: 2 kernel_size: 3 dilation: 3", &["7", "6"]),
            ("num_output: 3 kernel_size: 1 group: 2", &["group (2)", "(3)"]),
            ("num_output: 3 kernel_size: 1 group: 3", &["group (3)", "(4)"]),
            ("num_output: 2 kernel_size: 3 group: 0", &["group must be positive"]),
            ("num_output: 2 kernel_h: 3", &["kernel_w is missing"]),
            ("num_output: 2 kernel_size: 3 stride_w: 3", &["stride_h is missing"]),
            ("num_output: 2 kernel_h: 3 kernel_w: 3 kernel_size: 3", &["both kernel_size and kernel_h"]),
            (
                "num_output: 2 kernel_size: 3 pad: 1 pad: 1 pad: 1",
                &["pad must be given once", "2 spatial axes", "3 times"],
            ),
            ("num_output: 2 kernel_size: 3 axis: 4", &["axis 4", "out of range"]),
        ] {
            config_error(&registry(), &layer(param), &x, needles);
        }
        let three = [Shape::from([1, 2, 3, 3, 3])];
        config_error(
            &registry(),
            &layer("num_output: 2 kernel_h: 1 kernel_w: 1"),
            &three,
            &["two spatial axes", "has 3"],
        );
        let two = "layer { name: 'c' type: 'Convolution' bottom: 'a' bottom: 'b' top: 'c' top: 'd' \
                   convolution_param { num_output: 1 kernel_size: 1 } }";
        config_error(&registry(), two, &[[1, 2, 3].into(), [1, 2, 4].into()], &["bottom 1", "(1, 2, 3)", "(1, 2, 4)"]);
    }
}
