//! How many bottoms and tops a layer takes.

use std::ops::RangeInclusive;

/// How many bottoms and tops a layer takes.
#[derive(Clone, Debug)]
pub struct Arity {
    /// Allowed number of bottoms.
    pub bottoms: RangeInclusive<usize>,
    /// Allowed number of tops.
    pub tops: RangeInclusive<usize>,
    /// There must be as many tops as bottoms.
    pub equal: bool,
    /// Missing tops, up to the least number allowed, are made up by the net (losses need no named top).
    pub auto_tops: bool,
}

impl Arity {
    /// Exactly so many bottoms and tops.
    pub fn exactly(bottoms: usize, tops: usize) -> Self {
        Arity::range(bottoms..=bottoms, tops..=tops)
    }

    /// Bottoms and tops within ranges.
    pub fn range(bottoms: RangeInclusive<usize>, tops: RangeInclusive<usize>) -> Self {
        Arity { bottoms, tops, equal: false, auto_tops: false }
    }

    /// The same, with missing tops made up by the net.
    pub fn with_auto_tops(self) -> Self {
        Arity { auto_tops: true, ..self }
    }

    /// One or more bottoms, each with its own top.
    pub fn pairs() -> Self {
        Arity { equal: true, ..Arity::range(1..=usize::MAX, 1..=usize::MAX) }
    }
}
