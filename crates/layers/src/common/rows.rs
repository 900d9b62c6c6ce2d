//! One blob whose rows are those of several others end to end, as Concat and Slice have it.

use lgm_core::{DeviceCall, DevicePtr, Float, Format, Formats, Layout, Offer, Result, Shape, args, ensure, kernel};
use lgm_cpu::for_each_row;

use super::launch::{extent, row_grid};

/// The axis that a layer is given as `axis`, or by its older name `dim_name`, which counts from the outermost axis only.
///
/// # Errors
/// When both are given, or the shape has no such axis.
pub(crate) fn axis_of(shape: &Shape, axis: i32, dim: Option<u32>, dim_name: &str) -> Result<usize> {
    let Some(dim) = dim else { return shape.axis(axis) };
    ensure!((dim as usize) < shape.len(), "{dim_name} {dim} is out of range for the shape {shape}");
    Ok(dim as usize)
}

/// Refuses both names of an axis at once.
///
/// # Errors
/// When both are given.
pub(crate) fn check_names(axis: Option<i32>, dim: Option<u32>, dim_name: &str) -> Result<()> {
    let one = axis.is_none() || dim.is_none();
    ensure!(one, "both axis and {dim_name} are given; they mean the same: keep axis");
    Ok(())
}

/// The parts of each row of the whole.
#[derive(Default)]
pub(crate) struct Parts {
    /// Elements of each part; none where the whole is its only part.
    lens: Vec<usize>,
    /// Rows.
    rows: usize,
    axis: usize,
}

impl Parts {
    /// Parts of `lens` elements along `axis` of blobs that are like `shape` before it.
    pub fn new(shape: &Shape, axis: usize, lens: Vec<usize>) -> Parts {
        Parts { lens, rows: shape.span(0..axis), axis }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether the whole is its only part.
    pub fn is_view(&self) -> bool {
        self.lens.is_empty()
    }

    fn start(&self, part: usize) -> usize {
        self.lens[..part].iter().sum()
    }

    fn row(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Writes the whole from its parts.
    pub fn gather<T: Float>(&self, whole: &mut [T], parts: &[&[T]]) {
        for_each_row(whole, self.row(), |n, mut row| {
            for (part, &len) in parts.iter().zip(&self.lens) {
                let (here, rest) = row.split_at_mut(len);
                here.copy_from_slice(&part[n * len..][..len]);
                row = rest;
            }
        });
    }

    /// Writes part `i` from the whole.
    pub fn scatter<T: Float>(&self, i: usize, part: &mut [T], whole: &[T]) {
        let (row, start, len) = (self.row(), self.start(i), self.lens[i]);
        for_each_row(part, len, |n, part| part.copy_from_slice(&whole[n * row + start..][..len]));
    }

    /// Every blob as the first comes; with its channels last only where it is they that are laid end to end.
    pub fn formats(&self, offer: &Offer<'_>) -> Formats {
        if self.axis == 1 { offer.follow() } else { offer.follow_channels_first() }
    }

    /// Makes them those of blobs in a format, `like` one of which is: with channels last, every position of an image is a
    /// row.
    pub fn store_as(&mut self, format: Format, like: &Shape) {
        if format.layout == Layout::ChannelsLast {
            let inner = like.count_from(2).max(1);
            self.rows *= inner;
            self.lens.iter_mut().for_each(|len| *len /= inner);
        }
    }

    /// Copies part `i` into the whole, on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn copy_in(&self, call: DeviceCall<'_>, i: usize, whole: DevicePtr, part: DevicePtr) -> Result<()> {
        let (row, len) = (self.row(), self.lens[i]);
        self.copy(call, len, (self.place(call, i, whole), row), (part, len))
    }

    /// Copies part `i` out of the whole, on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn copy_out(&self, call: DeviceCall<'_>, i: usize, part: DevicePtr, whole: DevicePtr) -> Result<()> {
        let (row, len) = (self.row(), self.lens[i]);
        self.copy(call, len, (part, len), (self.place(call, i, whole), row))
    }

    /// Where part `i` begins in the whole.
    fn place(&self, call: DeviceCall<'_>, i: usize, whole: DevicePtr) -> DevicePtr {
        whole.elements(self.start(i), call.format().element)
    }

    /// Copies rows of `width` elements that are one pitch apart to where they are another apart.
    fn copy(
        &self,
        call: DeviceCall<'_>,
        width: usize,
        (to, to_pitch): (DevicePtr, usize),
        (from, from_pitch): (DevicePtr, usize),
    ) -> Result<()> {
        let args = args![to, from, extent(self.rows)?, extent(width)?, to_pitch as i64, from_pitch as i64];
        call.launch(kernel!("channels_copy"), row_grid(self.rows, width), args)
    }
}
