//! Features of any dimension to the plane.

use lgm_core::{Result, ensure};

use super::figure::Point;

/// A map from features to the plane: the features themselves when they are two, else their first two principal
/// components.
#[derive(Clone, Debug)]
pub struct Projection {
    mean: Vec<f64>,
    axes: [Vec<f64>; 2],
    /// The share of the variance each axis shows; `None` when the features are drawn as they are.
    pub shares: Option<[f64; 2]>,
}

impl Projection {
    /// The projection that suits features of `dim` values each, one after another.
    ///
    /// # Errors
    /// When a feature has fewer than two values.
    pub fn fit(features: &[f64], dim: usize) -> Result<Self> {
        ensure!(dim >= 2, "a plot in the plane needs features of at least 2 values, found {dim}");
        if dim == 2 {
            return Ok(Projection { mean: vec![0.0; 2], axes: [vec![1.0, 0.0], vec![0.0, 1.0]], shares: None });
        }
        let rows = features.chunks_exact(dim);
        let n = rows.len().max(1) as f64;
        let mut mean = vec![0.0; dim];
        rows.clone().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n));
        let total: f64 = rows.map(|row| row.iter().zip(&mean).map(|(x, m)| (x - m).powi(2)).sum::<f64>()).sum();
        let axes = principal_axes(features, &mean);
        let shares = axes.each_ref().map(|axis| {
            let shown: f64 = features.chunks_exact(dim).map(|row| along(row, &mean, axis).powi(2)).sum();
            if total > 0.0 { shown / total } else { 0.0 }
        });
        Ok(Projection { mean, axes, shares: Some(shares) })
    }

    /// The covariance in the plane of features of these variances.
    pub fn covariance(&self, variances: &[f64]) -> [[f64; 2]; 2] {
        let of = |i: usize, j: usize| {
            let pairs = self.axes[i].iter().zip(&self.axes[j]);
            pairs.zip(variances).map(|((a, b), v)| a * b * v).sum()
        };
        [[of(0, 0), of(0, 1)], [of(1, 0), of(1, 1)]]
    }

    /// The points of the plane that features (of the dimension fitted to) go to.
    pub fn apply(&self, features: &[f64]) -> Vec<Point> {
        let place = |row: &[f64]| self.axes.each_ref().map(|axis| along(row, &self.mean, axis));
        features.chunks_exact(self.mean.len()).map(place).collect()
    }
}

/// Rounds of subspace iteration: enough to separate eigenvalues that differ by a few percent.
const ROUNDS: usize = 200;

/// The two directions of largest variance, by subspace iteration from a fixed start.
fn principal_axes(features: &[f64], mean: &[f64]) -> [Vec<f64>; 2] {
    let dim = mean.len();
    let start = |phase: f64| (0..dim).map(|i| (1.0 + phase + i as f64 * (1.0 + phase)).cos()).collect::<Vec<f64>>();
    let mut axes = [start(0.0), start(0.7)];
    orthonormalise(&mut axes);
    for _ in 0..ROUNDS {
        let mut next = [vec![0.0; dim], vec![0.0; dim]];
        for row in features.chunks_exact(dim) {
            for (out, axis) in next.iter_mut().zip(&axes) {
                let a = along(row, mean, axis);
                out.iter_mut().zip(row.iter().zip(mean)).for_each(|(o, (x, m))| *o += a * (x - m));
            }
        }
        // A direction without variance keeps its place.
        for (out, axis) in next.iter_mut().zip(&axes) {
            if dot(out, out) == 0.0 {
                out.clone_from(axis);
            }
        }
        axes = next;
        orthonormalise(&mut axes);
    }
    axes
}

fn orthonormalise(axes: &mut [Vec<f64>; 2]) {
    let [first, second] = axes;
    let normalise = |v: &mut Vec<f64>| {
        let norm = dot(v, v).sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
    };
    normalise(first);
    let before = dot(second, second);
    let overlap = dot(second, first);
    second.iter_mut().zip(first.iter()).for_each(|(s, f)| *s -= overlap * f);
    if dot(second, second) <= 1e-24 * before {
        // Features on one line: any direction across it will do.
        let flat = (0..first.len()).min_by(|&a, &b| first[a].abs().total_cmp(&first[b].abs())).unwrap_or(0);
        let overlap = first[flat];
        second.iter_mut().zip(first.iter()).for_each(|(s, f)| *s = -overlap * f);
        second[flat] += 1.0;
    }
    normalise(second);
}

fn along(row: &[f64], mean: &[f64], axis: &[f64]) -> f64 {
    row.iter().zip(mean).zip(axis).map(|((x, m), a)| (x - m) * a).sum()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    #[test]
    fn two_features_are_drawn_as_they_are() {
        let p = Projection::fit(&[5.0, 1.0, 7.0, -2.0], 2).unwrap();
        assert_eq!(p.apply(&[5.0, 1.0, 7.0, -2.0]), [[5.0, 1.0], [7.0, -2.0]]);
        assert!(p.shares.is_none());
        assert!(Projection::fit(&[1.0], 1).unwrap_err().to_string().contains("found 1"));
    }

    #[test]
    fn more_features_give_their_principal_components() {
        // Variances 9 and 4 along two orthogonal directions, 0.01 along the third.
        let directions =
            [[2.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0], [-2.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0], [1.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0]];
        let mut random = Philox::new(1, 1).from(0);
        let mut features = Vec::new();
        for _ in 0..4000 {
            let along = [3.0, 2.0, 0.1].map(|std| random.gaussian(0.0, std));
            features.extend((0..3).map(|i| 10.0 + (0..3).map(|k| along[k] * directions[k][i]).sum::<f64>()));
        }
        let p = Projection::fit(&features, 3).unwrap();
        for (axis, want) in p.axes.iter().zip(&directions) {
            assert!(dot(axis, want).abs() > 0.998, "{axis:?} {want:?}");
        }
        for (i, row) in p.covariance(&[9.0, 9.0, 9.0]).iter().enumerate() {
            assert!((0..2).all(|j| (row[j] - if i == j { 9.0 } else { 0.0 }).abs() < 1e-9), "{row:?}");
        }
        let [first, second] = p.shares.unwrap();
        assert!((first - 9.0 / 13.01).abs() < 0.03 && (second - 4.0 / 13.01).abs() < 0.03);
        let mean = p.apply(&features).iter().fold([0.0; 2], |m, q| [m[0] + q[0] / 4000.0, m[1] + q[1] / 4000.0]);
        assert!(mean[0].abs() < 1e-9 && mean[1].abs() < 1e-9);
    }

    #[test]
    fn degenerate_features_stay_finite() {
        for features in [vec![1.0; 12], vec![1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 3.0, 6.0, 9.0], vec![1.0, 2.0, 3.0]] {
            let p = Projection::fit(&features, 3).unwrap();
            assert!(dot(&p.axes[0], &p.axes[1]).abs() < 1e-6, "{:?}", p.axes);
            assert!(p.apply(&features).iter().flatten().all(|v| v.is_finite()), "{features:?}");
        }
    }
}
