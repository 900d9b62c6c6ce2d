//! Thousands of steps of a solver on clusters tight enough to make variances collapse.

use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Harness, Inputs};

use super::tests::text;
use crate::tests::registry;

const ITEMS: usize = 12;
const CLASSES: usize = 3;
const WIDTH: usize = 2;

/// SGD with momentum and weight decay on centers, variances and, where they are free, features.
struct Training {
    harness: Harness,
    inputs: Inputs,
    rate: f64,
    momentum: f64,
    decay: f64,
    free_features: bool,
    speed: [Vec<f64>; 3],
    losses: Vec<f64>,
}

impl Training {
    /// Clusters of radius `spread` around corners of a triangle, their centers where they belong.
    fn new(fields: &str, spread: f64) -> Training {
        let fields = format!("num_output: {CLASSES} update_sigma: true center_coef: 0.1 {fields}");
        let shapes: [Shape; 2] = [[ITEMS, WIDTH].into(), [ITEMS].into()];
        let harness = Harness::new(&registry(), &text(&fields, 1), Phase::Train, DType::F32, &shapes).unwrap();
        let corners = [2.0, 0.0, -1.0, 1.7, -1.0, -1.7];
        let labels: Vec<f64> = (0..ITEMS).map(|i| (i % CLASSES) as f64).collect();
        let ring = |i: usize| (i / CLASSES) as f64 * 1.57;
        let x: Vec<f64> = (0..ITEMS)
            .flat_map(|i| {
                let corner = &corners[i % CLASSES * WIDTH..][..WIDTH];
                [corner[0] + spread * ring(i).cos(), corner[1] + spread * ring(i).sin()]
            })
            .collect();
        let mut inputs = harness.forward_inputs(&[&x, &labels]).unwrap();
        inputs.params[0] = corners.to_vec();
        inputs.top_diffs = vec![vec![1.0]];
        let speed = [x.len(), inputs.params[0].len(), inputs.params[1].len()].map(|n| vec![0.0; n]);
        Training { harness, inputs, rate: 0.1, momentum: 0.9, decay: 0.0, free_features: false, speed, losses: vec![] }
    }

    fn sigma(&self) -> &[f64] {
        &self.inputs.params[1]
    }

    fn run(&mut self, iterations: usize) {
        for iteration in 0..iterations {
            let out = self.harness.run(&self.inputs).unwrap();
            self.losses.push(out.tops[0][0]);
            let [dx, dw, ds] =
                [&out.bottom_diffs[0], &out.param_diffs[0], &out.param_diffs[1]].map(|d| d.as_ref().unwrap());
            assert!(out.tops[0][0].is_finite(), "the loss of iteration {iteration} is {}", out.tops[0][0]);
            let [centers, sigma] = &mut self.inputs.params[..] else { panic!("two parameters") };
            let mut blobs = vec![(centers, dw, 1), (sigma, ds, 2)];
            if self.free_features {
                blobs.push((&mut self.inputs.bottoms[0], dx, 0));
            }
            for (values, gradient, b) in blobs {
                for ((v, g), speed) in values.iter_mut().zip(gradient).zip(&mut self.speed[b]) {
                    *speed = self.momentum * *speed + self.rate * (g + self.decay * *v);
                    *v = f64::from((*v - *speed) as f32);
                    assert!(v.is_finite(), "blob {b} is {v} after iteration {iteration}");
                }
            }
        }
    }
}

#[test]
fn variances_settle_at_the_spread_of_their_cluster() {
    for isotropic in [true, false] {
        for (spread, floor, rate) in [(0.5f64, 0.01, 0.1), (0.3, 0.01, 0.01), (0.1, 0.001, 0.01)] {
            let mut training = Training::new(&format!("isotropic: {isotropic} sigma_floor: {floor}"), spread);
            training.rate = rate;
            training.run(4000);
            for s in training.sigma() {
                // Four points on a circle: the variance of each feature is half the squared radius.
                let want = 0.5 * spread * spread;
                assert!((s / want - 1.0).abs() < 0.02, "isotropic {isotropic}, spread {spread}: {s}, expected {want}");
            }
        }
    }
}

#[test]
fn clusters_that_shrink_to_points_leave_training_finite() {
    for isotropic in [true, false] {
        for (rate, momentum, decay) in [(0.01, 0.9, 5e-4), (0.1, 0.9, 0.0), (0.1, 0.9, 5e-4), (0.5, 0.0, 0.0)] {
            for (free_features, spread) in [(false, 0.0), (true, 0.0), (true, 0.5)] {
                let mut training =
                    Training::new(&format!("isotropic: {isotropic} margin_mul {{ value: 0.3 }}"), spread);
                (training.rate, training.momentum, training.decay) = (rate, momentum, decay);
                training.free_features = free_features;
                training.run(3000);
                let bounded = training.sigma().iter().all(|s| (0.0..0.05).contains(s));
                assert!(bounded, "rate {rate}, momentum {momentum}, free {free_features}: {:?}", training.sigma());
                assert!(training.losses.last() < training.losses.first(), "nothing was learned");
            }
        }
    }
}

#[test]
fn a_collapsed_variance_stays_at_the_floor_and_comes_back() {
    let mut training = Training::new("", 0.0);
    training.run(3000);
    assert!(training.sigma().iter().all(|s| (0.001..0.02).contains(s)), "collapsed to {:?}", training.sigma());
    // The clusters widen: variances follow.
    training.inputs.bottoms = Training::new("", 0.5).inputs.bottoms;
    training.run(3000);
    assert!(training.sigma().iter().all(|s| (s / 0.125 - 1.0).abs() < 0.05), "came back to {:?}", training.sigma());
}

#[test]
fn a_variance_thrown_below_zero_comes_back() {
    for thrown in [-0.01, -3.0, -100.0] {
        for (spread, low, high) in [(0.0, 0.001, 0.02), (0.5, 0.11, 0.14)] {
            let mut training = Training::new("", spread);
            training.inputs.params[1] = vec![thrown; CLASSES];
            training.run(3000);
            let back = training.sigma().iter().all(|s| (low..high).contains(s));
            assert!(back, "from {thrown}, spread {spread}: {:?}", training.sigma());
        }
    }
}
