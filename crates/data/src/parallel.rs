//! Threads that share the images of one batch.

use std::sync::{Mutex, PoisonError};
use std::thread;

use lgm_core::{Error, Result};

/// Images that are worth a thread.
const IMAGES_PER_THREAD: usize = 8;

/// How many threads share a batch of so many images, where each takes a decoder's time.
pub(crate) fn threads_for(images: usize) -> usize {
    thread::available_parallelism().map_or(1, |n| n.get()).min(images.div_ceil(IMAGES_PER_THREAD)).max(1)
}

/// Runs `one` on each row of `each` values of `outputs`, on so many threads; returns what it returned, in order. Which
/// thread takes which row is left to them. Threads of its own, not the pool's: the pool may be waiting for this very batch.
///
/// # Errors
/// That of the first row that fails, whatever the number of threads.
pub(crate) fn in_parallel<R: Send>(
    outputs: &mut [f32],
    each: usize,
    threads: usize,
    one: impl Fn(usize, &mut [f32]) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let rows = outputs.chunks_exact_mut(each.max(1)).enumerate();
    if threads <= 1 {
        return rows.map(|(i, row)| one(i, row)).collect();
    }
    let rows = Mutex::new(rows);
    // Rows are taken in order, and one that was taken is worked on to its end, so that the first failure is always found.
    let work = || {
        let mut done = Vec::new();
        loop {
            let next = rows.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((i, row)) = next else { return done };
            let result = one(i, row);
            let failed = result.is_err();
            done.push((i, result));
            if failed {
                return done;
            }
        }
    };
    let (mut all, joined) = thread::scope(|scope| {
        // Where the system gives no more threads, those there are do it all.
        let helper = |_| thread::Builder::new().name("decoder".into()).spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..threads).map_while(helper).collect();
        let mut all = work();
        let joined = helpers.into_iter().try_for_each(|helper| helper.join().map(|done| all.extend(done)));
        (all, joined)
    });
    joined.map_err(|_| Error::internal("a thread that decodes images panicked"))?;
    all.sort_unstable_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_threads_does_the_same() {
        for threads in [1, 2, 7, 40] {
            let mut out = vec![0.0; 3 * 20];
            let results = in_parallel(&mut out, 3, threads, |i, row| {
                row.fill(i as f32);
                Ok(i * i)
            });
            assert_eq!(results.unwrap(), (0..20).map(|i| i * i).collect::<Vec<_>>());
            assert!(out.chunks(3).enumerate().all(|(i, row)| row == [i as f32; 3]), "{threads}: {out:?}");
        }
    }

    #[test]
    fn the_first_row_that_fails_is_told_of() {
        for threads in [1, 2, 5] {
            for _ in 0..20 {
                let one = |i: usize, _: &mut [f32]| match i {
                    3 | 4 | 11 => Err(Error::config(format!("row {i}"))),
                    _ => Ok(()),
                };
                assert_eq!(in_parallel(&mut [0.0; 20], 1, threads, one).unwrap_err().to_string(), "row 3");
            }
        }
    }
}
