//! Convolution on a device by our own kernels: a matrix multiplication of the filters and patches of a bounded number of
//! images at a time; without patches where a filter sees one element. With two spatial axes also with channels last, one
//! product for all those images, or as many as there are groups at once; and depthwise convolution in kernels of its own
//! ([`super::depthwise`]).

use lgm_core::{Arg, DeviceConvolution, DevicePtr, DeviceQueue, Gemm, Grid, Result, args, kernel};

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

    /// Where group `i` begins in the filters, the patches and the outputs, with channels first.
    fn first(&self, i: usize) -> [usize; 3] {
        [i * self.outputs * self.taps, i * self.taps * self.positions, i * self.outputs * self.positions]
    }

    /// From a group to the next in the filters, a position's patch and its outputs, with channels last.
    fn last(&self) -> [usize; 3] {
        [self.outputs * self.taps, self.taps, self.outputs]
    }
}

/// What a product does with the patches of the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patches {
    /// It reads them: they are gathered from the input before.
    Gathered,
    /// It makes them: they are summed into the input's gradient after.
    Scattered,
}

/// Images whose patches are in memory together.
struct Run {
    first: usize,
    images: usize,
    patches: DevicePtr,
    y: DevicePtr,
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

impl<const N: usize> Own<'_, N> {
    /// Runs a kernel whose last arguments are the geometry.
    pub fn launch(&self, kernel: &'static str, grid: Grid, own: &[Arg]) -> Result<()> {
        let mut args = own.to_vec();
        args.extend(window_args(&self.conv.windows, true)?);
        self.queue.launch(kernel, grid, &args)
    }

    /// Makes the products of one run of images after another. The patches are the images themselves where they are that.
    fn each_run(
        &self,
        patches: Patches,
        (x, y): (DevicePtr, DevicePtr),
        product: impl Fn(Run) -> Result<()>,
    ) -> Result<()> {
        let (c, e) = (self.conv, self.conv.format.element);
        let stored = !is_pointwise(c);
        for (first, images) in runs(c) {
            let x = x.elements(first * c.channels * c.input_area(), e);
            let y = y.elements(first * c.outputs * c.output_area(), e);
            if stored && patches == Patches::Gathered {
                self.move_patches(patches, x, images)?;
            }
            product(Run { first, images, patches: if stored { self.scratch } else { x }, y })?;
            if stored && patches == Patches::Scattered {
                self.move_patches(patches, x, images)?;
            }
        }
        Ok(())
    }

    /// The patches of so many images from these, or the reverse; with three axes there are kernels for single precision alone.
    fn move_patches(&self, patches: Patches, x: DevicePtr, images: usize) -> Result<()> {
        let c = self.conv;
        let (kernels, volume, [to, from], [width, positions]) = match patches {
            Patches::Gathered => (
                [kernel!("conv_patches"), kernel!("conv_patches_last")],
                "conv_patches_3d",
                [self.scratch, x],
                [taps(c), c.output_area()],
            ),
            Patches::Scattered => (
                [kernel!("conv_unpatch"), kernel!("conv_unpatch_last")],
                "conv_unpatch_3d",
                [x, self.scratch],
                [c.channels, c.input_area()],
            ),
        };
        let [first, last] = kernels.map(|kernel| kernel.of(c.format.element));
        if is_last(c) {
            let rows = images * positions;
            let own = args![to, from, extent(rows)?, extent(c.channels)?, extent(c.channels / c.groups)?];
            return self.launch(last, row_grid(rows, width), own);
        }
        let rows = images * width;
        let kernel = if N == 2 { first } else { volume };
        self.launch(kernel, row_grid(rows, positions), args![to, from, extent(rows)?])
    }
}

/// With channels first: a product for each group, of all images of a run.
impl<const N: usize> Own<'_, N> {
    /// y = w · patches.
    pub fn forward_first(&self, (y, x, w): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        let of_image = [0, taps(c) * g.positions, c.outputs * g.positions];
        self.each_run(Patches::Gathered, (x, y), |run| {
            (0..c.groups).try_for_each(|group| {
                let [of_w, of_p, of_y] = g.first(group);
                let (w, p, y) = (w.elements(of_w, e), run.patches.elements(of_p, e), run.y.elements(of_y, e));
                let extents = (g.outputs, g.positions, g.taps);
                let gemm = matmul(extents, (w, g.taps), (p, g.positions), 0.0, (y, g.positions));
                self.queue.gemm(&Gemm { batch: (run.images, of_image), factors: e, result: e, ..gemm })
            })
        })
    }

    /// dx: the patches of wᵀ · dy, gathered.
    pub fn data_first(&self, (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        let of_image = [0, c.outputs * g.positions, taps(c) * g.positions];
        self.each_run(Patches::Scattered, (dx, dy), |run| {
            (0..c.groups).try_for_each(|group| {
                let [of_w, of_p, of_y] = g.first(group);
                let (w, p, dy) = (w.elements(of_w, e), run.patches.elements(of_p, e), run.y.elements(of_y, e));
                let extents = (g.taps, g.positions, g.outputs);
                let gemm = matmul(extents, (w, g.taps), (dy, g.positions), 0.0, (p, g.positions));
                self.queue.gemm(&Gemm { trans_a: true, batch: (run.images, of_image), factors: e, result: e, ..gemm })
            })
        })
    }

    /// dw += dy · patchesᵀ, image after image: the order of a sum is the order of the batch.
    pub fn filter_first(&self, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        self.each_run(Patches::Gathered, (x, dy), |run| {
            (0..run.images * c.groups).try_for_each(|i| {
                // Groups of outputs, and of patches, follow one another through the images.
                let ([_, of_p, of_dy], [of_dw, ..]) = (g.first(i), g.first(i % c.groups));
                let (dw, p, dy) = (dw.floats(of_dw), run.patches.elements(of_p, e), run.y.elements(of_dy, e));
                let extents = (g.outputs, g.taps, g.positions);
                let gemm = matmul(extents, (dy, g.positions), (p, g.positions), 1.0, (dw, g.taps));
                self.queue.gemm(&Gemm { trans_b: true, factors: e, ..gemm })
            })
        })
    }
}

/// With channels last: the products of all groups at once, for every position of a run; a position holds group after group.
impl Own<'_> {
    /// y = patches · wᵀ.
    fn forward_last(&self, (y, x, w): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        let [of_w, of_p, of_y] = g.last();
        self.each_run(Patches::Gathered, (x, y), |run| {
            let extents = (run.images * g.positions, g.outputs, g.taps);
            let gemm = matmul(extents, (run.patches, taps(c)), (w, g.taps), 0.0, (run.y, c.outputs));
            let batch = (c.groups, [of_p, of_w, of_y]);
            self.queue.gemm(&Gemm { trans_b: true, batch, factors: e, result: e, ..gemm })
        })
    }

    /// dx: the patches of dy · w, gathered.
    fn data_last(&self, (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        let [of_w, of_p, of_y] = g.last();
        self.each_run(Patches::Scattered, (dx, dy), |run| {
            let extents = (run.images * g.positions, g.taps, g.outputs);
            let gemm = matmul(extents, (run.y, c.outputs), (w, g.taps), 0.0, (run.patches, taps(c)));
            let batch = (c.groups, [of_y, of_w, of_p]);
            self.queue.gemm(&Gemm { batch, factors: e, result: e, ..gemm })
        })
    }

    /// dw = dyᵀ · patches, or added to what is there, in single precision and with channels last.
    fn filter_last(&self, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, g, e) = (self.conv, Group::of(self.conv), self.conv.format.element);
        let [of_w, of_p, of_y] = g.last();
        self.each_run(Patches::Gathered, (x, dy), |run| {
            let extents = (g.outputs, g.taps, run.images * g.positions);
            let beta = if run.first == 0 && !adds_gradient(c) { 0.0 } else { 1.0 };
            let gemm = matmul(extents, (run.y, c.outputs), (run.patches, taps(c)), beta, (dw, g.taps));
            let batch = (c.groups, [of_y, of_p, of_w]);
            self.queue.gemm(&Gemm { trans_a: true, batch, factors: e, ..gemm })
        })
    }
}
