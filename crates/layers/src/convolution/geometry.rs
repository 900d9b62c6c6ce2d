//! What the kernels of two-dimensional convolution ask of its geometry.

use lgm_core::{Arg, Axes3, DeviceConvolution, DeviceQueue, Element, Format, Grid, Layout, Result, Window};

use crate::common::launch::window_args;

/// Whether every group has one channel.
pub(super) fn is_depthwise(c: &DeviceConvolution) -> bool {
    c.groups == c.channels
}

/// Elements that patches may have.
const PATCHES: usize = 32 << 20;

/// Whether the channels are last.
pub(super) fn is_last(c: &DeviceConvolution) -> bool {
    c.format.layout == Layout::ChannelsLast
}

/// Elements of all filters.
pub(super) fn filter_count(c: &DeviceConvolution) -> usize {
    c.outputs * taps(c) / c.groups
}

/// The filters as a blob of images, channels and positions.
pub(super) fn filter_extents(c: &DeviceConvolution) -> Axes3 {
    Axes3::new(c.outputs, c.channels / c.groups, c.kernel_area())
}

/// Whether the filters' gradient, which is in single precision, lies as the parameter's does: then it is added to that, and
/// otherwise written.
pub(super) fn adds_gradient(c: &DeviceConvolution) -> bool {
    DeviceConvolution { format: Format { element: Element::F32, ..c.format }, ..*c }.has_plain_filters()
}

/// Whether patches are the input itself.
pub(super) fn is_pointwise(c: &DeviceConvolution) -> bool {
    c.windows.iter().all(Window::is_pointwise)
}

/// Rows of an image's patches.
pub(super) fn taps(c: &DeviceConvolution) -> usize {
    c.channels * c.kernel_area()
}

/// Images of a batch whose patches, of so many elements an image, are made at a time.
pub(super) fn images_at_once(batch: usize, patches: usize) -> usize {
    (PATCHES / patches.max(1)).clamp(1, batch.max(1))
}

/// Runs of images that are taken together: the first, and how many.
pub(super) fn runs_of(batch: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..batch).step_by(at_once).map(move |start| (start, at_once.min(batch - start)))
}

/// Images whose patches are made at a time.
pub(super) fn images(c: &DeviceConvolution) -> usize {
    images_at_once(c.batch, taps(c) * c.output_area())
}

pub(super) fn runs(c: &DeviceConvolution) -> impl Iterator<Item = (usize, usize)> + use<> {
    runs_of(c.batch, images(c))
}

/// Runs a kernel whose last arguments are the geometry.
pub(super) fn launch(
    queue: &dyn DeviceQueue,
    kernel: &'static str,
    grid: Grid,
    own: &[Arg],
    conv: &DeviceConvolution,
) -> Result<()> {
    let mut args = own.to_vec();
    args.extend(window_args(&conv.windows, true)?);
    queue.launch(kernel, grid, &args)
}
