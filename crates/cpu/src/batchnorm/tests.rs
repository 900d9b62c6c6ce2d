use super::*;
use crate::testing::{noise, relative_error, same_bits_on_any_threads};

fn extents() -> Vec<Axes3> {
    [(1, 1, 1), (2, 3, 1), (5, 7, 31), (3, 2, 64), (4, 5, 1000), (2, 300, 65)]
        .map(|(outer, channels, inner)| Axes3 { outer, channels, inner })
        .to_vec()
}

fn channel(e: Axes3, c: usize) -> impl Iterator<Item = usize> {
    (0..e.outer).flat_map(move |n| (0..e.inner).map(move |s| (n * e.channels + c) * e.inner + s))
}

fn statistics(x: &[f32], e: Axes3) -> (Vec<f64>, Vec<f64>) {
    let m = (e.outer * e.inner) as f64;
    let mean: Vec<f64> = (0..e.channels).map(|c| channel(e, c).map(|i| x[i] as f64).sum::<f64>() / m).collect();
    let var = (0..e.channels).map(|c| channel(e, c).map(|i| (x[i] as f64 - mean[c]).powi(2)).sum::<f64>() / m);
    let var = var.collect();
    (mean, var)
}

#[test]
fn statistics_survive_a_large_mean() {
    for e in extents() {
        for offset in [0.0, 1e4f32] {
            let x: Vec<f32> = noise::<f32>(e.count(), 1).iter().map(|v| v + offset).collect();
            let (mut mean, mut var) = (vec![f32::NAN; e.channels], vec![f32::NAN; e.channels]);
            mean_variance(&x, e, &mut mean, &mut var);
            let (want_mean, want_var) = statistics(&x, e);
            for c in 0..e.channels {
                assert!((mean[c] as f64 - want_mean[c]).abs() <= 1e-7 * (1.0 + offset as f64));
                assert!((var[c] as f64 - want_var[c]).abs() <= 1e-6 * want_var[c], "{} {}", var[c], want_var[c]);
            }
        }
    }
}

#[test]
fn normalising_and_its_gradient() {
    for e in extents() {
        let (x, dy): (Vec<f32>, Vec<f32>) = (noise(e.count(), 1), noise(e.count(), 2));
        let (gamma, beta): (Vec<f32>, Vec<f32>) = (noise(e.channels, 3), noise(e.channels, 4));
        let (mean64, var64) = statistics(&x, e);
        let mean: Vec<f32> = mean64.iter().map(|&v| v as f32).collect();
        let inv: Vec<f32> = var64.iter().map(|v| (1.0 / (v + 1e-3).sqrt()) as f32).collect();
        let (mut y_want, mut dx_want) = (vec![0.0; e.count()], vec![0.0; e.count()]);
        let (mut sum_want, mut product_want) = (vec![0.0; e.channels], vec![0.0; e.channels]);
        for c in 0..e.channels {
            let (m, s) = (mean[c] as f64, inv[c] as f64);
            let xhat = |i: usize| (x[i] as f64 - m) * s;
            for i in channel(e, c) {
                y_want[i] = (xhat(i) * gamma[c] as f64 + beta[c] as f64).max(0.0);
                sum_want[c] += dy[i] as f64;
                product_want[c] += dy[i] as f64 * xhat(i);
            }
            let count = (e.outer * e.inner) as f64;
            for i in channel(e, c) {
                dx_want[i] = s * (dy[i] as f64 - sum_want[c] / count - xhat(i) * product_want[c] / count);
            }
        }
        let mut y = vec![f32::NAN; e.count()];
        let affine = Some(Affine { scale: &gamma, shift: Some(&beta) });
        Normalization { mean: &mean, inv_std: &inv, affine, relu: true }.apply(Some(&x), e, &mut y);
        assert!(relative_error(&y, &y_want) < 1e-5);
        let mut xhat = x.clone();
        Normalization { mean: &mean, inv_std: &inv, affine: None, relu: false }.apply(None, e, &mut xhat);
        let mut scaled = vec![0.0; e.count()];
        scale_shift(Some(&xhat), e, &gamma, Some(&beta), &mut scaled);
        scaled.iter_mut().for_each(|v| *v = v.max(0.0));
        assert!(relative_error(&scaled, &y_want) < 1e-5);

        for from in [Normalized::Ready(&xhat[..]), Normalized::From { x: &x, mean: &mean, inv_std: &inv }] {
            let (mut a, mut b) = (vec![f32::NAN; e.channels], vec![f32::NAN; e.channels]);
            backward_sums(from, &dy, e, &mut a, &mut b);
            let size = ((e.outer * e.inner) as f64).sqrt();
            for c in 0..e.channels {
                assert!((a[c] as f64 - sum_want[c]).abs() < 1e-6 * size);
                assert!((b[c] as f64 - product_want[c]).abs() < 2e-5 * size, "{} {}", b[c], product_want[c]);
            }
            let mut dx = vec![f32::NAN; e.count()];
            backward_data(from, Some(&dy), e, &inv, &a, &b, &mut dx);
            let tolerance = 1e-4 * inv.iter().fold(1.0, |m, &v| v.max(m)) as f64;
            let scale = dx_want.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1.0);
            for (found, want) in dx.iter().zip(&dx_want) {
                assert!((*found as f64 - want).abs() < tolerance * scale, "{e:?}: {found} for {want}");
            }
            let mut in_place = dy.clone();
            backward_data(from, None, e, &inv, &a, &b, &mut in_place);
            assert_eq!(in_place, dx);
        }
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    let e = Axes3::new(6, 10, 900);
    let x: Vec<f32> = noise(e.count(), 1);
    same_bits_on_any_threads(|| {
        let (mut mean, mut var) = (vec![0.0; 10], vec![0.0; 10]);
        mean_variance(&x, e, &mut mean, &mut var);
        let mut y = x.clone();
        Normalization { mean: &mean, inv_std: &var, affine: None, relu: true }.apply(None, e, &mut y);
        [y, mean, var].concat()
    });
}
