//! Layers whose top is their bottom, perhaps under other extents: a copy, unless they share memory.

use lgm_core::{BlobSpec, Bwd, Device, Float, Fwd, Host, Plan, Result, Shape, Sharing};

/// The plan of a layer whose top is its bottom under the given shape.
pub(crate) fn plan(bottom: &BlobSpec, shape: Shape) -> Plan {
    Plan {
        share_data: vec![(0, 0, Sharing::View)],
        share_diff: vec![(0, 0)],
        ..Plan::new(vec![bottom.with_shape(shape)])
    }
}

/// Forward of such a layer: a copy, unless the memory is shared.
pub(crate) fn forward<T: Float>(mut io: Fwd<'_, Host>) -> Result<()> {
    if let Some(x) = io.bottom_unless_shared::<T>(0)? {
        io.top::<T>(0)?.copy_from_slice(x);
    }
    Ok(())
}

/// Backward of such a layer.
pub(crate) fn backward<T: Float>(mut io: Bwd<'_, Host>) -> Result<()> {
    if let (Some(dy), Some(dx)) = (io.top_diff_unless_shared::<T>(0)?, io.bottom_diff::<T>(0)?) {
        dx.copy_from_slice(dy);
    }
    Ok(())
}

/// Forward on a device.
pub(crate) fn forward_on(mut io: Fwd<'_, Device>) -> Result<()> {
    let format = io.format();
    let bytes = io.tops.first().and_then(Option::as_ref).map(|t| format.bytes(t.shape()));
    match (bytes, io.top_unless_view(0)) {
        (Some(bytes), Some(y)) => io.queue().copy(io.bottom(0)?, y, bytes),
        _ => Ok(()),
    }
}

/// Backward on a device.
pub(crate) fn backward_on(mut io: Bwd<'_, Device>) -> Result<()> {
    let dy = io.top_diffs.first().copied().flatten();
    let format = io.format();
    match (dy, io.bottom_diff(0)) {
        (Some(dy), Some(dx)) => io.queue().copy(dy.addr(), dx, format.bytes(dy.shape())),
        _ => Ok(()),
    }
}
