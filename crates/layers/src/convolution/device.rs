//! Convolution on a device: by a library where there is one, else by our own kernels.
//!
//! Our own: a matrix product of the filters and patches of a bounded number of images at a time; without patches where a
//! filter sees one element; depthwise convolution in kernels of its own.

use lgm_core::{
    Arg, BlobSpec, Bwd, ConvolutionPass, Device, DeviceConvolution, DevicePtr, DeviceQueue, Fwd, Gemm, Grid, Plan,
    Result, Run, Shape, args,
};

use super::Convolution;
use crate::on_device::{Channels, extent, product, row_grid};

/// Single-precision numbers that patches may take.
const PATCHES: usize = 32 << 20;

/// How the passes run.
#[derive(Clone, Debug)]
pub(super) struct Device2d {
    conv: DeviceConvolution,
    /// A library does forward, data, filter.
    library: [bool; 3],
    /// Where scratch begins for the bias gradient's sums, in floats; before it lie workspace or patches.
    sums: usize,
}

/// Where a pass stands among [`Device2d::library`].
fn place(pass: ConvolutionPass) -> usize {
    match pass {
        ConvolutionPass::Forward => 0,
        ConvolutionPass::Data => 1,
        ConvolutionPass::Filter => 2,
    }
}

/// Whether every group has one channel.
fn is_depthwise(c: &DeviceConvolution) -> bool {
    c.groups == c.channels
}

/// Whether patches are the input itself.
fn is_pointwise(c: &DeviceConvolution) -> bool {
    c.kernel == [1, 1] && c.stride == [1, 1] && c.pad == [0, 0]
}

fn area(extents: [usize; 2]) -> usize {
    extents[0] * extents[1]
}

/// Rows of an image's patches.
fn taps(c: &DeviceConvolution) -> usize {
    c.channels * area(c.kernel)
}

/// Images whose patches are made at a time.
fn images(c: &DeviceConvolution) -> usize {
    (PATCHES / (taps(c) * area(c.output)).max(1)).clamp(1, c.batch.max(1))
}

/// The geometry, as the kernels' last arguments.
fn geometry(c: &DeviceConvolution) -> Result<Vec<Arg>> {
    let pairs = [c.input, c.output, c.kernel, c.stride, c.pad, c.dilation];
    pairs.iter().flatten().map(|&n| extent(n).map(Arg::from)).collect()
}

fn launch(
    queue: &dyn DeviceQueue,
    kernel: &'static str,
    grid: Grid,
    own: &[Arg],
    conv: &DeviceConvolution,
) -> Result<()> {
    let mut args = own.to_vec();
    args.extend(geometry(conv)?);
    queue.launch(kernel, grid, &args)
}

/// The patches of `n` images.
fn patches(queue: &dyn DeviceQueue, c: &DeviceConvolution, n: usize, to: DevicePtr, x: DevicePtr) -> Result<()> {
    let rows = n * taps(c);
    launch(queue, "conv_patches", row_grid(rows, area(c.output)), args![to, x, extent(rows)?], c)
}

/// Extents of a group's matrices: filters are outputs × taps, patches taps × positions, tops outputs × positions.
struct Group {
    outputs: usize,
    taps: usize,
    positions: usize,
}

impl Group {
    fn of(c: &DeviceConvolution) -> Group {
        Group { outputs: c.outputs / c.groups, taps: taps(c) / c.groups, positions: area(c.output) }
    }
}

/// y = w · patches, image by image.
fn forward(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (y, x, w, b): (DevicePtr, DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        let planes = c.batch * c.outputs;
        let each = c.outputs / c.channels;
        let own = args![y, x, w, b, extent(planes)?, extent(c.outputs)?, extent(each)?];
        return launch(queue, "conv_depthwise_forward", row_grid(planes, area(c.output)), own, c);
    }
    let g = Group::of(c);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let x = x.floats(start * per_x);
        let from = if is_pointwise(c) { x } else { scratch };
        if !is_pointwise(c) {
            patches(queue, c, n, scratch, x)?;
        }
        for group in 0..c.groups {
            let w = w.floats(group * g.outputs * g.taps);
            let p = from.floats(group * g.taps * g.positions);
            let y = y.floats(start * per_y + group * g.outputs * g.positions);
            let extents = (g.outputs, g.positions, g.taps);
            queue.gemm(&Gemm {
                batch: (n, [0, per_patch, per_y]),
                ..product(extents, (w, g.taps), (p, g.positions), 0.0, (y, g.positions))
            })?;
        }
    }
    Ok(())
}

/// dx: the patches of wᵀ · dy, gathered.
fn data(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        let planes = c.batch * c.channels;
        let own = args![dx, w, dy, extent(planes)?, extent(c.channels)?, extent(c.outputs / c.channels)?];
        return launch(queue, "conv_depthwise_data", row_grid(planes, area(c.input)), own, c);
    }
    let g = Group::of(c);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let dx = dx.floats(start * per_x);
        let to = if is_pointwise(c) { dx } else { scratch };
        for group in 0..c.groups {
            let w = w.floats(group * g.outputs * g.taps);
            let p = to.floats(group * g.taps * g.positions);
            let dy = dy.floats(start * per_y + group * g.outputs * g.positions);
            let extents = (g.taps, g.positions, g.outputs);
            queue.gemm(&Gemm {
                trans_a: true,
                batch: (n, [0, per_y, per_patch]),
                ..product(extents, (w, g.taps), (dy, g.positions), 0.0, (p, g.positions))
            })?;
        }
        if !is_pointwise(c) {
            let planes = n * c.channels;
            let own = args![dx, scratch, extent(planes)?];
            launch(queue, "conv_unpatch", row_grid(planes, area(c.input)), own, c)?;
        }
    }
    Ok(())
}

/// dw += dy · patchesᵀ, image after image: the order of a sum is the order of the batch.
fn filter(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        let blocks = c.outputs * area(c.kernel);
        let own = args![dw, x, dy, extent(c.batch)?, extent(c.outputs)?, extent(c.outputs / c.channels)?];
        return launch(queue, "conv_depthwise_filter", Grid::rows(blocks, Grid::THREADS), own, c);
    }
    let g = Group::of(c);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let x = x.floats(start * per_x);
        let from = if is_pointwise(c) { x } else { scratch };
        if !is_pointwise(c) {
            patches(queue, c, n, scratch, x)?;
        }
        for image in 0..n {
            for group in 0..c.groups {
                let dy = dy.floats((start + image) * per_y + group * g.outputs * g.positions);
                let p = from.floats(image * per_patch + group * g.taps * g.positions);
                let dw = dw.floats(group * g.outputs * g.taps);
                let extents = (g.outputs, g.taps, g.positions);
                queue.gemm(&Gemm {
                    trans_b: true,
                    ..product(extents, (dy, g.positions), (p, g.positions), 1.0, (dw, g.taps))
                })?;
            }
        }
    }
    Ok(())
}

impl Convolution {
    /// The convolution in two dimensions, if it has no more.
    pub(super) fn planar(&self) -> Option<DeviceConvolution> {
        let g = self.geometry.as_ref()?;
        // One dimension is a plane of one row, none a plane of one element.
        let pair = |v: &[usize], missing: usize| match *v {
            [] => Some([missing, missing]),
            [w] => Some([missing, w]),
            [h, w] => Some([h, w]),
            _ => None,
        };
        Some(DeviceConvolution {
            batch: self.batch,
            channels: g.in_channels,
            outputs: g.out_channels,
            input: pair(&g.input, 1)?,
            output: pair(&g.output, 1)?,
            kernel: pair(&g.kernel, 1)?,
            stride: pair(&g.stride, 1)?,
            pad: pair(&g.pad, 0)?,
            dilation: pair(&g.dilation, 1)?,
            groups: g.group,
        })
    }

    fn on_device(&self) -> Result<&Device2d> {
        self.device.as_ref().ok_or_else(|| lgm_core::Error::internal("a convolution ran before it was prepared"))
    }
}

impl Device2d {
    fn outputs(&self) -> Channels {
        Channels { outer: self.conv.batch, channels: self.conv.outputs, inner: area(self.conv.output) }
    }

    fn is_library(&self, pass: ConvolutionPass) -> bool {
        self.library[place(pass)]
    }
}

impl Run<Device> for Convolution {
    fn prepare(&mut self, queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        self.volume = self.volume().map(|volume| volume.prepare(plan));
        if self.volume.is_some() {
            return Ok(());
        }
        let Some(conv) = self.planar() else {
            return Err(lgm_core::Error::internal("a device was asked for a convolution of more than three dimensions"));
        };
        let mut library = [false; 3];
        let mut floats = 0;
        for pass in [ConvolutionPass::Forward, ConvolutionPass::Data, ConvolutionPass::Filter] {
            let own = || if is_depthwise(&conv) || is_pointwise(&conv) { 0 } else { images(&conv) * taps(&conv) * area(conv.output) };
            let workspace = queue.convolution_workspace(&conv, pass)?;
            library[place(pass)] = workspace.is_some();
            floats = floats.max(workspace.map_or_else(own, |bytes| bytes.div_ceil(4)));
        }
        let top: &BlobSpec = &plan.tops[0];
        let device = Device2d { conv, library, sums: floats.next_multiple_of(64) };
        let partial = device.outputs().scratch(top, 2).shape.count();
        plan.scratch = vec![top.with_shape(Shape::from([device.sums + partial]))];
        self.device = Some(device);
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        if let Some(volume) = &self.volume {
            return volume.forward(queue, io);
        }
        let device = self.on_device()?;
        let conv = &device.conv;
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let b = if self.param.bias_term() { io.param(1)? } else { DevicePtr::NULL };
        let library = device.is_library(ConvolutionPass::Forward);
        for i in 0..self.bottoms {
            let (x, y) = (io.bottom(i)?, io.top(i)?);
            if library {
                queue.convolution(conv, ConvolutionPass::Forward, y, [x, w], scratch)?;
            } else {
                forward(queue, conv, (y, x, w, b), scratch)?;
            }
            if b != DevicePtr::NULL && (library || !is_depthwise(conv)) {
                device.outputs().affine(queue, y, y, None, Some(b))?;
            }
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        if let Some(volume) = &self.volume {
            return volume.backward(queue, io);
        }
        let device = self.on_device()?;
        let conv = &device.conv;
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let dw = io.param_diff(0);
        let db = if self.param.bias_term() { io.param_diff(1) } else { None };
        for i in 0..self.bottoms {
            let dy = io.top_diff(i)?;
            if let Some(dw) = dw {
                let x = io.bottom(i)?;
                if device.is_library(ConvolutionPass::Filter) {
                    queue.convolution(conv, ConvolutionPass::Filter, dw, [x, dy], scratch)?;
                } else {
                    filter(queue, conv, (dw, x, dy), scratch)?;
                }
            }
            if db.is_some() {
                let sums = scratch.floats(device.sums);
                device.outputs().add_sums(queue, (dy, None), (None, db), true, sums)?;
            }
            if let Some(dx) = io.bottom_diff(i) {
                if device.is_library(ConvolutionPass::Data) {
                    queue.convolution(conv, ConvolutionPass::Data, dx, [dy, w], scratch)?;
                } else {
                    data(queue, conv, (dx, w, dy), scratch)?;
                }
            }
        }
        Ok(())
    }
}
