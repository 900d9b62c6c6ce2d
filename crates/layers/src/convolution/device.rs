//! Convolution on a device: by a library where there is one, else by our own kernels.
//!
//! Our own: a matrix product of the filters and patches of a bounded number of images at a time; without patches where a
//! filter sees one element; depthwise convolution in kernels of its own. With channels last, one product for all those
//! images.
//!
//! Blobs that are not stored plainly meet filters that are stored alike, in scratch memory: their elements rounded, and
//! their channels last if the blobs' are. Filters' gradients are added up in single precision.

use lgm_core::{
    Arg, BlobSpec, Bwd, ChannelsLast, ConvolutionPass, Device, DeviceConvolution, DevicePtr, DeviceQueue, Element, Format,
    Formats, Fwd, Gemm, Grid, Layout, Offer, Plan, Result, Run, Shape, args, kernel,
};

use super::Convolution;
use crate::on_device::{Channels, convert, extent, product, row_grid};

/// Elements that patches may have.
const PATCHES: usize = 32 << 20;

/// How the passes run.
#[derive(Clone, Debug)]
pub(super) struct Device2d {
    conv: DeviceConvolution,
    /// A library does forward, data, filter.
    library: [bool; 3],
    /// Where scratch begins for the bias gradient's sums, in floats; before it lie workspace or patches.
    sums: usize,
    /// Where it begins for the filters as the passes take them.
    filters: usize,
    /// Where it begins for the gradient of those.
    gradient: usize,
}

/// Where a pass stands among [`Device2d::library`].
fn place(pass: ConvolutionPass) -> usize {
    match pass {
        ConvolutionPass::Forward => 0,
        ConvolutionPass::Data => 1,
        ConvolutionPass::Filter => 2,
    }
}

/// Whether every group has one channel and kernels of our own do that.
fn is_depthwise(c: &DeviceConvolution) -> bool {
    c.groups == c.channels && !is_last(c)
}

/// Whether the channels are last.
fn is_last(c: &DeviceConvolution) -> bool {
    c.format.layout == Layout::ChannelsLast
}

/// Elements of all filters.
fn filter_count(c: &DeviceConvolution) -> usize {
    c.outputs * taps(c) / c.groups
}

/// The filters as a blob of images, channels and positions.
fn filter_extents(c: &DeviceConvolution) -> [usize; 3] {
    [c.outputs, c.channels / c.groups, area(c.kernel)]
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
    launch(queue, kernel!(c.format.element, "conv_patches"), row_grid(rows, area(c.output)), args![to, x, extent(rows)?], c)
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
    if is_last(c) {
        return forward_last(queue, c, (y, x, w), scratch);
    }
    if is_depthwise(c) {
        let planes = c.batch * c.outputs;
        let each = c.outputs / c.channels;
        let own = args![y, x, w, b, extent(planes)?, extent(c.outputs)?, extent(each)?];
        return launch(queue, kernel!(c.format.element, "conv_depthwise_forward"), row_grid(planes, area(c.output)), own, c);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let x = x.elements(start * per_x, e);
        let from = if is_pointwise(c) { x } else { scratch };
        if !is_pointwise(c) {
            patches(queue, c, n, scratch, x)?;
        }
        for group in 0..c.groups {
            let w = w.elements(group * g.outputs * g.taps, e);
            let p = from.elements(group * g.taps * g.positions, e);
            let y = y.elements(start * per_y + group * g.outputs * g.positions, e);
            let extents = (g.outputs, g.positions, g.taps);
            queue.gemm(&Gemm {
                batch: (n, [0, per_patch, per_y]),
                factors: e,
                result: e,
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
    if is_last(c) {
        return data_last(queue, c, (dx, w, dy), scratch);
    }
    if is_depthwise(c) {
        let planes = c.batch * c.channels;
        let own = args![dx, w, dy, extent(planes)?, extent(c.channels)?, extent(c.outputs / c.channels)?];
        return launch(queue, kernel!(c.format.element, "conv_depthwise_data"), row_grid(planes, area(c.input)), own, c);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let dx = dx.elements(start * per_x, e);
        let to = if is_pointwise(c) { dx } else { scratch };
        for group in 0..c.groups {
            let w = w.elements(group * g.outputs * g.taps, e);
            let p = to.elements(group * g.taps * g.positions, e);
            let dy = dy.elements(start * per_y + group * g.outputs * g.positions, e);
            let extents = (g.taps, g.positions, g.outputs);
            queue.gemm(&Gemm {
                trans_a: true,
                batch: (n, [0, per_y, per_patch]),
                factors: e,
                result: e,
                ..product(extents, (w, g.taps), (dy, g.positions), 0.0, (p, g.positions))
            })?;
        }
        if !is_pointwise(c) {
            let planes = n * c.channels;
            let own = args![dx, scratch, extent(planes)?];
            launch(queue, kernel!(c.format.element, "conv_unpatch"), row_grid(planes, area(c.input)), own, c)?;
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
    if is_last(c) {
        return filter_last(queue, c, (dw, x, dy), scratch);
    }
    if is_depthwise(c) {
        let blocks = c.outputs * area(c.kernel);
        let own = args![dw, x, dy, extent(c.batch)?, extent(c.outputs)?, extent(c.outputs / c.channels)?];
        return launch(queue, kernel!(c.format.element, "conv_depthwise_filter"), Grid::rows(blocks, Grid::THREADS), own, c);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let (per_x, per_y, per_patch) = (c.channels * area(c.input), c.outputs * g.positions, taps(c) * g.positions);
    for start in (0..c.batch).step_by(images(c)) {
        let n = images(c).min(c.batch - start);
        let x = x.elements(start * per_x, e);
        let from = if is_pointwise(c) { x } else { scratch };
        if !is_pointwise(c) {
            patches(queue, c, n, scratch, x)?;
        }
        for image in 0..n {
            for group in 0..c.groups {
                let dy = dy.elements((start + image) * per_y + group * g.outputs * g.positions, e);
                let p = from.elements(image * per_patch + group * g.taps * g.positions, e);
                let dw = dw.floats(group * g.outputs * g.taps);
                let extents = (g.outputs, g.taps, g.positions);
                queue.gemm(&Gemm {
                    trans_b: true,
                    factors: e,
                    result: Element::F32,
                    ..product(extents, (dy, g.positions), (p, g.positions), 1.0, (dw, g.taps))
                })?;
            }
        }
    }
    Ok(())
}

/// The patches of `n` images with channels last: the images themselves where they are that.
fn patches_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    n: usize,
    scratch: DevicePtr,
    x: DevicePtr,
) -> Result<DevicePtr> {
    if is_pointwise(c) {
        return Ok(x);
    }
    let rows = n * area(c.output);
    let own = args![scratch, x, extent(rows)?, extent(c.channels)?];
    launch(queue, kernel!(c.format.element, "conv_patches_last"), row_grid(rows, taps(c)), own, c)?;
    Ok(scratch)
}

/// Runs of images whose patches are made at a time: the first, and how many.
fn runs(c: &DeviceConvolution) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (batch, step) = (c.batch, images(c));
    (0..batch).step_by(step).map(move |start| (start, step.min(batch - start)))
}

/// y = patches · wᵀ.
fn forward_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (y, x, w): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    let (k, e) = (taps(c), c.format.element);
    for (start, n) in runs(c) {
        let p = patches_last(queue, c, n, scratch, x.elements(start * c.channels * area(c.input), e))?;
        let y = y.elements(start * c.outputs * area(c.output), e);
        let extents = (n * area(c.output), c.outputs, k);
        let gemm = product(extents, (p, k), (w, k), 0.0, (y, c.outputs));
        queue.gemm(&Gemm { trans_b: true, factors: e, result: e, ..gemm })?;
    }
    Ok(())
}

/// dx: the patches of dy · w, gathered.
fn data_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    let (k, e) = (taps(c), c.format.element);
    for (start, n) in runs(c) {
        let dx = dx.elements(start * c.channels * area(c.input), e);
        let dy = dy.elements(start * c.outputs * area(c.output), e);
        let p = if is_pointwise(c) { dx } else { scratch };
        let extents = (n * area(c.output), k, c.outputs);
        let gemm = product(extents, (dy, c.outputs), (w, k), 0.0, (p, k));
        queue.gemm(&Gemm { factors: e, result: e, ..gemm })?;
        if !is_pointwise(c) {
            let rows = n * area(c.input);
            let own = args![dx, scratch, extent(rows)?, extent(c.channels)?];
            launch(queue, kernel!(e, "conv_unpatch_last"), row_grid(rows, c.channels), own, c)?;
        }
    }
    Ok(())
}

/// dw = dyᵀ · patches, in single precision and with channels last.
fn filter_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    let (k, e) = (taps(c), c.format.element);
    for (start, n) in runs(c) {
        let p = patches_last(queue, c, n, scratch, x.elements(start * c.channels * area(c.input), e))?;
        let dy = dy.elements(start * c.outputs * area(c.output), e);
        let beta = if start == 0 { 0.0 } else { 1.0 };
        let gemm = product((c.outputs, k, n * area(c.output)), (dy, c.outputs), (p, k), beta, (dw, k));
        queue.gemm(&Gemm { trans_a: true, factors: e, ..gemm })?;
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
            format: Format::PLAIN,
        })
    }

    fn on_device(&self) -> Result<&Device2d> {
        self.device.as_ref().ok_or_else(|| lgm_core::Error::internal("a convolution ran before it was prepared"))
    }
}

impl Device2d {
    fn outputs(&self) -> Channels {
        Channels::new(self.conv.batch, self.conv.outputs, area(self.conv.output)).stored(self.conv.format)
    }

    /// Whether a pass meets filters that are not the parameter itself.
    fn has_own_filters(&self, pass: ConvolutionPass) -> bool {
        self.conv.format != Format::PLAIN && (self.is_library(pass) || !is_depthwise(&self.conv))
    }

    /// The filters as a pass takes them: `w`, or made of it in scratch memory.
    fn filters(
        &self,
        queue: &dyn DeviceQueue,
        pass: ConvolutionPass,
        w: DevicePtr,
        scratch: DevicePtr,
    ) -> Result<DevicePtr> {
        if !self.has_own_filters(pass) {
            return Ok(w);
        }
        let made = scratch.floats(self.filters);
        convert(queue, (made, self.conv.format), (w, Format::PLAIN), filter_extents(&self.conv), false)?;
        Ok(made)
    }

    /// dw += the filters' gradient.
    fn add_gradient(
        &self,
        queue: &dyn DeviceQueue,
        (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr),
        scratch: DevicePtr,
    ) -> Result<()> {
        let (conv, pass) = (&self.conv, ConvolutionPass::Filter);
        let made = scratch.floats(self.gradient);
        let format = if self.is_library(pass) {
            let plain = conv.format == Format::PLAIN;
            queue.convolution(conv, pass, if plain { dw } else { made }, [x, dy], scratch)?;
            conv.format
        } else {
            filter(queue, conv, (if is_last(conv) { made } else { dw }, x, dy), scratch)?;
            Format { element: Element::F32, ..conv.format }
        };
        if format == Format::PLAIN {
            return Ok(());
        }
        convert(queue, (dw, Format::PLAIN), (made, format), filter_extents(conv), true)
    }

    fn is_library(&self, pass: ConvolutionPass) -> bool {
        self.library[place(pass)]
    }
}

impl Run<Device> for Convolution {
    /// Channels last where tensor cores take them so, and in no more than one group, which the kernels for it know.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let Some(conv) = self.planar() else { return Formats::default() };
        let shape = &offer.bottoms[0].shape;
        let second = conv.groups == 1 && shape.len() > 2 && shape.axis(self.param.axis()).is_ok_and(|axis| axis == 1);
        let last = match offer.storage.channels_last {
            ChannelsLast::Never => false,
            ChannelsLast::WhereItPays => conv.channels.is_multiple_of(8) && conv.outputs.is_multiple_of(8),
            ChannelsLast::Always => true,
        };
        let layout = if last && second { Layout::ChannelsLast } else { Layout::ChannelsFirst };
        Formats::all(Format { element: offer.storage.element, layout }, offer.bottoms.len(), offer.tops)
    }

    fn prepare(&mut self, queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        self.volume = self.volume().map(|volume| volume.prepare(plan));
        if self.volume.is_some() {
            return Ok(());
        }
        let Some(planar) = self.planar() else {
            return Err(lgm_core::Error::internal("a device was asked for a convolution of more than three dimensions"));
        };
        let conv = DeviceConvolution { format: plan.formats.top(0), ..planar };
        let mut library = [false; 3];
        let mut floats = 0;
        for pass in [ConvolutionPass::Forward, ConvolutionPass::Data, ConvolutionPass::Filter] {
            let patches = images(&conv) * taps(&conv) * area(conv.output);
            let none = is_depthwise(&conv) || is_pointwise(&conv);
            let own = || if none { 0 } else { (patches * conv.format.element.bytes()).div_ceil(4) };
            let workspace = queue.convolution_workspace(&conv, pass)?;
            library[place(pass)] = workspace.is_some();
            floats = floats.max(workspace.map_or_else(own, |bytes| bytes.div_ceil(4)));
        }
        let top: &BlobSpec = &plan.tops[0];
        let mut device = Device2d { conv, library, sums: floats.next_multiple_of(64), filters: 0, gradient: 0 };
        let partial = device.outputs().scratch(top, 2).shape.count();
        device.filters = (device.sums + partial).next_multiple_of(64);
        // Room for single precision, which is enough for either.
        let room = if conv.format == Format::PLAIN { 0 } else { filter_count(&conv).next_multiple_of(64) };
        device.gradient = device.filters + room;
        plan.scratch = vec![top.with_shape(Shape::from([device.gradient + room]))];
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
        let w = device.filters(queue, ConvolutionPass::Forward, w, scratch)?;
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
        let wanted = io.bottom_diffs.iter().any(Option::is_some);
        let w = if wanted { device.filters(queue, ConvolutionPass::Data, w, scratch)? } else { w };
        for i in 0..self.bottoms {
            let dy = io.top_diff(i)?;
            if let Some(dw) = dw {
                device.add_gradient(queue, (dw, io.bottom(i)?, dy), scratch)?;
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
