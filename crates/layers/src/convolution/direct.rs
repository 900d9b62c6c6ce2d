//! Convolution in two dimensions on a device by our own kernels: a matrix multiplication of the filters and patches of a bounded
//! number of images at a time; without patches where a filter sees one element; depthwise convolution in kernels of its
//! own ([`super::depthwise`]). With channels last, one product for all those images, or as many as there are groups at once.

use lgm_core::{DeviceConvolution, DevicePtr, DeviceQueue, Element, Gemm, Result, args, kernel};

use super::depthwise;
use super::geometry::{adds_gradient, is_depthwise, is_last, is_pointwise, launch, runs, taps};
use crate::common::launch::{extent, matmul, row_grid};

/// The patches of `n` images: the images themselves where they are that.
fn patches(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    n: usize,
    scratch: DevicePtr,
    x: DevicePtr,
) -> Result<DevicePtr> {
    if is_pointwise(c) {
        return Ok(x);
    }
    let rows = n * taps(c);
    let own = args![scratch, x, extent(rows)?];
    launch(queue, kernel!(c.format.element, "conv_patches"), row_grid(rows, c.output_area()), own, c)?;
    Ok(scratch)
}

/// Extents of a group's matrices: filters are outputs × taps, patches taps × positions, tops outputs × positions.
struct Group {
    outputs: usize,
    taps: usize,
    positions: usize,
}

impl Group {
    fn of(c: &DeviceConvolution) -> Group {
        Group { outputs: c.outputs / c.groups, taps: taps(c) / c.groups, positions: c.output_area() }
    }
}

/// Elements of an image, of what comes of it and of its patches.
fn elements_of_image(c: &DeviceConvolution) -> [usize; 3] {
    [c.channels * c.input_area(), c.outputs * c.output_area(), taps(c) * c.output_area()]
}

/// y = w · patches, image by image.
pub(super) fn forward(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (y, x, w, b): (DevicePtr, DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        return depthwise::forward(queue, c, (y, x, w, b));
    }
    if is_last(c) {
        return forward_last(queue, c, (y, x, w), scratch);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let [per_x, per_y, per_patch] = elements_of_image(c);
    for (start, n) in runs(c) {
        let from = patches(queue, c, n, scratch, x.elements(start * per_x, e))?;
        for group in 0..c.groups {
            let w = w.elements(group * g.outputs * g.taps, e);
            let p = from.elements(group * g.taps * g.positions, e);
            let y = y.elements(start * per_y + group * g.outputs * g.positions, e);
            let extents = (g.outputs, g.positions, g.taps);
            queue.gemm(&Gemm {
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
pub(super) fn data(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        return depthwise::data(queue, c, (dx, w, dy));
    }
    if is_last(c) {
        return data_last(queue, c, (dx, w, dy), scratch);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let [per_x, per_y, per_patch] = elements_of_image(c);
    for (start, n) in runs(c) {
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
                ..matmul(extents, (w, g.taps), (dy, g.positions), 0.0, (p, g.positions))
            })?;
        }
        if !is_pointwise(c) {
            let planes = n * c.channels;
            let own = args![dx, scratch, extent(planes)?];
            launch(queue, kernel!(c.format.element, "conv_unpatch"), row_grid(planes, c.input_area()), own, c)?;
        }
    }
    Ok(())
}

/// dw += dy · patchesᵀ, image after image: the order of a sum is the order of the batch. Written, not added, where
/// [`adds_gradient`] says so.
pub(super) fn filter(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    if is_depthwise(c) {
        return depthwise::filter(queue, c, (dw, x, dy), scratch);
    }
    if is_last(c) {
        return filter_last(queue, c, (dw, x, dy), scratch);
    }
    let (g, e) = (Group::of(c), c.format.element);
    let [per_x, per_y, per_patch] = elements_of_image(c);
    for (start, n) in runs(c) {
        let from = patches(queue, c, n, scratch, x.elements(start * per_x, e))?;
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
                    ..matmul(extents, (dy, g.positions), (p, g.positions), 1.0, (dw, g.taps))
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
    let rows = n * c.output_area();
    let own = args![scratch, x, extent(rows)?, extent(c.channels)?, extent(c.channels / c.groups)?];
    launch(queue, kernel!(c.format.element, "conv_patches_last"), row_grid(rows, taps(c)), own, c)?;
    Ok(scratch)
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

/// y = patches · wᵀ.
fn forward_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (y, x, w): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    let (g, e) = (Groups::of(c), c.format.element);
    let [of_w, of_p, of_y] = g.steps;
    let [per_x, per_y, _] = elements_of_image(c);
    for (start, n) in runs(c) {
        let p = patches_last(queue, c, n, scratch, x.elements(start * per_x, e))?;
        let y = y.elements(start * per_y, e);
        let extents = (n * c.output_area(), g.outputs, g.taps);
        let gemm = matmul(extents, (p, g.row), (w, g.taps), 0.0, (y, c.outputs));
        let batch = (c.groups, [of_p, of_w, of_y]);
        queue.gemm(&Gemm { trans_b: true, batch, factors: e, result: e, ..gemm })?;
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
    let (g, e) = (Groups::of(c), c.format.element);
    let [of_w, of_p, of_y] = g.steps;
    let [per_x, per_y, _] = elements_of_image(c);
    for (start, n) in runs(c) {
        let dx = dx.elements(start * per_x, e);
        let dy = dy.elements(start * per_y, e);
        let p = if is_pointwise(c) { dx } else { scratch };
        let extents = (n * c.output_area(), g.taps, g.outputs);
        let gemm = matmul(extents, (dy, c.outputs), (w, g.taps), 0.0, (p, g.row));
        let batch = (c.groups, [of_y, of_w, of_p]);
        queue.gemm(&Gemm { batch, factors: e, result: e, ..gemm })?;
        if !is_pointwise(c) {
            let rows = n * c.input_area();
            let own = args![dx, scratch, extent(rows)?, extent(c.channels)?, extent(c.channels / c.groups)?];
            launch(queue, kernel!(e, "conv_unpatch_last"), row_grid(rows, c.channels), own, c)?;
        }
    }
    Ok(())
}

/// dw = dyᵀ · patches, or added to what is there, in single precision and with channels last.
fn filter_last(
    queue: &dyn DeviceQueue,
    c: &DeviceConvolution,
    (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr),
    scratch: DevicePtr,
) -> Result<()> {
    let (g, e) = (Groups::of(c), c.format.element);
    let [of_w, of_p, of_y] = g.steps;
    let [per_x, per_y, _] = elements_of_image(c);
    for (start, n) in runs(c) {
        let p = patches_last(queue, c, n, scratch, x.elements(start * per_x, e))?;
        let dy = dy.elements(start * per_y, e);
        let beta = if start == 0 && !adds_gradient(c) { 0.0 } else { 1.0 };
        let extents = (g.outputs, g.taps, n * c.output_area());
        let gemm = matmul(extents, (dy, c.outputs), (p, g.row), beta, (dw, g.taps));
        let batch = (c.groups, [of_y, of_p, of_w]);
        queue.gemm(&Gemm { trans_a: true, batch, factors: e, ..gemm })?;
    }
    Ok(())
}
