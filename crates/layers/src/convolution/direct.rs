//! Convolution on a device by our own kernels: a matrix multiplication of the filters and patches of a bounded number of
//! images at a time; without patches where a filter sees one element. With two spatial axes also with channels last, one
//! product for all those images, or as many as there are groups at once; and depthwise convolution in kernels of its own
//! ([`super::depthwise`]).

use lgm_core::{Arg, DeviceConvolution, DevicePtr, DeviceQueue, Element, Gemm, Grid, Kernel, Result, args, kernel};

use super::geometry::{adds_gradient, is_depthwise, is_last, is_pointwise, runs, taps};
use crate::common::launch::{extent, matmul, row_grid, window_args};

/// A convolution by our own kernels: what runs them, and their scratch.
#[derive(Clone, Copy)]
pub(super) struct Own<'a, const N: usize = 2> {
    pub queue: &'a dyn DeviceQueue,
    pub conv: &'a DeviceConvolution<N>,
    pub scratch: DevicePtr,
}

/// Extents of a group's matrices: filters are outputs × taps, patches taps × positions, tops outputs × positions.
struct Group {
    outputs: usize,
    taps: usize,
    positions: usize,
}

impl Group {
    fn of<const N: usize>(c: &DeviceConvolution<N>) -> Group {
        Group { outputs: c.outputs / c.groups, taps: taps(c) / c.groups, positions: c.output_area() }
    }
}

/// Elements of an image, of what comes of it and of its patches.
fn elements_of_image<const N: usize>(c: &DeviceConvolution<N>) -> [usize; 3] {
    [c.channels * c.input_area(), c.outputs * c.output_area(), taps(c) * c.output_area()]
}

impl Own<'_> {
    /// y = w ∗ x; + b where the kernels are depthwise.
    pub fn forward(&self, (y, x, w, b): (DevicePtr, DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        match self.conv {
            c if is_depthwise(c) => self.forward_depthwise((y, x, w, b)),
            c if is_last(c) => self.forward_last((y, x, w)),
            _ => self.forward_first((y, x, w)),
        }
    }

    /// dx from w and dy.
    pub fn data(&self, blobs: (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        match self.conv {
            c if is_depthwise(c) => self.data_depthwise(blobs),
            c if is_last(c) => self.data_last(blobs),
            _ => self.data_first(blobs),
        }
    }

    /// dw += the filters' gradient by x and dy; written, not added, where [`adds_gradient`] says so.
    pub fn filter(&self, blobs: (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        match self.conv {
            c if is_depthwise(c) => self.filter_depthwise(blobs),
            c if is_last(c) => self.filter_last(blobs),
            _ => self.filter_first(blobs),
        }
    }
}

/// With channels first.
impl<const N: usize> Own<'_, N> {
    /// Runs a kernel whose last arguments are the geometry.
    pub fn launch(&self, kernel: &'static str, grid: Grid, own: &[Arg]) -> Result<()> {
        let mut args = own.to_vec();
        args.extend(window_args(&self.conv.windows, true)?);
        self.queue.launch(kernel, grid, &args)
    }

    /// The kernel for as many axes; that for three is for single precision alone.
    fn kernel(&self, planar: Kernel, volume: &'static str) -> &'static str {
        if N == 2 { planar.of(self.conv.format.element) } else { volume }
    }

    /// The patches of `n` images: the images themselves where they are that.
    fn patches(&self, n: usize, x: DevicePtr) -> Result<DevicePtr> {
        if is_pointwise(self.conv) {
            return Ok(x);
        }
        let rows = n * taps(self.conv);
        let kernel = self.kernel(kernel!("conv_patches"), "conv_patches_3d");
        let own = args![self.scratch, x, extent(rows)?];
        self.launch(kernel, row_grid(rows, self.conv.output_area()), own)?;
        Ok(self.scratch)
    }

    /// y = w · patches, image by image.
    pub fn forward_first(&self, (y, x, w): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Group::of(c), c.format.element);
        let [per_x, per_y, per_patch] = elements_of_image(c);
        for (start, n) in runs(c) {
            let from = self.patches(n, x.elements(start * per_x, e))?;
            for group in 0..c.groups {
                let w = w.elements(group * g.outputs * g.taps, e);
                let p = from.elements(group * g.taps * g.positions, e);
                let y = y.elements(start * per_y + group * g.outputs * g.positions, e);
                let extents = (g.outputs, g.positions, g.taps);
                self.queue.gemm(&Gemm {
                    batch: (n, [0, per_patch, per_y]),
                    factors: e,
                    result: e,
                    ..matmul(extents, (w, g.taps), (p, g.positions), 0.0, (y, g.positions))
                })?;
            }
        }
        Ok(())
    }

    /// dx: the patches of wᵀ · dy, gathered.
    pub fn data_first(&self, (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Group::of(c), c.format.element);
        let [per_x, per_y, per_patch] = elements_of_image(c);
        for (start, n) in runs(c) {
            let dx = dx.elements(start * per_x, e);
            let to = if is_pointwise(c) { dx } else { self.scratch };
            for group in 0..c.groups {
                let w = w.elements(group * g.outputs * g.taps, e);
                let p = to.elements(group * g.taps * g.positions, e);
                let dy = dy.elements(start * per_y + group * g.outputs * g.positions, e);
                let extents = (g.taps, g.positions, g.outputs);
                self.queue.gemm(&Gemm {
                    trans_a: true,
                    batch: (n, [0, per_y, per_patch]),
                    factors: e,
                    result: e,
                    ..matmul(extents, (w, g.taps), (dy, g.positions), 0.0, (p, g.positions))
                })?;
            }
            if !is_pointwise(c) {
                let planes = n * c.channels;
                let kernel = self.kernel(kernel!("conv_unpatch"), "conv_unpatch_3d");
                let own = args![dx, self.scratch, extent(planes)?];
                self.launch(kernel, row_grid(planes, c.input_area()), own)?;
            }
        }
        Ok(())
    }

    /// dw += dy · patchesᵀ, image after image: the order of a sum is the order of the batch.
    pub fn filter_first(&self, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Group::of(c), c.format.element);
        let [per_x, per_y, per_patch] = elements_of_image(c);
        for (start, n) in runs(c) {
            let from = self.patches(n, x.elements(start * per_x, e))?;
            for image in 0..n {
                for group in 0..c.groups {
                    let dy = dy.elements((start + image) * per_y + group * g.outputs * g.positions, e);
                    let p = from.elements(image * per_patch + group * g.taps * g.positions, e);
                    let dw = dw.floats(group * g.outputs * g.taps);
                    let extents = (g.outputs, g.taps, g.positions);
                    self.queue.gemm(&Gemm {
                        trans_b: true,
                        factors: e,
                        result: Element::F32,
                        ..matmul(extents, (dy, g.positions), (p, g.positions), 1.0, (dw, g.taps))
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Extents and distances of the groups' products with channels last, of which all are made at once: a row of patches, or
/// of what comes of them, holds group after group.
struct Groups {
    /// Outputs of a group, and elements of one of its filters.
    outputs: usize,
    taps: usize,
    /// Elements of a row of patches.
    row: usize,
    /// From a group to the next: in the filters, in a row of patches, in an output.
    steps: [usize; 3],
}

impl Groups {
    fn of(c: &DeviceConvolution) -> Groups {
        let Group { outputs, taps: of_group, .. } = Group::of(c);
        Groups { outputs, taps: of_group, row: taps(c), steps: [outputs * of_group, of_group, outputs] }
    }
}

/// With channels last.
impl Own<'_> {
    /// Runs a kernel from patches, or to them, of so many rows and columns.
    fn launch_last(&self, kernel: Kernel, to: DevicePtr, from: DevicePtr, (rows, width): (usize, usize)) -> Result<()> {
        let c = self.conv;
        let own = args![to, from, extent(rows)?, extent(c.channels)?, extent(c.channels / c.groups)?];
        self.launch(kernel.of(c.format.element), row_grid(rows, width), own)
    }

    /// The patches of `n` images: the images themselves where they are that.
    fn patches_last(&self, n: usize, x: DevicePtr) -> Result<DevicePtr> {
        if is_pointwise(self.conv) {
            return Ok(x);
        }
        let extents = (n * self.conv.output_area(), taps(self.conv));
        self.launch_last(kernel!("conv_patches_last"), self.scratch, x, extents)?;
        Ok(self.scratch)
    }

    /// y = patches · wᵀ.
    fn forward_last(&self, (y, x, w): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Groups::of(c), c.format.element);
        let [of_w, of_p, of_y] = g.steps;
        let [per_x, per_y, _] = elements_of_image(c);
        for (start, n) in runs(c) {
            let p = self.patches_last(n, x.elements(start * per_x, e))?;
            let y = y.elements(start * per_y, e);
            let extents = (n * c.output_area(), g.outputs, g.taps);
            let gemm = matmul(extents, (p, g.row), (w, g.taps), 0.0, (y, c.outputs));
            let batch = (c.groups, [of_p, of_w, of_y]);
            self.queue.gemm(&Gemm { trans_b: true, batch, factors: e, result: e, ..gemm })?;
        }
        Ok(())
    }

    /// dx: the patches of dy · w, gathered.
    fn data_last(&self, (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Groups::of(c), c.format.element);
        let [of_w, of_p, of_y] = g.steps;
        let [per_x, per_y, _] = elements_of_image(c);
        for (start, n) in runs(c) {
            let (dx, dy) = (dx.elements(start * per_x, e), dy.elements(start * per_y, e));
            let p = if is_pointwise(c) { dx } else { self.scratch };
            let extents = (n * c.output_area(), g.taps, g.outputs);
            let gemm = matmul(extents, (dy, c.outputs), (w, g.taps), 0.0, (p, g.row));
            let batch = (c.groups, [of_y, of_w, of_p]);
            self.queue.gemm(&Gemm { batch, factors: e, result: e, ..gemm })?;
            if !is_pointwise(c) {
                let extents = (n * c.input_area(), c.channels);
                self.launch_last(kernel!("conv_unpatch_last"), dx, self.scratch, extents)?;
            }
        }
        Ok(())
    }

    /// dw = dyᵀ · patches, or added to what is there, in single precision and with channels last.
    fn filter_last(&self, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (g, e) = (Groups::of(c), c.format.element);
        let [of_w, of_p, of_y] = g.steps;
        let [per_x, per_y, _] = elements_of_image(c);
        for (start, n) in runs(c) {
            let p = self.patches_last(n, x.elements(start * per_x, e))?;
            let dy = dy.elements(start * per_y, e);
            let beta = if start == 0 && !adds_gradient(c) { 0.0 } else { 1.0 };
            let extents = (g.outputs, g.taps, n * c.output_area());
            let gemm = matmul(extents, (dy, c.outputs), (p, g.row), beta, (dw, g.taps));
            let batch = (c.groups, [of_y, of_p, of_w]);
            self.queue.gemm(&Gemm { trans_a: true, batch, factors: e, ..gemm })?;
        }
        Ok(())
    }
}
