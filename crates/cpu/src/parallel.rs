//! Parallel loops over blocks of fixed size: who runs a block never changes what it computes.

use std::marker::PhantomData;
use std::ops::Range;

use crate::team;

/// Elements in a block of an element-wise loop: 64 KiB of `f32`.
pub const BLOCK: usize = 16 * 1024;

/// Calls `task(i)` for `i` in `0..count`, over the threads when `parallel`.
pub(crate) fn tasks(count: usize, parallel: bool, task: impl Fn(usize) + Sync) {
    if parallel {
        team::run(count, &task);
    } else {
        (0..count).for_each(task);
    }
}

/// Calls `task` with consecutive ranges of at most `block` items that cover `0..items`, in parallel.
///
/// The ranges depend on `items` and `block` only.
pub(crate) fn for_blocks(items: usize, block: usize, task: impl Fn(Range<usize>) + Sync) {
    let block = block.max(1);
    tasks(items.div_ceil(block), true, |i| task(i * block..((i + 1) * block).min(items)));
}

/// Calls `task(i, row)` for each row of `row_len` elements of `dst`, in parallel; short rows are taken several at a time.
pub fn for_each_row<T: Send>(dst: &mut [T], row_len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let row_len = row_len.max(1);
    let rows_at_once = (BLOCK / row_len).max(1);
    for_each_part(dst, row_len * rows_at_once, |b, rows| {
        rows.chunks_mut(row_len).enumerate().for_each(|(i, row)| task(b * rows_at_once + i, row));
    });
}

/// Calls `task(i, part)` for each part of `len` elements of `dst`, in parallel.
pub fn for_each_part<T: Send>(dst: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let (len, whole) = (len.max(1), dst.len());
    let shared = Shared::new(dst);
    tasks(whole.div_ceil(len), true, |i| {
        // SAFETY: the parts are disjoint, and each is one task's.
        task(i, unsafe { shared.part(i * len..((i + 1) * len).min(whole)) });
    });
}

/// Calls `task(i, parts)` for matching parts of `len` elements of equally long slices, in parallel.
///
/// # Panics
/// When a slice is shorter than the first.
pub fn for_each_part_of<T: Send, const N: usize>(
    slices: [&mut [T]; N],
    len: usize,
    task: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let (len, whole) = (len.max(1), slices.first().map_or(0, |s| s.len()));
    let shared = slices.map(Shared::new);
    tasks(whole.div_ceil(len), true, |i| {
        // SAFETY: the parts are disjoint, and each is one task's.
        task(i, shared.each_ref().map(|s| unsafe { s.part(i * len..((i + 1) * len).min(whole)) }));
    });
}

/// Calls `task(i, rows)` for each i below `rows` with row i of every slice, whose rows are as long as is said beside it, in
/// parallel; `at_once` rows are one task's.
///
/// # Panics
/// When a slice has too few rows.
pub fn for_each_row_of<T: Send, const N: usize>(
    slices: [(&mut [T], usize); N],
    rows: usize,
    at_once: usize,
    task: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let shared = slices.map(|(slice, len)| (Shared::new(slice), len));
    for_blocks(rows, at_once, |block| {
        for i in block {
            // SAFETY: the rows are disjoint, and each is one task's.
            task(i, shared.each_ref().map(|(s, len)| unsafe { s.part(i * len..(i + 1) * len) }));
        }
    });
}

/// Calls `task(offset, part)` for consecutive parts of [`BLOCK`] elements of `dst`, in parallel.
pub fn for_each_block<T: Send>(dst: &mut [T], task: impl Fn(usize, &mut [T]) + Sync) {
    for_each_part(dst, BLOCK, |b, part| task(b * BLOCK, part));
}

/// A mutable slice that tasks write disjoint parts of.
pub(crate) struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through unsafe methods whose callers promise that no two tasks overlap.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice until the borrow ends.
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len(), of: PhantomData }
    }

    /// The address of an element.
    ///
    /// # Panics
    /// When `span` elements from `at` on are not all in the slice.
    pub fn at(&self, at: usize, span: usize) -> *mut T {
        assert!(at + span <= self.len, "block {at}+{span} outside a slice of {}", self.len);
        self.ptr.wrapping_add(at)
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other task may touch the range while the part lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} outside a slice of {}", self.len);
        // SAFETY: in bounds, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.end - range.start) }
    }
}
