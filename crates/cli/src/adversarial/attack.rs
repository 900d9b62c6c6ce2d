//! The fast gradient sign method and its iteration.
//!
//! x₀ = x, xₜ₊₁ = clip(xₜ + a · sign(∂loss/∂xₜ)), where clip keeps every element within ε of x and within the input range.
//!
//! Source: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (2015), one step of a = ε;
//! Kurakin, Goodfellow and Bengio, "Adversarial Examples in the Physical World" (2017), several; Madry, Makelov, Schmidt,
//! Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks" (2018), with 2.5 · ε / steps.

use lgm_core::{Error, Result, Shape, Step, ensure};

use crate::detect::classifier::Classifier;
use crate::detect::run::{Scored, Trained};

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attack {
    /// ε, in units of the input.
    pub reach: f64,
    /// a, in units of the input.
    pub step: f64,
    /// How many steps.
    pub steps: u32,
    /// The least and the greatest value of an element.
    pub range: (f64, f64),
}

impl Attack {
    /// One step: moves `x`, that began as `origin`, up its gradient.
    fn advance(&self, x: &mut [f64], origin: &[f64], gradient: &[f64]) {
        let (least, greatest) = self.range;
        for ((x, &origin), &g) in x.iter_mut().zip(origin).zip(gradient) {
            if g != 0.0 {
                let moved = *x + self.step * g.signum();
                *x = moved.clamp(origin - self.reach, origin + self.reach).clamp(least, greatest);
            }
        }
    }

    /// Perturbs blob number `input` of the data of a batch, adds what the net makes of it to `scored`, and gives the
    /// perturbed blob and the number of items whose gradient was zero in the first step.
    ///
    /// # Errors
    /// When the net refuses, or has no gradient for the input.
    pub fn run(
        &self,
        net: &mut Trained<'_>,
        classifier: &Classifier,
        data: &[(Shape, Vec<f64>)],
        input: usize,
        scored: &mut Scored,
    ) -> Result<(Vec<f64>, usize)> {
        for (source, (_, values)) in classifier.sources.iter().zip(data) {
            net.net.set_blob(&source.blob, values)?;
        }
        let (shape, origin) = &data[input];
        let blob = &classifier.sources[input].blob;
        let mut x = origin.clone();
        let mut zeros = 0;
        let step = Step { seed: 0, iter: 0, batch: 0 };
        for number in 0..self.steps {
            net.net.forward(&step)?;
            net.net.clear_param_diffs()?;
            net.net.backward(&step)?;
            let gradient = net.net.blob_diff(blob)?.ok_or_else(|| {
                Error::config(format!("the loss has no gradient by blob '{blob}'; a layer on the way passes none back"))
            })?;
            ensure!(
                gradient.iter().all(|g| !g.is_nan()),
                "the gradient of blob '{blob}' is not a number; did the training diverge?"
            );
            if number == 0 {
                let item = shape.count_from(1).max(1);
                zeros = gradient.chunks(item).filter(|g| g.iter().all(|g| *g == 0.0)).count();
            }
            self.advance(&mut x, origin, &gradient);
            net.net.set_blob(blob, &x)?;
        }
        net.forward(0, true, scored)?;
        Ok((x, zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stay_near_and_within_the_range() {
        let attack = Attack { reach: 0.1, step: 0.06, steps: 2, range: (0.0, 1.0) };
        let origin = [0.5, 0.5, 0.02, 0.99, 0.5];
        let gradient = [3.0, -1e-30, -1.0, 2.0, 0.0];
        let mut x = origin;
        attack.advance(&mut x, &origin, &gradient);
        let near = |x: [f64; 5], y: [f64; 5]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-12);
        assert!(near(x, [0.56, 0.44, 0.0, 1.0, 0.5]), "{x:?}");
        attack.advance(&mut x, &origin, &gradient);
        assert!(near(x, [0.6, 0.4, 0.0, 1.0, 0.5]), "{x:?}");
        // An element that was outside of the range comes into it.
        let mut x = [1.2];
        Attack { reach: 0.5, step: 0.5, ..attack }.advance(&mut x, &[1.2], &[-1.0]);
        assert!((x[0] - 0.7).abs() < 1e-12);
    }
}
