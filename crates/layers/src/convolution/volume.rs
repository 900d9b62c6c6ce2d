//! Convolution with three spatial axes on a device: matrix multiplications of the filters and the patches of a bounded number of
//! images at a time, as in two dimensions without a library. Deconvolution's forward is the backward-data pass, and its
//! gradient by its bottoms the forward pass.

use lgm_core::{
    Arg, Axes3, Bwd, Device, DevicePtr, DeviceQueue, Format, Fwd, Gemm, Plan, Result, Shape, Window, args, count,
};
use lgm_cpu::ConvGeometry;

use super::geometry::{images_at_once, runs_of};
use crate::common::by_channel::ByChannel;
use crate::common::launch::{extent, matmul, row_grid, window_args};

/// The geometry of a convolution with three spatial axes.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// The layer is Deconvolution.
    transposed: bool,
    batch: usize,
    bottoms: usize,
    bias: bool,
    relu: bool,
    channels: usize,
    outputs: usize,
    groups: usize,
    windows: [Window; 3],
    /// Where scratch begins for the bias gradient's sums, in floats; before it lie patches.
    sums: usize,
}

impl Volume {
    /// The convolution, with a bias and a ReLU at its end or without, if it has three axes.
    pub fn of(
        g: &ConvGeometry,
        transposed: bool,
        batch: usize,
        bottoms: usize,
        (bias, relu): (bool, bool),
    ) -> Option<Volume> {
        let windows: [Window; 3] = g.windows[..].try_into().ok()?;
        let (channels, outputs, groups) = (g.in_channels, g.out_channels, g.group);
        Some(Volume { transposed, batch, bottoms, bias, relu, channels, outputs, groups, windows, sums: 0 })
    }

    /// Positions of the output.
    fn positions(&self) -> usize {
        count(&self.windows.map(|w| w.output))
    }

    /// Elements of a channel of the input.
    fn elements(&self) -> usize {
        count(&self.windows.map(|w| w.input))
    }

    /// Rows of an image's patches.
    fn taps(&self) -> usize {
        self.channels * count(&self.windows.map(|w| w.kernel))
    }

    /// Images whose patches are made at a time.
    fn images(&self) -> usize {
        images_at_once(self.batch, self.taps() * self.positions())
    }

    /// A top, as the bias sees it.
    fn tops(&self) -> ByChannel {
        let (channels, positions) = match self.transposed {
            true => (self.channels, self.elements()),
            false => (self.outputs, self.positions()),
        };
        ByChannel::new(Axes3::new(self.batch, channels, positions), Format::PLAIN)
    }

    /// Sets the layer's scratch.
    pub fn prepare(mut self, plan: &mut Plan) -> Volume {
        self.sums = (self.images() * self.taps() * self.positions()).next_multiple_of(64);
        let partial = self.tops().scratch(&plan.tops[0], 2).shape.count();
        plan.scratch = vec![plan.tops[0].with_shape(Shape::from([self.sums + partial]))];
        self
    }

    fn launch(
        &self,
        queue: &dyn DeviceQueue,
        kernel: &'static str,
        rows: usize,
        width: usize,
        own: &[Arg],
    ) -> Result<()> {
        let mut args = own.to_vec();
        args.push(extent(rows)?.into());
        args.extend(window_args(&self.windows, true)?);
        queue.launch(kernel, row_grid(rows, width), &args)
    }

    /// The patches of `n` images.
    fn patches(&self, queue: &dyn DeviceQueue, n: usize, to: DevicePtr, x: DevicePtr) -> Result<()> {
        self.launch(queue, "conv_patches_3d", n * self.taps(), self.positions(), args![to, x])
    }

    /// Batches of images: the first, and how many.
    fn batches(&self) -> impl Iterator<Item = (usize, usize)> {
        runs_of(self.batch, self.images())
    }

    /// A group's extents: outputs and taps.
    fn group(&self) -> (usize, usize) {
        (self.outputs / self.groups, self.taps() / self.groups)
    }

    /// The tops.
    pub fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let b = if self.bias { Some(io.param(1)?) } else { None };
        for i in 0..self.bottoms {
            let (x, y) = (io.bottom(i)?, io.top(i)?);
            match self.transposed {
                true => self.data(io.queue(), y, w, x, scratch)?,
                false => self.convolve(io.queue(), y, w, x, scratch)?,
            }
            if b.is_some() || self.relu {
                self.tops().affine(io.queue(), y, y, None, b, self.relu)?;
            }
        }
        Ok(())
    }

    /// The gradients of w, b and x.
    pub fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (w, scratch) = (io.param(0)?, io.scratch(0)?);
        let dw = io.param_diff(0);
        let db = if self.bias { io.param_diff(1) } else { None };
        for i in 0..self.bottoms {
            let dy = io.top_diff(i)?;
            if let Some(dw) = dw {
                let x = io.bottom(i)?;
                let (input, output) = if self.transposed { (dy, x) } else { (x, dy) };
                self.filter(io.queue(), dw, input, output, scratch)?;
            }
            if db.is_some() {
                self.tops().add_sums(io.queue(), (dy, None), (None, db), true, scratch.floats(self.sums))?;
            }
            match io.bottom_diff(i) {
                Some(dx) if self.transposed => self.convolve(io.queue(), dx, w, dy, scratch)?,
                Some(dx) => self.data(io.queue(), dx, w, dy, scratch)?,
                None => {}
            }
        }
        Ok(())
    }

    /// y = w · patches.
    fn convolve(
        &self,
        queue: &dyn DeviceQueue,
        y: DevicePtr,
        w: DevicePtr,
        x: DevicePtr,
        scratch: DevicePtr,
    ) -> Result<()> {
        let ((outputs, taps), positions) = (self.group(), self.positions());
        for (start, n) in self.batches() {
            self.patches(queue, n, scratch, x.floats(start * self.channels * self.elements()))?;
            for group in 0..self.groups {
                let w = w.floats(group * outputs * taps);
                let p = scratch.floats(group * taps * positions);
                let y = y.floats((start * self.outputs + group * outputs) * positions);
                queue.gemm(&Gemm {
                    batch: (n, [0, self.taps() * positions, self.outputs * positions]),
                    ..matmul((outputs, positions, taps), (w, taps), (p, positions), 0.0, (y, positions))
                })?;
            }
        }
        Ok(())
    }

    /// dw += dy · patchesᵀ, image after image: the order of a sum is the order of the batch.
    fn filter(
        &self,
        queue: &dyn DeviceQueue,
        dw: DevicePtr,
        x: DevicePtr,
        dy: DevicePtr,
        scratch: DevicePtr,
    ) -> Result<()> {
        let ((outputs, taps), positions) = (self.group(), self.positions());
        for (start, n) in self.batches() {
            self.patches(queue, n, scratch, x.floats(start * self.channels * self.elements()))?;
            for image in 0..n {
                for group in 0..self.groups {
                    let dy = dy.floats(((start + image) * self.outputs + group * outputs) * positions);
                    let p = scratch.floats((image * self.taps() + group * taps) * positions);
                    let dw = dw.floats(group * outputs * taps);
                    queue.gemm(&Gemm {
                        trans_b: true,
                        ..matmul((outputs, taps, positions), (dy, positions), (p, positions), 1.0, (dw, taps))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// dx: the patches of wᵀ · dy, gathered.
    fn data(
        &self,
        queue: &dyn DeviceQueue,
        dx: DevicePtr,
        w: DevicePtr,
        dy: DevicePtr,
        scratch: DevicePtr,
    ) -> Result<()> {
        let ((outputs, taps), positions) = (self.group(), self.positions());
        for (start, n) in self.batches() {
            for group in 0..self.groups {
                let w = w.floats(group * outputs * taps);
                let p = scratch.floats(group * taps * positions);
                let dy = dy.floats((start * self.outputs + group * outputs) * positions);
                queue.gemm(&Gemm {
                    trans_a: true,
                    batch: (n, [0, self.outputs * positions, self.taps() * positions]),
                    ..matmul((taps, positions, outputs), (w, taps), (dy, positions), 0.0, (p, positions))
                })?;
            }
            let dx = dx.floats(start * self.channels * self.elements());
            self.launch(queue, "conv_unpatch_3d", n * self.channels, self.elements(), args![dx, scratch])?;
        }
        Ok(())
    }
}
