//! Reusable scratch memory: each thread keeps the buffers it has needed, so steady state allocates nothing.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use lgm_core::{Error, Result, memory};

use crate::Float;

/// One cache line; also the alignment of every buffer.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// What a buffer that cannot be had unwinds with.
struct OutOfScratch(Error);

/// Runs `body`, which computes in scratch memory on this thread and the team's. Loops have no way to return an error from
/// their midst, so one for which there is no scratch memory unwinds, without a word, to here.
///
/// # Errors
/// What `body` returns, and [`Error::Memory`].
pub fn with_scratch<R>(body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| match panic.downcast::<OutOfScratch>() {
        Ok(out) => Err(out.0),
        Err(panic) => resume_unwind(panic),
    })
}

/// A buffer on loan from the thread that asked for it. Its contents are unspecified but initialised.
///
/// A task may hold several, and one that starts a loop of its own runs that loop's tasks while it holds them.
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Float> Scratch<T> {
    /// A buffer of at least `len` elements, of which `len` are seen.
    pub fn new(len: usize) -> Self {
        let need = len.saturating_mul(size_of::<T>()).div_ceil(64);
        let mut lines = SPARE.with_borrow_mut(|spare| {
            // The smallest that fits, else the largest, which then grows.
            let fit = (0..spare.len()).filter(|&i| spare[i].len() >= need).min_by_key(|&i| spare[i].len());
            let pick = fit.or_else(|| (0..spare.len()).max_by_key(|&i| spare[i].len()));
            pick.map(|i| spare.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < need {
            lines.clear();
            if let Err(error) = memory::reserve(&mut lines, need, "scratch memory") {
                resume_unwind(Box::new(OutOfScratch(error)));
            }
            lines.resize(need, Line([0; 64]));
        }
        Scratch { lines, len, of: PhantomData }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // The thread may be ending, its storage gone: then the buffer is simply freed.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(lines));
    }
}

impl<T: Float> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold at least `len` elements, aligned to 64, and any bits are a valid f32 or f64.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Float> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_a_buffer_is_an_error_on_any_thread() {
        let ask = |len: usize| {
            with_scratch(|| {
                crate::with_threads(3, || {
                    crate::team::run(8, &|i| drop(Scratch::<f32>::new(if i == 5 { len } else { 1 })))
                });
                Ok(())
            })
        };
        assert!(ask(100).is_ok());
        for len in [1 << 50, usize::MAX] {
            let error = ask(len).unwrap_err().to_string();
            assert!(error.contains("scratch memory takes"), "{error}");
        }
        assert!(ask(100).is_ok());
    }
}
