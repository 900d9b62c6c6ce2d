//! How layers launch kernels: extents, grids, and what several of them run.

use lgm_core::{Arg, DeviceCall, DevicePtr, Element, Error, Gemm, Grid, Result, Window, args, kernel};

/// An extent as kernels take it.
///
/// # Errors
/// When it exceeds 2³² − 2²⁹.
pub(crate) fn extent(n: usize) -> Result<u32> {
    // Strides of a grid must not wrap around before the end is seen.
    let most = u32::MAX - (1 << 29);
    n.try_into().ok().filter(|&n| n <= most).ok_or_else(|| {
        Error::config(format!("an extent of {n} is more than kernels can count ({most}); split the blob"))
    })
}

/// Windows as the last arguments of kernels over them: the inputs of all axes, then the outputs, kernels, strides and paddings,
/// and the dilations of kernels that take any.
pub(crate) fn window_args(windows: &[Window], dilated: bool) -> Result<Vec<Arg>> {
    let extents: [fn(&Window) -> usize; 6] =
        [|w| w.input, |w| w.output, |w| w.kernel, |w| w.stride, |w| w.pad.unsigned_abs(), |w| w.dilation];
    let taken = if dilated { &extents[..] } else { &extents[..5] };
    taken.iter().flat_map(|of| windows.iter().map(|w| extent(of(w)).map(Arg::from))).collect()
}

/// The grid of a kernel that strides over `rows` rows in y and `width` positions in x: blocks of up to 256 threads, as
/// wide as a row needs.
pub(crate) fn row_grid(rows: usize, width: usize) -> Grid {
    let threads = row_threads(width);
    let blocks = |n: usize, by: u32, most: usize| n.div_ceil(by as usize).clamp(1, most) as u32;
    Grid { blocks: [blocks(width, threads[0], 1 << 20), blocks(rows, threads[1], 65535), 1], threads }
}

/// Threads of a block for rows of so many positions: no more across than these, and as many rows as fit.
pub(crate) fn row_threads(width: usize) -> [u32; 3] {
    let across = width.clamp(1, Grid::THREADS as usize) as u32;
    [across, Grid::THREADS / across, 1]
}

/// y[i] = value, stored as the first top is.
pub(crate) fn fill(call: DeviceCall<'_>, y: DevicePtr, value: f32, n: usize) -> Result<()> {
    call.launch(kernel!("pointwise_fill"), Grid::elements(n), args![y, value, n as i64])
}

/// C ← A · B + β · C: one matrix multiplication given by their address and the distance between their rows.
pub(crate) fn matmul(
    (m, n, k): (usize, usize, usize),
    (a, lda): (DevicePtr, usize),
    (b, ldb): (DevicePtr, usize),
    beta: f32,
    (c, ldc): (DevicePtr, usize),
) -> Gemm {
    let (trans_a, trans_b, alpha, batch, exact) = (false, false, 1.0, (1, [0; 3]), false);
    let (factors, result) = (Element::F32, Element::F32);
    Gemm { trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch, exact, factors, result }
}
