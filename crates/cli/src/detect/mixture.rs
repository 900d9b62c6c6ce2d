//! A mixture of one Gaussian a class, of equal priors, as LGMLoss and ClassDistance learn it.
//!
//! With features x of K elements, and of class k the center μₖ and the variances Σₖ (diagonal),
//!
//! - ln p(x | k) = −½ (x − μₖ)ᵀ Σₖ⁻¹ (x − μₖ) − ½ ln |Σₖ| − K/2 · ln 2π;
//! - ln p(x) = ln Σₖ p(x | k) − ln N, for N classes.
//!
//! Natural logarithms of densities: they have no upper bound, and numbers of nets with other features do not compare.
//!
//! Source: Wan, Zhong, Li and Chen, "Rethinking Feature Distribution for Loss Functions in Image Classification" (CVPR
//! 2018), equations 5 and 6.

use lgm_core::{Result, Shape, ensure};
use lgm_layers::lgm::{DIAGONAL_FLOOR, ISOTROPIC_EPSILON};

/// The Gaussians.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    width: usize,
    /// [N, K].
    centers: Vec<f64>,
    /// [N, K].
    variances: Vec<f64>,
    /// ½ ln |Σₖ|, \[N\].
    half_log: Vec<f64>,
    /// Whether the layer's logits have ½ ln |Σₖ| in them.
    in_logits: bool,
}

/// How a layer computes with the variances it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variances {
    /// max(v, `floor`), log-determinants included: LGMLoss.
    Lgm {
        /// The layer's `sigma_floor`.
        floor: f64,
    },
    /// max(v, 0) + 10⁻⁴ when isotropic, else max(v, 10⁻⁸), without log-determinants: ClassDistance.
    Distance,
}

/// What a mixture says of an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The class of the greatest logit.
    pub class: usize,
    /// The softmax of its logit.
    pub probability: f64,
    /// ln p(x | class).
    pub own: f64,
    /// ln p(x).
    pub mixture: f64,
}

impl Mixture {
    /// The mixture of a layer's parameters, centers [N, K] and variances \[N\] or [N, K].
    ///
    /// # Errors
    /// When their shapes disagree or values are not finite.
    pub fn new(centers: &(Shape, Vec<f64>), variances: &(Shape, Vec<f64>), how: Variances) -> Result<Mixture> {
        let (shape, values) = centers;
        ensure!(shape.len() == 2 && shape.count() > 0, "centers have the shape classes × features, found {shape}");
        let (classes, width) = (shape[0], shape[1]);
        let count = variances.1.len();
        ensure!(
            count == classes || count == shape.count(),
            "centers of shape {shape} take {classes} variances or one for each element, found {count}"
        );
        let finite = values.iter().chain(&variances.1).all(|v| v.is_finite());
        ensure!(finite, "centers or variances are infinite or not a number; did the training diverge?");
        let isotropic = variances.0.len() == 1;
        let computed = |v: f64| match how {
            Variances::Lgm { floor } => v.max(floor),
            Variances::Distance if isotropic => v.max(0.0) + ISOTROPIC_EPSILON,
            Variances::Distance => v.max(DIAGONAL_FLOOR),
        };
        let each = if isotropic { width } else { 1 };
        let variances: Vec<f64> = variances.1.iter().flat_map(|&v| std::iter::repeat_n(computed(v), each)).collect();
        let half_log = variances.chunks(width).map(|row| 0.5 * row.iter().map(|v| v.ln()).sum::<f64>()).collect();
        let in_logits = matches!(how, Variances::Lgm { .. });
        Ok(Mixture { width, centers: values.clone(), variances, half_log, in_logits })
    }

    /// N.
    pub fn classes(&self) -> usize {
        self.half_log.len()
    }

    /// K.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The variances of each class.
    pub fn variances(&self) -> impl Iterator<Item = &[f64]> {
        self.variances.chunks(self.width)
    }

    fn rows(&self) -> impl Iterator<Item = ((&[f64], &[f64]), f64)> {
        self.centers.chunks(self.width).zip(self.variances.chunks(self.width)).zip(self.half_log.iter().copied())
    }

    /// The layer's logits of an item, without margin.
    pub fn logits(&self, x: &[f64]) -> Vec<f64> {
        let logit = |((w, v), h): ((&[f64], &[f64]), f64)| {
            let d: f64 = x.iter().zip(w).zip(v).map(|((x, w), v)| (x - w) * (x - w) / v).sum();
            -0.5 * d - if self.in_logits { h } else { 0.0 }
        };
        self.rows().map(logit).collect()
    }

    /// What the mixture says of an item.
    pub fn judge(&self, x: &[f64]) -> Verdict {
        let logits = self.logits(x);
        let constant = 0.5 * self.width as f64 * std::f64::consts::TAU.ln();
        let left_out = |h: &f64| if self.in_logits { 0.0 } else { *h };
        let densities: Vec<f64> = logits.iter().zip(&self.half_log).map(|(l, h)| l - left_out(h) - constant).collect();
        let (class, probability) = most_probable(&logits);
        let mixture = log_sum(&densities) - (self.classes() as f64).ln();
        Verdict { class, probability, own: densities[class], mixture }
    }

    /// The weights [N, K] and biases \[N\] of an InnerProduct layer whose logits are this mixture's, less
    /// ½ xᵀ Σ⁻¹ x, which every class of an item has in common: W = Σ⁻¹ μ, b = −½ μᵀ Σ⁻¹ μ (− ½ ln |Σ| where the logits
    /// have it).
    ///
    /// # Errors
    /// When the classes have not all the same variances, which would leave x² in the difference of two logits.
    pub fn fold(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let first = &self.variances[..self.width];
        if let Some(class) = self.variances.chunks(self.width).position(|row| row != first) {
            let differs = self.variances[class * self.width..].iter().zip(first).find(|(a, b)| a != b);
            let (other, one) = differs.unwrap_or((&first[0], &first[0]));
            return Err(lgm_core::Error::config(format!(
                "classes 0 and {class} have different variances ({one} and {other}), so their logits differ in a term \
                 in x², which no InnerProduct computes; train with one constant variance (update_sigma: false)"
            )));
        }
        let weight = self.centers.iter().zip(&self.variances).map(|(w, v)| (w / v) as f32).collect();
        let bias = self.rows().map(|((w, v), h)| {
            let norm: f64 = w.iter().zip(v).map(|(w, v)| w * w / v).sum();
            (-0.5 * norm - if self.in_logits { h } else { 0.0 }) as f32
        });
        Ok((weight, bias.collect()))
    }
}

/// The class of the greatest logit, the first of several, and its softmax.
pub fn most_probable(logits: &[f64]) -> (usize, f64) {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    let class = (1..logits.len()).fold(0, better);
    (class, (logits[class] - log_sum(logits)).exp())
}

/// ln Σ exp(values), without overflow.
pub fn log_sum(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_finite() { max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln() } else { max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(centers: &[f64], variances: &[f64], shape: Shape, how: Variances) -> Mixture {
        let classes = variances.len().min(2);
        let centers = (Shape::from([classes, centers.len() / classes]), centers.to_vec());
        Mixture::new(&centers, &(shape, variances.to_vec()), how).unwrap()
    }

    #[test]
    fn densities_integrate_to_one() {
        let unequal = Variances::Lgm { floor: 0.01 };
        let cases = [
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.3, 1.2], Shape::from([2]), unequal),
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.3, 0.5, 1.2, 0.2], Shape::from([2, 2]), unequal),
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.3, 1.2], Shape::from([2]), Variances::Distance),
        ];
        for m in cases {
            let (step, mut sums) = (0.05, [0.0, 0.0]);
            for at in 0..400 * 400 {
                let x = [(at / 400) as f64 * step - 10.0, (at % 400) as f64 * step - 10.0];
                let verdict = m.judge(&x);
                sums[0] += verdict.mixture.exp() * step * step;
                let posterior = verdict.own - verdict.mixture - 2f64.ln();
                if m.in_logits {
                    assert!((posterior - verdict.probability.ln()).abs() < 1e-9, "Bayes' rule at {x:?}");
                }
                sums[1] += verdict.probability * step * step;
            }
            assert!((sums[0] - 1.0).abs() < 1e-6, "{}", sums[0]);
            assert!(sums[1] > 200.0, "the greatest of two probabilities is at least a half, on 400 squares");
        }
    }

    #[test]
    fn each_layer_computes_with_its_own_variances() {
        let x = [1.0, 2.0];
        let of = |v: f64, shape: &[usize], how| {
            let count: usize = shape.iter().product();
            mixture(&[0.0, 0.0, 3.0, 3.0], &vec![v; count], Shape::from(shape), how).logits(&x)[0]
        };
        assert!((of(0.0, &[2], Variances::Distance) + 2.5e4).abs() < 1e-6);
        assert!((of(-1.0, &[2, 2], Variances::Distance) + 2.5e8).abs() < 1e-2);
        assert!((of(0.0, &[2], Variances::Lgm { floor: 0.5 }) - (-5.0 - 0.5f64.ln())).abs() < 1e-12);
    }

    #[test]
    fn folded_logits_differ_from_the_layers_by_a_constant_an_item() {
        let how = Variances::Lgm { floor: 0.01 };
        for m in [
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.5, 0.5], Shape::from([2]), how),
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.5, 0.5], Shape::from([2]), Variances::Distance),
            mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.5, 2.0, 0.5, 2.0], Shape::from([2, 2]), how),
        ] {
            let (w, b) = m.fold().unwrap();
            for x in [[0.3, -0.7], [2.0, 4.0], [0.0, 0.0]] {
                let folded: Vec<f64> = (0..2)
                    .map(|k| f64::from(b[k]) + f64::from(w[2 * k]) * x[0] + f64::from(w[2 * k + 1]) * x[1])
                    .collect();
                let logits = m.logits(&x);
                assert!((folded[0] - folded[1] - logits[0] + logits[1]).abs() < 1e-5, "{folded:?} {logits:?}");
            }
        }
        let error = mixture(&[-1.0, 0.5, 2.0, 1.0], &[0.5, 0.6], Shape::from([2]), how).fold().unwrap_err();
        assert!(error.to_string().starts_with("classes 0 and 1 have different variances (0.5 and 0.6)"), "{error}");
    }

    #[test]
    fn parameters_that_are_none_are_named() {
        let new = |centers: (Shape, Vec<f64>), count: usize| {
            Mixture::new(&centers, &(Shape::from([count]), vec![1.0; count]), Variances::Distance).unwrap_err()
        };
        assert!(new((Shape::from([4]), vec![0.0; 4]), 4).to_string().contains("classes × features, found (4)"));
        assert!(new((Shape::from([2, 2]), vec![0.0; 4]), 3).to_string().contains("found 3"));
        assert!(new((Shape::from([2, 2]), vec![f64::NAN; 4]), 2).to_string().contains("diverge"));
    }
}
