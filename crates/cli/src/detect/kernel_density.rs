//! How dense the features of clean items lie around an item's, for nets whose last layer models no density.
//!
//! With the m features xᵢ of clean items that the net gave class k, and a bandwidth h,
//! ln p(x | k) = ln Σᵢ exp(−|x − xᵢ|² / 2h²) − ln m − K/2 · ln 2πh².
//!
//! h maximizes the likelihood that each xᵢ has under the other ones (leave-one-out), over every class, among powers of √2
//! times the median distance of an item to its class's nearest other item.
//!
//! Source: Feinman, Curtin, Shintre and Gardner, "Detecting Adversarial Samples from Artifacts" (2017); the bandwidth is
//! Habbema's (1974).

use lgm_core::{Result, ensure};

use super::mixture::log_sum;

/// The densities.
#[derive(Clone, Debug)]
pub struct KernelDensity {
    width: usize,
    /// Of each class, the features of its items one after another.
    classes: Vec<Vec<f64>>,
    bandwidth: f64,
}

/// Powers of √2 that are tried on either side of the median distance.
const REACH: i32 = 10;

/// Items of a class that its density is made of at the most; more add time and little else.
pub const MOST: usize = 1000;

impl KernelDensity {
    /// Fits densities to the features [M, K] of clean items and the classes that the net gives them.
    ///
    /// # Errors
    /// When no class has two items apart, or features are not finite.
    pub fn fit(features: &[f64], width: usize, classes: &[usize]) -> Result<KernelDensity> {
        ensure!(
            features.iter().all(|v| v.is_finite()),
            "features are infinite or not a number; did the training diverge?"
        );
        let mut of_class = vec![Vec::new(); classes.iter().max().map_or(0, |most| most + 1)];
        for (x, &class) in features.chunks(width).zip(classes) {
            if of_class[class].len() < MOST * width {
                of_class[class].extend_from_slice(x);
            }
        }
        // Squared distances to the other items of the class, an item a row.
        let rows: Vec<Vec<f64>> = of_class
            .iter()
            .flat_map(|items| {
                let others = move |i: usize| {
                    let x = &items[i * width..(i + 1) * width];
                    let other = items.chunks(width).enumerate().filter(move |(j, _)| *j != i);
                    other.map(|(_, y)| square(x, y)).collect::<Vec<f64>>()
                };
                (0..items.len() / width).map(others)
            })
            .filter(|row| !row.is_empty())
            .collect();
        let mut nearest: Vec<f64> = rows.iter().map(|row| row.iter().copied().fold(f64::INFINITY, f64::min)).collect();
        nearest.retain(|d| *d > 0.0);
        ensure!(!nearest.is_empty(), "no class has two clean items with different features to fit a density to");
        nearest.sort_by(f64::total_cmp);
        let median = nearest[nearest.len() / 2].sqrt();
        let likelihood = |h: f64| rows.iter().map(|row| density(row.iter().copied(), h, width)).sum::<f64>();
        let tried = (-REACH..=REACH).map(|power| median * 2f64.powf(0.5 * f64::from(power)));
        let best =
            tried.map(|h| (likelihood(h), h)).fold((f64::NEG_INFINITY, median), |a, b| if b.0 > a.0 { b } else { a });
        Ok(KernelDensity { width, classes: of_class, bandwidth: best.1 })
    }

    /// ln p(x | class); −∞ for a class of no clean items.
    pub fn log_density(&self, x: &[f64], class: usize) -> f64 {
        let Some(items) = self.classes.get(class).filter(|items| !items.is_empty()) else { return f64::NEG_INFINITY };
        density(items.chunks(self.width).map(|y| square(x, y)), self.bandwidth, self.width)
    }
}

fn square(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn density(squares: impl Iterator<Item = f64>, h: f64, width: usize) -> f64 {
    let exponents: Vec<f64> = squares.map(|d| -d / (2.0 * h * h)).collect();
    log_sum(&exponents) - (exponents.len() as f64).ln() - 0.5 * width as f64 * (std::f64::consts::TAU * h * h).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    #[test]
    fn a_gaussian_is_found_again() {
        let mut random = Philox::new(1, 2).from(0);
        let features: Vec<f64> = (0..800).map(|_| random.gaussian(3.0, 1.0)).collect();
        let kernels = KernelDensity::fit(&features, 2, &vec![0; 400]).unwrap();
        // The best bandwidth for 400 items in the plane is about 400^(-1/6) = 0.37.
        assert!((0.2..0.8).contains(&kernels.bandwidth), "{}", kernels.bandwidth);
        let peak = -std::f64::consts::TAU.ln();
        for (x, expected) in [([3.0, 3.0], peak), ([4.0, 3.0], peak - 0.5), ([2.0, 2.0], peak - 1.0)] {
            let found = kernels.log_density(&x, 0);
            assert!((found - expected).abs() < 0.35, "at {x:?}: {found}, expected {expected}");
        }
        assert!(kernels.log_density(&[30.0, 3.0], 0) < -100.0);
        assert_eq!(kernels.log_density(&[3.0, 3.0], 7), f64::NEG_INFINITY);
    }

    #[test]
    fn densities_integrate_to_one() {
        let kernels = KernelDensity::fit(&[0.0, 1.0, 1.5, -2.0, 9.0], 1, &[1, 1, 1, 1, 0]).unwrap();
        let sum: f64 = (0..40_000).map(|i| kernels.log_density(&[f64::from(i) * 0.01 - 200.0], 1).exp() * 0.01).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn what_has_no_density_is_named() {
        let error = |x: &[f64], classes: &[usize]| KernelDensity::fit(x, 1, classes).unwrap_err().to_string();
        assert!(error(&[1.0, 2.0], &[0, 1]).contains("no class has two clean items"));
        assert!(error(&[1.0, 1.0], &[0, 0]).contains("no class has two clean items"));
        assert!(error(&[1.0, f64::NAN], &[0, 0]).contains("not a number"));
    }
}
