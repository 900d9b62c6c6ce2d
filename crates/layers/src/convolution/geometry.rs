//! What convolution by our own kernels asks of its geometry.

use lgm_core::{Axes3, DeviceConvolution, Element, Format, Layout, Window};

/// Whether every group has one channel.
pub(super) fn is_depthwise(c: &DeviceConvolution) -> bool {
    c.groups == c.channels
}

/// Elements that patches may have.
const PATCHES: usize = 32 << 20;

/// Whether the channels are last.
pub(super) fn is_last<const N: usize>(c: &DeviceConvolution<N>) -> bool {
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
pub(super) fn is_pointwise<const N: usize>(c: &DeviceConvolution<N>) -> bool {
    c.windows.iter().all(Window::is_pointwise)
}

/// Rows of an image's patches.
pub(super) fn taps<const N: usize>(c: &DeviceConvolution<N>) -> usize {
    c.channels * c.kernel_area()
}

/// Images whose patches are made at a time.
pub(super) fn images<const N: usize>(c: &DeviceConvolution<N>) -> usize {
    (PATCHES / (taps(c) * c.output_area()).max(1)).clamp(1, c.batch.max(1))
}

/// Runs of images whose patches are made together: the first, and how many.
pub(super) fn runs<const N: usize>(c: &DeviceConvolution<N>) -> impl Iterator<Item = (usize, usize)> + use<N> {
    let (batch, at_once) = (c.batch, images(c));
    (0..batch).step_by(at_once).map(move |start| (start, at_once.min(batch - start)))
}
