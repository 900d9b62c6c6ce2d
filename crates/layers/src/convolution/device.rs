//! Convolution on a device: by a library where there is one, else by our own kernels ([`super::direct`]). Deconvolution's
//! forward is a convolution's backward-data pass, and its gradient by its bottoms a convolution's forward pass.
//!
//! Blobs that are not stored plainly meet filters that are stored alike: their elements rounded, and their channels last if
//! the blobs' are. They are made once, forward, and kept for backward. Filters' gradients are added up in single precision.
//! Depthwise kernels of our own want filters of their own: see [`super::depthwise`].

use lgm_core::{
    Axes3, BlobSpec, Bwd, ChannelsLast, ConvolutionPass, Device, DeviceConvolution, DeviceLayer, DevicePtr,
    DeviceQueue, Element, Format, Formats, Fwd, Layout, Maker, Offer, Plan, PreparedConvolution, Result, Shape,
    TENSOR_CORES_FROM, Window,
};

use super::Convolution;
use super::depthwise::filter_scratch;
use super::direct::Own;
use super::geometry::{adds_gradient, filter_count, images, is_depthwise, is_last, is_pointwise, taps};
use crate::common::by_channel::ByChannel;

/// The most channels of an image: a convolution of so few has them last where its outputs gain by it, since what is then
/// converted is its input, which is small.
const FEW: usize = 4;

/// How the passes run.
#[derive(Clone, Debug)]
pub(super) struct Device2d {
    conv: DeviceConvolution,
    /// The layer is Deconvolution.
    transposed: bool,
    /// A library does forward, data, filter.
    library: [bool; 3],
    /// Where scratch begins for the bias gradient's sums, in floats; before it lie workspace, patches or parts of sums.
    sums: usize,
    /// Where it begins for the filters as the passes take them.
    filters: usize,
    /// Where it begins for the gradient of those.
    gradient: usize,
    /// Forward's filters are kept, in saved memory, for the gradient of the bottoms.
    keeps: bool,
}

/// Where a pass stands among [`Device2d::library`].
fn place(pass: ConvolutionPass) -> usize {
    match pass {
        ConvolutionPass::Forward => 0,
        ConvolutionPass::Data => 1,
        ConvolutionPass::Filter => 2,
    }
}

impl Convolution {
    /// The convolution in two dimensions, if it has no more.
    pub(super) fn planar(&self) -> Option<DeviceConvolution> {
        let g = self.geometry.as_ref()?;
        // One dimension is a plane of one row, none a plane of one element.
        let windows = match g.windows[..] {
            [] => [Window::UNIT; 2],
            [columns] => [Window::UNIT, columns],
            [rows, columns] => [rows, columns],
            _ => return None,
        };
        Some(DeviceConvolution {
            batch: self.batch,
            channels: g.in_channels,
            outputs: g.out_channels,
            windows,
            groups: g.group,
            format: Format::PLAIN,
        })
    }

    fn on_device(&self) -> Result<&Device2d> {
        self.device.as_ref().ok_or_else(|| lgm_core::Error::internal("a convolution ran before it was prepared"))
    }
}

impl Device2d {
    fn outputs(&self) -> ByChannel {
        let c = &self.conv;
        let (channels, positions) =
            if self.transposed { (c.channels, c.input_area()) } else { (c.outputs, c.output_area()) };
        ByChannel::new(Axes3::new(c.batch, channels, positions), c.format)
    }

    fn own<'a>(&'a self, queue: &'a dyn DeviceQueue, scratch: DevicePtr) -> Own<'a> {
        Own { queue, conv: &self.conv, scratch }
    }

    /// The pass that is the layer's forward, and the one that is its gradient by its bottoms.
    fn passes(&self) -> [ConvolutionPass; 2] {
        let passes = [ConvolutionPass::Forward, ConvolutionPass::Data];
        if self.transposed { [passes[1], passes[0]] } else { passes }
    }

    /// The result of a pass from what it convolves and the filters as it takes them; with `b` where our own kernels add it.
    fn run(
        &self,
        own: Own<'_>,
        pass: ConvolutionPass,
        (result, from, w): (DevicePtr, DevicePtr, DevicePtr),
        b: DevicePtr,
    ) -> Result<()> {
        match pass {
            _ if self.is_library(pass) => own.queue.convolution(&self.conv, pass, result, [from, w], own.scratch),
            ConvolutionPass::Data => own.data((result, w, from)),
            _ => own.forward((result, from, w, b)),
        }
    }

    /// Whether the layer's forward adds b where it makes the top.
    fn adds_bias(&self) -> bool {
        !self.transposed && self.is_own_depthwise(ConvolutionPass::Forward)
    }

    /// Whether a pass meets filters that are not the parameter itself.
    fn has_own_filters(&self, pass: ConvolutionPass) -> bool {
        if self.is_own_depthwise(pass) { is_last(&self.conv) } else { !self.conv.has_plain_filters() }
    }

    /// Whether our own depthwise kernels do a pass.
    fn is_own_depthwise(&self, pass: ConvolutionPass) -> bool {
        !self.is_library(pass) && is_depthwise(&self.conv)
    }

    /// The filters as a pass takes them: `w`, or made of it.
    fn filters(&self, own: Own<'_>, pass: ConvolutionPass, w: DevicePtr, made: DevicePtr) -> Result<DevicePtr> {
        if !self.has_own_filters(pass) {
            return Ok(w);
        }
        if self.is_own_depthwise(pass) {
            own.filters_to_hwc(made, w)?;
        } else {
            own.reorder((made, self.conv.format), (w, Format::PLAIN), false)?;
        }
        Ok(made)
    }

    /// The format that the filters' gradient comes in, and whether it is added to the parameter's at once.
    fn gradient(&self) -> (Format, bool) {
        let format = self.conv.format;
        match self.is_library(ConvolutionPass::Filter) {
            true => (format, self.conv.has_plain_filters()),
            false => (Format { element: Element::F32, ..format }, adds_gradient(&self.conv)),
        }
    }

    /// dw += the filters' gradient.
    fn add_gradient(&self, own: Own<'_>, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let pass = ConvolutionPass::Filter;
        let (x, dy) = if self.transposed { (dy, x) } else { (x, dy) };
        let (format, adds) = self.gradient();
        let to = if adds { dw } else { own.scratch.floats(self.gradient) };
        if self.is_library(pass) {
            own.queue.convolution(&self.conv, pass, to, [x, dy], own.scratch)?;
        } else {
            own.filter((to, x, dy))?;
        }
        if adds { Ok(()) } else { own.reorder((dw, Format::PLAIN), (to, format), true) }
    }

    fn is_library(&self, pass: ConvolutionPass) -> bool {
        self.library[place(pass)]
    }

    fn maker(&self, pass: ConvolutionPass) -> Maker {
        match self.is_library(pass) {
            true => Maker::Library,
            false if is_pointwise(&self.conv) && !is_depthwise(&self.conv) => Maker::Product,
            false => Maker::Own,
        }
    }
}

impl DeviceLayer for Convolution {
    /// Of up to three dimensions.
    fn is_supported(&self) -> bool {
        self.planar().is_some() || self.volume().is_some()
    }

    /// Channels last where tensor cores take them so, 16 bytes of a group's channels at a time. Depthwise convolutions, of
    /// which they have nothing, do with such channels what those around them do: they come last in bf16, and in single
    /// precision as they arrive.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let Some(conv) = self.planar() else { return Formats::default() };
        let shape = &offer.bottoms[0].shape;
        let second = shape.len() > 2 && shape.axis(self.param.axis()).is_ok_and(|axis| axis == 1);
        let element = offer.storage.element;
        let fills = |channels: usize| channels.is_multiple_of(16 / element.bytes());
        let [channels, outputs] = match is_depthwise(&conv) {
            true => [conv.channels, conv.outputs],
            false => [conv.channels, conv.outputs].map(|all| all / conv.groups),
        };
        let few = conv.groups == 1 && channels <= FEW && !self.transposed;
        let large = match element {
            Element::F32 if is_depthwise(&conv) && !few => {
                offer.arriving.first().is_some_and(|format| format.layout == Layout::ChannelsLast)
            }
            Element::F32 => conv.multiply_adds() >= TENSOR_CORES_FROM,
            Element::Bf16 => true,
        };
        let last = match offer.storage.channels_last {
            ChannelsLast::Never => false,
            ChannelsLast::WhereItPays => large && fills(outputs) && (few || fills(channels)),
            ChannelsLast::Always => true,
        };
        let layout = if last && second { Layout::ChannelsLast } else { Layout::ChannelsFirst };
        Formats::all(Format { element, layout }, offer.bottoms.len(), offer.tops)
    }

    fn prepare(&mut self, queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        self.volume = self.volume().map(|volume| volume.prepare(plan));
        if self.volume.is_some() {
            return Ok(());
        }
        let Some(planar) = self.planar() else {
            return Err(lgm_core::Error::internal(
                "a device was asked for a convolution of more than three dimensions",
            ));
        };
        let conv = DeviceConvolution { format: plan.formats.top(0), ..planar };
        let mut library = [false; 3];
        let mut floats = 0;
        for pass in ConvolutionPass::ALL {
            let patches = images(&conv) * taps(&conv) * conv.output_area();
            let own = || match pass {
                ConvolutionPass::Filter if is_depthwise(&conv) => filter_scratch(&conv),
                _ if is_depthwise(&conv) || is_pointwise(&conv) => 0,
                _ => (patches * conv.format.element.bytes()).div_ceil(4),
            };
            // Libraries pad both sides alike.
            let symmetric = conv.windows.iter().all(Window::is_symmetric);
            let workspace = if symmetric { queue.convolution_workspace(&conv, pass)? } else { None };
            library[place(pass)] = workspace.is_some();
            floats = floats.max(workspace.map_or_else(own, |bytes| bytes.div_ceil(4)));
        }
        let top: &BlobSpec = &plan.tops[0];
        let sums = floats.next_multiple_of(64);
        let transposed = self.transposed;
        let mut device = Device2d { conv, transposed, library, sums, filters: 0, gradient: 0, keeps: false };
        let partial = device.outputs().scratch(top, 2).shape.count();
        let [forward, data] =
            [ConvolutionPass::Forward, ConvolutionPass::Data].map(|pass| device.has_own_filters(pass));
        let own = [ConvolutionPass::Forward, ConvolutionPass::Data].map(|pass| device.is_own_depthwise(pass));
        device.keeps = forward && data && own[0] == own[1];
        device.filters = (device.sums + partial).next_multiple_of(64);
        // Room for single precision, which is enough for either.
        let room = |needed: bool| if needed { filter_count(&conv).next_multiple_of(64) } else { 0 };
        device.gradient = device.filters + room(forward || data);
        plan.scratch = vec![top.with_shape(Shape::from([device.gradient + room(!device.gradient().1)]))];
        if device.keeps {
            let element = if own[0] { Element::F32 } else { conv.format.element };
            let floats = (filter_count(&conv) * element.bytes()).div_ceil(4);
            plan.saved = vec![top.with_shape(Shape::from([floats]))];
        }
        self.device = Some(device);
        Ok(())
    }

    fn convolutions(&self) -> Vec<PreparedConvolution> {
        if self.device.is_none() && self.volume.is_none() {
            return Vec::new();
        }
        let prepared = |pass| match &self.device {
            Some(device) => PreparedConvolution { pass, maker: device.maker(pass), conv: Some(device.conv) },
            None => PreparedConvolution { pass, maker: Maker::Own, conv: None },
        };
        ConvolutionPass::ALL.map(prepared).to_vec()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if let Some(volume) = &self.volume {
            return volume.forward(io);
        }
        let device = self.on_device()?;
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let own = device.own(io.queue(), scratch);
        let b = if self.param.bias_term() { Some(io.param(1)?) } else { None };
        let (within, after) = if device.adds_bias() { (b, None) } else { (None, b) };
        let [pass, _] = device.passes();
        let made = io.saved(0).unwrap_or(scratch.floats(device.filters));
        let w = device.filters(own, pass, w, made)?;
        for i in 0..self.bottoms {
            let (x, y) = (io.bottom(i)?, io.top(i)?);
            device.run(own, pass, (y, x, w), within.unwrap_or(DevicePtr::NULL))?;
            if after.is_some() || self.relu {
                device.outputs().affine(io.queue(), y, y, None, after, self.relu)?;
            }
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if let Some(volume) = &self.volume {
            return volume.backward(io);
        }
        let device = self.on_device()?;
        let [_, pass] = device.passes();
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let own = device.own(io.queue(), scratch);
        let dw = io.param_diff(0);
        let db = if self.param.bias_term() { io.param_diff(1) } else { None };
        let wanted = io.bottom_diffs.iter().any(Option::is_some);
        let w = match wanted {
            false => w,
            true if device.keeps => io.saved(0)?,
            true => device.filters(own, pass, w, scratch.floats(device.filters))?,
        };
        for i in 0..self.bottoms {
            let dy = io.top_diff(i)?;
            if let Some(dw) = dw {
                device.add_gradient(own, (dw, io.bottom(i)?, dy))?;
            }
            if db.is_some() {
                let sums = scratch.floats(device.sums);
                device.outputs().add_sums(io.queue(), (dy, None), (None, db), true, sums)?;
            }
            if let Some(dx) = io.bottom_diff(i) {
                device.run(own, pass, (dx, dy, w), DevicePtr::NULL)?;
            }
        }
        Ok(())
    }
}
