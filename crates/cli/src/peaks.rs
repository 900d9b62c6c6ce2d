//! What this machine can do, measured: the ceilings that `time` compares layers with.

use std::hint::black_box;
use std::time::Instant;

use lgm_cpu::{Trans, elementwise, gemm};

/// The machine's ceilings, over all threads.
pub struct Peaks {
    /// Operations a second of a large matrix product, in units of 10⁹.
    pub gflops: f64,
    /// Bytes read and written a second by a large copy, in units of 10⁹.
    pub gbytes: f64,
}

/// Measures both, in about a second.
pub fn measure() -> Peaks {
    let n = 1536;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0.0f32; n * n]);
    let product = best(|| gemm(Trans::No, Trans::No, n, n, n, 1.0, &a, n, &b, n, 0.0, &mut c, n));
    let (from, mut to) = (vec![1.0f32; 1 << 25], vec![0.0f32; 1 << 25]);
    let copy = best(|| elementwise::copy(&from, &mut to));
    black_box((&c, &to));
    Peaks { gflops: 2.0 * (n as f64).powi(3) / product / 1e9, gbytes: 8.0 * from.len() as f64 / copy / 1e9 }
}

/// Seconds of the quickest of a few runs after one to warm up.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let timed = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(timed).fold(f64::INFINITY, f64::min)
}
