//! How well a score tells abnormal items from clean ones. Scores are high for what is normal; an item whose score lies below
//! a threshold counts as abnormal.

use lgm_core::{Result, ensure};

/// The receiver operating characteristic of a score.
#[derive(Clone, Debug, PartialEq)]
pub struct Roc {
    /// For every threshold, from the lowest: the share of clean items below it (false positives), and of abnormal items
    /// (true positives). From (0, 0) to (1, 1).
    pub points: Vec<[f64; 2]>,
    /// The area under the curve: the probability that a clean item has a higher score than an abnormal one, equal scores
    /// counting half. 0.5 is chance, 1 is perfect.
    pub area: f64,
}

/// The characteristic of scores of clean and of abnormal items.
///
/// # Errors
/// When there are none of either, or a score is not a number.
pub fn roc(clean: &[f64], abnormal: &[f64]) -> Result<Roc> {
    check(clean)?;
    check(abnormal)?;
    let mut all: Vec<(f64, bool)> =
        clean.iter().map(|&s| (s, false)).chain(abnormal.iter().map(|&s| (s, true))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut points, mut area, mut below) = (vec![[0.0, 0.0]], 0.0, [0usize, 0]);
    // -0 and 0 are one score.
    for equal in all.chunk_by(|a, b| a.0 == b.0) {
        let abnormal_here = equal.iter().filter(|(_, abnormal)| *abnormal).count();
        below = [below[0] + equal.len() - abnormal_here, below[1] + abnormal_here];
        let point = [below[0] as f64 / clean.len() as f64, below[1] as f64 / abnormal.len() as f64];
        let last = points[points.len() - 1];
        area += (point[0] - last[0]) * (point[1] + last[1]) / 2.0;
        points.push(point);
    }
    Ok(Roc { points, area })
}

/// The highest threshold below which lies no more than a share `rate` of clean scores.
///
/// # Errors
/// When the scores are too few to tell a share that small, or one is not a number.
pub fn threshold(clean: &[f64], rate: f64) -> Result<f64> {
    check(clean)?;
    // A share such as 0.01 of 100 must not become 0 by rounding.
    let allowed = (rate * clean.len() as f64 + 1e-9).floor() as usize;
    ensure!(
        allowed > 0,
        "a false-positive rate of {rate} takes at least {} items to calibrate, found {}; raise -iterations or the rate",
        (1.0 / rate).ceil(),
        clean.len()
    );
    let mut sorted = clean.to_vec();
    sorted.sort_by(f64::total_cmp);
    Ok(sorted[allowed.min(sorted.len() - 1)])
}

fn check(scores: &[f64]) -> Result<()> {
    ensure!(!scores.is_empty(), "there are no items to score");
    let bad = scores.iter().filter(|s| s.is_nan()).count();
    ensure!(bad == 0, "{bad} scores are not a number; did the training diverge?");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let clean = [3.0, 1.0, 2.0, 2.0, 5.0];
        let abnormal = [0.0, 2.0, 1.0, 4.0];
        let pair = |c: f64, a: f64| {
            if c > a {
                1.0
            } else if c == a {
                0.5
            } else {
                0.0
            }
        };
        let pairs: f64 = clean.iter().flat_map(|&c| abnormal.iter().map(move |&a| pair(c, a))).sum();
        let roc = roc(&clean, &abnormal).unwrap();
        assert!((roc.area - pairs / 20.0).abs() < 1e-12);
        assert_eq!((roc.points[0], roc.points[roc.points.len() - 1]), ([0.0, 0.0], [1.0, 1.0]));
        assert!(roc.points.windows(2).all(|p| p[0][0] <= p[1][0] && p[0][1] <= p[1][1]));
    }

    #[test]
    fn the_extremes() {
        let area = |c: &[f64], a: &[f64]| roc(c, a).unwrap().area;
        assert_eq!(area(&[2.0, 3.0], &[0.0, 1.0]), 1.0);
        assert_eq!(area(&[0.0, 1.0], &[2.0, f64::INFINITY]), 0.0);
        assert_eq!(area(&[1.0, 1.0], &[1.0]), 0.5);
        assert_eq!(area(&[0.0], &[f64::NEG_INFINITY]), 1.0);
        assert!(roc(&[], &[1.0]).unwrap_err().to_string().contains("no items"));
        assert!(roc(&[1.0], &[f64::NAN]).unwrap_err().to_string().contains("1 scores are not a number"));
    }

    #[test]
    fn a_threshold_keeps_its_rate() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i * 37 % 100)).collect();
        for rate in [0.01, 0.05, 0.5, 0.999, 1.0] {
            let t = threshold(&scores, rate).unwrap();
            let below = scores.iter().filter(|s| **s < t).count();
            assert!(below as f64 <= rate * 100.0 && below as f64 >= rate * 100.0 - 1.0, "{rate}: {below}");
        }
        assert_eq!(threshold(&[1.0; 10], 0.2).unwrap(), 1.0);
        let error = threshold(&scores, 0.001).unwrap_err().to_string();
        assert!(error.contains("at least 1000 items to calibrate, found 100"), "{error}");
    }
}
