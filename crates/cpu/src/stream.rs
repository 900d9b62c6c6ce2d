//! Loops over results that are computed anew, and how large ones are written.
//!
//! An ordinary store to a line that no cache holds reads it from memory first, so a loop that reads one slice and writes another
//! moves three streams. A result that is larger than what caches keep until it is read is computed a run at a time into a
//! buffer, and stored from there past the caches, without reading: two streams.

use crate::kernel::vectorized;
use crate::{Float, Kernel, for_each_block};

/// Bytes from which on a result counts as large.
const LARGE: usize = 32 << 20;
/// Elements of a run: few, so that loads and stores of memory overlap.
const RUN: usize = 128;

/// Whether a result is stored past the caches.
pub(crate) fn is_large<T>(result: &[T]) -> bool {
    size_of_val(result) >= LARGE && matches!(Kernel::active(), Kernel::Avx512 | Kernel::Avx2)
}

/// A loop that computes a result from other slices.
pub(crate) trait Anew<T>: Sync {
    /// Computes every element of the part of the result that begins at `at`, reading none of them. It is to be inlined always, so
    /// that it is compiled for the kernel.
    fn compute(&self, at: usize, part: &mut [T]);
}

/// Computes a result in parallel.
pub(crate) fn compute<T: Float>(dst: &mut [T], anew: &impl Anew<T>) {
    let large = is_large(dst);
    for_each_block(dst, |at, block| compute_part(large, at, block, anew));
}

/// Computes the part of a result that begins at `at`; `large` is [`is_large`] of the whole.
pub(crate) fn compute_part<T: Float>(large: bool, at: usize, part: &mut [T], anew: &impl Anew<T>) {
    if large { in_runs(at, part, anew) } else { whole(at, part, anew) }
}

/// What is copied.
pub(crate) struct Copied<'a, T>(pub &'a [T]);

impl<T: Float> Anew<T> for Copied<'_, T> {
    #[inline(always)]
    fn compute(&self, at: usize, part: &mut [T]) {
        part.copy_from_slice(&self.0[at..at + part.len()]);
    }
}

vectorized! {
    fn whole[T: Float, A: Anew<T>](at: usize, block: &mut [T], anew: &A) {
        anew.compute(at, block);
    }
}

/// Computes a part run by run and stores it past the caches.
fn in_runs<T: Float, A: Anew<T>>(at: usize, block: &mut [T], anew: &A) {
    #[cfg(target_arch = "x86_64")]
    match Kernel::active() {
        // SAFETY: the active kernel is one whose instructions the processor has.
        Kernel::Avx512 => return unsafe { x86::in_runs_512(at, block, anew) },
        // SAFETY: as above.
        Kernel::Avx2 => return unsafe { x86::in_runs_256(at, block, anew) },
        _ => {}
    }
    whole(at, block, anew);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
    };

    use super::{Anew, RUN};
    use crate::Float;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn in_runs_512<T: Float, A: Anew<T>>(at: usize, block: &mut [T], anew: &A) {
        // SAFETY: `from` holds a vector, `to` is one, and the loop fences behind its stores.
        in_runs::<T, __m512i, A>(at, block, anew, |to, from| unsafe {
            _mm512_stream_si512(to, _mm512_loadu_si512(from))
        });
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn in_runs_256<T: Float, A: Anew<T>>(at: usize, block: &mut [T], anew: &A) {
        // SAFETY: as above.
        in_runs::<T, __m256i, A>(at, block, anew, |to, from| unsafe {
            _mm256_stream_si256(to, _mm256_loadu_si256(from))
        });
    }

    /// Computes a run at a time, each from where a cache line begins, and stores it by whole vectors V: stores of parts of a
    /// line do not combine well.
    #[inline(always)]
    fn in_runs<T: Float, V, A: Anew<T>>(at: usize, block: &mut [T], anew: &A, store: impl Fn(*mut V, *const V)) {
        let mut buffer = [T::zero(); RUN];
        let first = block.as_ptr().align_offset(64).min(block.len());
        let last = first + (block.len() - first) / RUN * RUN;
        for from in (first..last).step_by(RUN) {
            anew.compute(at + from, &mut buffer);
            // SAFETY: vectors of integers are written as such only by `store`; any bits are valid numbers.
            let (_, vectors, _) = unsafe { block[from..from + RUN].align_to_mut::<V>() };
            for (vector, from) in vectors.iter_mut().zip(buffer.chunks_exact(size_of::<V>() / size_of::<T>())) {
                store(vector, from.as_ptr().cast());
            }
        }
        for rest in [0..first, last..block.len()] {
            anew.compute(at + rest.start, &mut block[rest]);
        }
        // SAFETY: every x86-64 processor has it.
        unsafe { _mm_sfence() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BLOCK;
    use crate::testing::noise;

    #[test]
    fn every_element_arrives_at_any_alignment() {
        fn check<T: Float>(len: usize, shift: usize) {
            let (x, outside): (Vec<T>, T) = (noise(len, 1), T::of(-9.0));
            let mut y = vec![outside; len + 16];
            in_runs(0, &mut y[shift..shift + len], &Copied(&x));
            assert!(y[..shift].iter().chain(&y[shift + len..]).all(|&y| y == outside), "{len} at {shift}");
            assert!(y[shift..].iter().zip(&x).all(|(&y, &x)| y == x), "{len} at {shift}");
        }
        for len in [0, 1, 3, RUN - 1, RUN + 5, BLOCK, 2 * RUN + 77] {
            for shift in [0, 1, 2, 3, 5, 15] {
                check::<f32>(len, shift);
                check::<f64>(len, shift);
            }
        }
    }

    #[test]
    fn every_element_of_a_large_result_arrives() {
        let len = LARGE / 4 + 3;
        let x: Vec<f32> = noise(len, 1);
        let mut y = vec![0.0; len];
        compute(&mut y, &Copied(&x));
        assert!(x == y);
    }
}
