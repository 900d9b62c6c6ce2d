//! Rows that are made of parts, as Concat and Slice have them.

use lgm_core::{DevicePtr, DeviceQueue, Element, Float, Format, Formats, Layout, Offer, Result, Shape, args, kernel};
use lgm_cpu::for_each_row;

use super::launch::{extent, row_grid};

/// Writes rows that are the rows of `parts` end to end; a row of part i has `lens[i]` elements.
pub(crate) fn gather<T: Float>(whole: &mut [T], parts: &[&[T]], lens: &[usize]) {
    for_each_row(whole, lens.iter().sum(), |n, mut row| {
        for (part, &len) in parts.iter().zip(lens) {
            let (here, rest) = row.split_at_mut(len);
            here.copy_from_slice(&part[n * len..][..len]);
            row = rest;
        }
    });
}

/// Writes the part that starts at element `start` of each of the rows of `whole`.
pub(crate) fn scatter<T: Float>(part: &mut [T], whole: &[T], lens: &[usize], start: usize) {
    let row_len: usize = lens.iter().sum();
    let rows = whole.len() / row_len.max(1);
    let len = part.len() / rows.max(1);
    for_each_row(part, len, |n, row| row.copy_from_slice(&whole[n * row_len + start..][..len]));
}

/// Copies rows of `width` elements that are one pitch apart to where they are another apart.
pub(crate) fn copy_rows(
    queue: &dyn DeviceQueue,
    element: Element,
    (rows, width): (usize, usize),
    (to, to_pitch): (DevicePtr, usize),
    (from, from_pitch): (DevicePtr, usize),
) -> Result<()> {
    let args = args![to, from, extent(rows)?, extent(width)?, to_pitch as i64, from_pitch as i64];
    queue.launch(kernel!(element, "channels_copy"), row_grid(rows, width), args)
}

/// For each part of a row: where it starts, and its length.
pub(crate) fn spans(parts: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    parts.iter().scan(0, |start, &len| {
        *start += len;
        Some((*start - len, len))
    })
}

/// Every blob as the first comes; with its channels last only where it is they that are laid end to end.
pub(crate) fn formats(offer: &Offer<'_>, axis: usize) -> Formats {
    if axis == 1 { offer.follow() } else { offer.follow_channels_first() }
}

/// The rows of a launch, and the parts of each, for a blob in a format: with channels last, every position of an image is
/// a row.
pub(crate) fn rows_in(format: Format, whole: &Shape, rows: usize, parts: &[usize]) -> (usize, Vec<usize>) {
    match format.layout {
        Layout::ChannelsFirst => (rows, parts.to_vec()),
        Layout::ChannelsLast => {
            let inner = whole.count_from(2).max(1);
            (rows * inner, parts.iter().map(|part| part / inner).collect())
        }
    }
}
