//! Helpers of the tests.

use crate::Float;

/// Numbers in [−1, 1) that depend on the seed alone.
pub(crate) fn noise<T: Float>(len: usize, seed: u64) -> Vec<T> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            T::of((s >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
        })
        .collect()
}

/// Runs `f` in teams of one, two and three threads and compares what it returns bit by bit.
pub(crate) fn same_bits_on_any_threads<T: Float>(f: impl Fn() -> Vec<T> + Sync) {
    let run = |threads| crate::with_threads(threads, || f().iter().map(|v| v.f64().to_bits()).collect::<Vec<_>>());
    let one = run(1);
    assert!(one == run(2) && one == run(3), "the result depends on the number of threads");
}

/// Largest difference from a reference, relative to the reference's root mean square.
pub(crate) fn relative_error<T: Float>(found: &[T], want: &[f64]) -> f64 {
    assert_eq!(found.len(), want.len());
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt().max(1e-30);
    let worst = found.iter().zip(want).map(|(f, w)| {
        let d = (f.f64() - w).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    });
    worst.fold(0.0, f64::max) / rms
}
