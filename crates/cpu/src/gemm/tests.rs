use super::*;
use crate::testing::{noise, same_bits_on_any_threads};

/// The product in f64, element by element.
fn naive<T: Float>(alpha: f64, a: MatRef<'_, T>, b: MatRef<'_, T>, beta: f64, (c, ldc): (&[T], usize)) -> Vec<f64> {
    let mut out: Vec<f64> = c.iter().map(|v| v.f64()).collect();
    for i in 0..a.rows() {
        for j in 0..b.columns() {
            let sum: f64 = (0..a.columns()).map(|p| a.from(i, p)[0].f64() * b.from(p, j)[0].f64()).sum();
            let old = if beta == 0.0 { 0.0 } else { beta * out[i * ldc + j] };
            out[i * ldc + j] = old + alpha * sum;
        }
    }
    out
}

/// A view of `rows` × `columns`, `gap` elements between what is stored one after another.
fn view<T>(data: &[T], rows: usize, columns: usize, gap: usize, transposed: bool) -> MatRef<'_, T> {
    let (high, wide) = if transposed { (columns, rows) } else { (rows, columns) };
    MatRef::with_stride(data, high, wide, wide + gap).t_if(transposed)
}

fn check<T: Float>(kernel: Kernel, (m, n, k): (usize, usize, usize), alpha: f64, beta: f64, gap: usize, tol: f64) {
    let (a_data, b_data): (Vec<T>, Vec<T>) = (noise((m + gap) * (k + gap), 1), noise((n + gap) * (k + gap), 2));
    for ta in [false, true] {
        for tb in [false, true] {
            let (a, b) = (view(&a_data, m, k, gap, ta), view(&b_data, k, n, gap, tb));
            let ldc = n + gap;
            let mut c: Vec<T> = noise(ldc * m, 3);
            let want = naive(alpha, a, b, beta, (&c, ldc));
            if beta == 0.0 {
                MatMut::with_stride(&mut c, m, n, ldc).each_row().for_each(|row| row.fill(T::nan()));
            }
            let mut again = c.clone();
            let packed = alpha == 1.0 && (beta == 0.0 || beta == 1.0) && kernel == Kernel::active();
            let (alpha, beta) = (T::of(alpha), T::of(beta));
            Gemm { alpha, a, b, beta, c: MatMut::with_stride(&mut c, m, n, ldc) }.run_on(kernel);
            let bound = tol * (k as f64).sqrt().max(1.0);
            let agrees = |c: &[T], what: &str| {
                for (i, (x, y)) in c.iter().zip(&want).enumerate() {
                    assert!((x.f64() - y).abs() <= bound, "{kernel:?}{what} {ta} {tb} {m}x{n}x{k} at {i}: {x} for {y}");
                }
            };
            agrees(&c, "");
            if packed {
                let factor = PackedFactor::new(b);
                factor.multiply(a, beta != T::zero(), MatMut::with_stride(&mut again, m, n, ldc));
                agrees(&again, ", packed,");
            }
        }
    }
}

#[test]
fn a_packed_factor_gives_the_same_bits_on_any_threads() {
    let (a, b): (Vec<f32>, Vec<f32>) = (noise(130 * 700, 1), noise(700 * 330, 2));
    same_bits_on_any_threads(|| {
        let factor = PackedFactor::new(MatRef::new(&b, 700, 330));
        let mut c = vec![1.0; 130 * 330];
        factor.multiply(MatRef::new(&a, 130, 700), true, MatMut::new(&mut c, 130, 330));
        c
    });
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
    let scale = |(m, k): (usize, usize), alpha: f32, value: f32, beta: f32, c: &mut [f32]| {
        let (a, b) = (vec![value; m * k], vec![1.0; k * 3]);
        let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, 3));
        Gemm { alpha, a, b, beta, c: MatMut::new(c, m, 3) }.run();
        c.to_vec()
    };
    assert_eq!(scale((2, 0), 1.0, 1.0, 0.5, &mut c), [1.0; 6]);
    assert_eq!(scale((2, 1), 0.0, f32::NAN, 1.0, &mut c), [1.0; 6]);
    assert_eq!(scale((0, 1), 1.0, 1.0, 0.0, &mut c), [1.0; 6]);
    c.fill(f32::NAN);
    assert_eq!(scale((2, 0), 1.0, 1.0, 0.0, &mut c), [0.0; 6]);
}

#[test]
fn threads_do_not_change_the_bits() {
    for (m, n, k) in [(210, 1300, 650), (64, 500, 800)] {
        let a: Vec<f32> = noise(m * k, 1);
        let b: Vec<f32> = noise(k * n, 2);
        for transposed in [false, true] {
            let (a, b) = (view(&a, m, k, 0, transposed), view(&b, k, n, 0, transposed));
            same_bits_on_any_threads(|| {
                let mut c: Vec<f32> = noise(m * n, 3);
                Gemm { alpha: 1.0, a, b, beta: 1.0, c: MatMut::new(&mut c, m, n) }.run();
                c
            });
        }
    }
}

#[test]
#[should_panic(expected = "a 2x3 and a 2x4 matrix do not multiply to one of 2x4")]
fn extents_must_agree() {
    let (a, b, mut c) = ([0.0f32; 6], [0.0; 8], [0.0; 8]);
    let (a, b) = (MatRef::new(&a, 2, 3), MatRef::new(&b, 2, 4));
    Gemm { alpha: 1.0, a, b, beta: 0.0, c: MatMut::new(&mut c, 2, 4) }.run();
}
