//! What a convolution does to each output when its sum is complete, before the output leaves the cache.

use crate::Float;
use crate::elementwise::{map_block_in_place, rectified, zip_block};
use crate::parallel::for_each_row;

/// Adds its channel's b to every output, then clears what is negative; either may be left out.
///
/// The bits are those of the two steps in passes of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Epilogue<'a, T> {
    /// b, of as many elements as there are channels.
    pub bias: Option<&'a [T]>,
    /// Whether y = max(y, 0) follows.
    pub relu: bool,
}

impl<'a, T: Float> Epilogue<'a, T> {
    /// A bias alone.
    pub fn bias(bias: &'a [T]) -> Self {
        Epilogue { bias: Some(bias), relu: false }
    }

    /// Completes outputs of one channel.
    pub(super) fn apply(&self, channel: usize, y: &mut [T]) {
        match (self.bias.map(|bias| bias[channel]), self.relu) {
            (Some(b), false) => map_block_in_place(y, &|y| y + b),
            (Some(b), true) => map_block_in_place(y, &|y| rectified(y + b)),
            (None, true) => map_block_in_place(y, &rectified),
            (None, false) => {}
        }
    }

    /// Completes images of so many `channels` of `area` elements, in a pass of its own.
    pub(super) fn apply_to_images(&self, y: &mut [T], channels: usize, area: usize) {
        if let (Some(bias), relu, 1) = (self.bias, self.relu, area) {
            let complete = |y: T, b: T| if relu { rectified(y + b) } else { y + b };
            for_each_row(y, channels, |_, y| zip_block(bias, y, &complete));
        } else if self.changes() {
            for_each_row(y, area, |row, y| self.apply(row % channels, y));
        }
    }

    /// Whether there is anything to do.
    pub(super) fn changes(&self) -> bool {
        self.bias.is_some() || self.relu
    }
}
