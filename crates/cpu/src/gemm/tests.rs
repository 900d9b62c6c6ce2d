use super::*;
use crate::testing::{noise, same_bits_on_any_threads};

/// The product in f64, element by element.
#[allow(clippy::too_many_arguments)]
fn naive<T: Float>(
    ta: Trans,
    tb: Trans,
    (m, n, k): (usize, usize, usize),
    alpha: f64,
    a: &[T],
    lda: usize,
    b: &[T],
    ldb: usize,
    beta: f64,
    c: &[T],
    ldc: usize,
) -> Vec<f64> {
    let mut out: Vec<f64> = c.iter().map(|v| v.f64()).collect();
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k)
                .map(|p| {
                    let x = if ta == Trans::No { a[i * lda + p] } else { a[p * lda + i] };
                    let y = if tb == Trans::No { b[p * ldb + j] } else { b[j * ldb + p] };
                    x.f64() * y.f64()
                })
                .sum();
            let old = if beta == 0.0 { 0.0 } else { beta * out[i * ldc + j] };
            out[i * ldc + j] = old + alpha * sum;
        }
    }
    out
}

fn check<T: Float>(kernel: Kernel, (m, n, k): (usize, usize, usize), alpha: f64, beta: f64, gap: usize, tol: f64) {
    for ta in [Trans::No, Trans::Yes] {
        for tb in [Trans::No, Trans::Yes] {
            let lda = gap + if ta == Trans::No { k } else { m };
            let ldb = gap + if tb == Trans::No { n } else { k };
            let ldc = n + gap;
            let a: Vec<T> = noise(lda * m.max(k), 1);
            let b: Vec<T> = noise(ldb * n.max(k), 2);
            let mut c: Vec<T> = noise(ldc * m, 3);
            let want = naive(ta, tb, (m, n, k), alpha, &a, lda, &b, ldb, beta, &c, ldc);
            if beta == 0.0 {
                for i in 0..m {
                    c[i * ldc..i * ldc + n].fill(T::nan());
                }
            }
            gemm_with(kernel, ta, tb, m, n, k, T::of(alpha), &a, lda, &b, ldb, T::of(beta), &mut c, ldc);
            let bound = tol * (k as f64).sqrt().max(1.0);
            for (i, (x, y)) in c.iter().zip(&want).enumerate() {
                assert!((x.f64() - y).abs() <= bound, "{kernel:?} {ta:?}{tb:?} {m}x{n}x{k} at {i}: {x} for {y}");
            }
        }
    }
}

#[test]
fn agrees_with_the_definition_on_awkward_shapes() {
    let extents = [1, 2, 7, 13, 14, 15, 31, 32, 33, 65];
    for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
        for &m in &extents {
            for &n in &extents {
                for k in [1, 5, 16, 33] {
                    check::<f32>(kernel, (m, n, k), 1.0, 0.0, 0, 2e-6);
                }
                check::<f64>(kernel, (m, n, 19), 0.5, 2.0, 3, 1e-13);
            }
        }
        for beta in [0.0, 1.0, -0.5] {
            check::<f32>(kernel, (29, 47, 700), 1.5, beta, 5, 4e-6);
            check::<f64>(kernel, (29, 47, 700), 1.5, beta, 5, 1e-13);
        }
        check::<f32>(kernel, (17, 1100, 330), 1.0, 1.0, 1, 4e-6);
        check::<f32>(kernel, (300, 40, 3), 1.0, 1.0, 1, 4e-6);
        for (m, n, k) in [(1, 64, 7), (16, 200, 700), (33, 77, 330), (96, 300, 40)] {
            check::<f32>(kernel, (m, n, k), 1.5, 1.0, 3, 4e-6);
            check::<f32>(kernel, (m, n, k), 1.0, 0.0, 0, 4e-6);
        }
    }
}

#[test]
fn empty_extents_and_zero_alpha_only_scale() {
    let mut c = vec![2.0f32; 6];
    gemm(Trans::No, Trans::No, 2, 3, 0, 1.0, &[], 1, &[], 3, 0.5, &mut c, 3);
    assert_eq!(c, [1.0; 6]);
    gemm(Trans::No, Trans::No, 2, 3, 1, 0.0, &[f32::NAN; 2], 1, &[1.0; 3], 3, 1.0, &mut c, 3);
    assert_eq!(c, [1.0; 6]);
    gemm(Trans::No, Trans::No, 0, 3, 1, 1.0, &[], 1, &[1.0; 3], 3, 0.0, &mut c, 3);
    assert_eq!(c, [1.0; 6]);
    c.fill(f32::NAN);
    gemm(Trans::No, Trans::No, 2, 3, 0, 1.0, &[], 1, &[], 3, 0.0, &mut c, 3);
    assert_eq!(c, [0.0; 6]);
}

#[test]
fn threads_do_not_change_the_bits() {
    for (m, n, k) in [(210, 1300, 650), (64, 500, 800)] {
        let a: Vec<f32> = noise(m * k, 1);
        let b: Vec<f32> = noise(k * n, 2);
        for (ta, tb, lda, ldb) in [(Trans::No, Trans::No, k, n), (Trans::Yes, Trans::Yes, m, k)] {
            same_bits_on_any_threads(|| {
                let mut c: Vec<f32> = noise(m * n, 3);
                gemm(ta, tb, m, n, k, 1.0, &a, lda, &b, ldb, 1.0, &mut c, n);
                c
            });
        }
    }
}
