//! Laying blobs out in one arena: regions whose times of use do not meet may share bytes.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

/// Bytes are aligned to this, a cache line and the widest vector.
pub const ALIGN: usize = 64;
/// Blobs and scratch of a device are aligned to this, as memory that a device gives out is: its libraries' fastest ways
/// want some of it, and no one promises that less is enough for their workspace.
pub const DEVICE_ALIGN: usize = 256;

/// The next multiple of [`ALIGN`], at most `usize::MAX`.
pub fn round_up(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX)
}

/// A run of bytes needed from time `start` to time `end`, both inclusive.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Length in bytes.
    pub bytes: usize,
    /// First time of use.
    pub start: usize,
    /// Last time of use.
    pub end: usize,
}

/// Gives each region an offset, a multiple of `align`, such that regions in use at a common time do not overlap; returns the offsets and the
/// arena's length, at most `usize::MAX`, which no memory has. Greedy: the largest region first, each at the lowest offset
/// that is free for its time.
pub fn pack(regions: &[Region], align: usize) -> (Vec<usize>, usize) {
    let round_up = |bytes: usize| bytes.checked_next_multiple_of(align).unwrap_or(usize::MAX);
    let mut order: Vec<usize> = (0..regions.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(regions[i].bytes), regions[i].start, i));
    let mut offsets = vec![0; regions.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(regions.len());
    let mut total = 0usize;
    for i in order {
        let (r, bytes) = (regions[i], round_up(regions[i].bytes));
        // `placed` is sorted by offset, so one sweep finds the lowest gap.
        let mut offset = 0usize;
        for &j in &placed {
            let o = regions[j];
            if bytes == 0 || o.end < r.start || r.end < o.start {
                continue;
            }
            if offsets[j] >= offset.saturating_add(bytes) {
                break;
            }
            offset = offset.max(offsets[j].saturating_add(round_up(o.bytes)));
        }
        offsets[i] = offset;
        total = total.max(offset.saturating_add(bytes));
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_in_use_together_never_overlap_and_others_share() {
        let mut seed = 1u64;
        let mut next = |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..200 {
            let regions: Vec<Region> = (0..1 + next(30))
                .map(|_| {
                    let start = next(20);
                    Region { bytes: next(1000), start, end: start + next(6) }
                })
                .collect();
            let align = [ALIGN, DEVICE_ALIGN][next(2)];
            let (offsets, total) = pack(&regions, align);
            for (i, a) in regions.iter().enumerate() {
                assert!(offsets[i] % align == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in regions.iter().enumerate().skip(i + 1) {
                    let together = a.start <= b.end && b.start <= a.end;
                    let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                    assert!(!(together && overlap), "{a:?} at {} and {b:?} at {}", offsets[i], offsets[j]);
                }
            }
        }
        let chain: Vec<Region> = (0..10).map(|i| Region { bytes: 640, start: i, end: i + 1 }).collect();
        assert_eq!([ALIGN, DEVICE_ALIGN].map(|align| pack(&chain, align).1), [1280, 1536]);
    }

    #[test]
    fn sums_beyond_every_address_do_not_wrap() {
        let huge = Region { bytes: isize::MAX as usize, start: 0, end: 1 };
        assert_eq!(pack(&[huge; 3], ALIGN).1, usize::MAX);
    }
}
