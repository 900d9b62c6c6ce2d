//! Laying blobs out in one arena: regions whose times of use do not meet may share bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use lgm_core::Result;
use lgm_core::memory::{self, Reserved};

/// Bytes are aligned to this, a cache line and the widest vector.
pub const ALIGN: usize = 64;
/// Blobs and scratch of a device are aligned to this, as memory that a device gives out is: its libraries' fastest ways
/// want some of it, and no one promises that less is enough for their workspace.
pub const DEVICE_ALIGN: usize = 256;

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

/// The next multiple of [`ALIGN`], at most `usize::MAX`.
pub fn round_up(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX)
}

/// Zeroed, aligned bytes of the host.
pub struct Memory {
    addr: NonNull<u8>,
    layout: Layout,
    _reserved: Reserved,
}

// SAFETY: the bytes are owned by this value alone; access goes through views bound to borrows of the net.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` only gives out its address.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates `bytes` zeroed bytes; `what` they are for is for the message.
    ///
    /// # Errors
    /// [`lgm_core::Error::Memory`] when the system has not as many.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        let size = Memory::size(bytes);
        let refused = || memory::refused(size, what);
        let layout = Layout::from_size_align(size, ALIGN).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let addr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        Ok(Memory { addr, layout, _reserved: Reserved::new(size) })
    }

    /// The length of the memory that is made for so many bytes.
    pub fn size(bytes: usize) -> usize {
        round_up(bytes).max(ALIGN)
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes, owned by this value, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len()) }
    }

    /// The address of the byte at `offset`, which must not lie beyond the end.
    pub(crate) fn addr(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len(), "an offset beyond the arena");
        // SAFETY: within the allocation or one past it.
        unsafe { self.addr.as_ptr().add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.addr.as_ptr(), self.layout) }
    }
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
        let error = Memory::new(usize::MAX, "the arena").err().unwrap().to_string();
        assert!(error.contains("the arena takes") && error.contains("there are only"), "{error}");
    }
}
