//! A blob on a device from one format to another.

use lgm_core::{Axes3, DevicePtr, DeviceQueue, Element, Format, Grid, Layout, Result, args, kernel};

use super::launch::extent;

/// y = x, or y += x with `add`, from one format to another; the blob is images × channels × positions.
pub(crate) fn convert(
    queue: &dyn DeviceQueue,
    (y, to): (DevicePtr, Format),
    (x, from): (DevicePtr, Format),
    axes: Axes3,
    add: bool,
) -> Result<()> {
    let Axes3 { outer, channels, inner } = axes;
    let (n, flag) = (axes.count(), u32::from(add));
    if to.layout == from.layout || channels == 1 || inner == 1 {
        let narrowing = match (to.element, from.element) {
            (Element::Bf16, Element::F32) => "format_narrow",
            (Element::F32, Element::Bf16) => "format_widen",
            (element, _) if add => {
                let args = args![y, y, x, 1.0f32, 1.0f32, n as i64];
                return queue.launch(kernel!(element, "eltwise_sum"), Grid::elements(n), args);
            }
            (element, _) => return queue.copy(x, y, n * element.bytes()),
        };
        return queue.launch(narrowing, Grid::elements(n.div_ceil(4)), args![y, x, flag, n as i64]);
    }
    let kernel = match (to.element, from.element) {
        (Element::F32, Element::F32) => "format_transpose",
        (Element::Bf16, Element::Bf16) => "format_transpose_bf16",
        (Element::Bf16, Element::F32) => "format_transpose_narrow",
        (Element::F32, Element::Bf16) => "format_transpose_widen",
    };
    let (rows, columns) = if from.layout == Layout::ChannelsFirst { (channels, inner) } else { (inner, channels) };
    let squares = extent(rows.div_ceil(32) * columns.div_ceil(32))?;
    let grid = Grid { blocks: [squares, outer.clamp(1, 65535) as u32, 1], threads: [32, 8, 1] };
    queue.launch(kernel, grid, args![y, x, flag, extent(outer)?, extent(rows)?, extent(columns)?])
}
