//! Learning-rate policies.
//!
//! With b = `base_lr`, γ = `gamma`, p = `power` and t the iteration:
//!
//! | `lr_policy` | rate |
//! | --- | --- |
//! | `fixed` | b |
//! | `step` | b·γ^⌊t / `stepsize`⌋ |
//! | `exp` | b·γ^t |
//! | `inv` | b·(1 + γt)^−p |
//! | `multistep` | b·γ^k, k the number of `stepvalue`s reached |
//! | `poly` | b·(1 − t / `max_iter`)^p |
//! | `sigmoid` | b / (1 + e^(−γ(t − `stepsize`))) |

use lgm_proto::SolverParameter;
use tracing::info;

/// The policies by name.
pub const LR_POLICIES: [&str; 7] = ["fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid"];

/// The learning rate at iteration `iter`. `current_step` is Caffe's counter of steps taken, which solver states save;
/// `step` sets it and `multistep` advances it by at most one a call.
pub fn learning_rate(p: &SolverParameter, iter: i32, current_step: &mut i32) -> f32 {
    let (base, gamma, power, t) = (p.base_lr() as f64, p.gamma() as f64, p.power() as f64, iter as f64);
    let rate = match p.lr_policy() {
        "step" => {
            *current_step = iter / p.stepsize().max(1);
            base * gamma.powi(*current_step)
        }
        "exp" => base * gamma.powf(t),
        "inv" => base * (1.0 + gamma * t).powf(-power),
        "multistep" => {
            if p.stepvalue.get(*current_step as usize).is_some_and(|&at| iter >= at) {
                *current_step += 1;
                info!("MultiStep Status: Iteration {iter}, step = {current_step}");
            }
            base * gamma.powi(*current_step)
        }
        "poly" => base * (1.0 - t / p.max_iter() as f64).powf(power),
        "sigmoid" => base / (1.0 + (-gamma * (t - p.stepsize() as f64)).exp()),
        _ => base,
    };
    rate as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(policy: &str, iter: i32) -> f32 {
        let p = SolverParameter {
            lr_policy: Some(policy.into()),
            base_lr: Some(0.5),
            gamma: Some(0.5),
            power: Some(2.0),
            stepsize: Some(10),
            stepvalue: vec![5, 20],
            max_iter: Some(100),
            ..Default::default()
        };
        let mut step = 0;
        (0..=iter).map(|i| learning_rate(&p, i, &mut step)).last().unwrap()
    }

    #[test]
    fn policies_follow_their_formulas() {
        let cases = [
            ("fixed", 33, 0.5),
            ("step", 25, 0.125),
            ("step", 9, 0.5),
            ("exp", 3, 0.0625),
            ("inv", 2, 0.125),
            ("multistep", 4, 0.5),
            ("multistep", 5, 0.25),
            ("multistep", 20, 0.125),
            ("poly", 50, 0.125),
            ("sigmoid", 10, 0.25),
        ];
        for (policy, iter, want) in cases {
            assert!((rate(policy, iter) - want).abs() < 1e-6, "{policy} at {iter}: {}", rate(policy, iter));
        }
    }
}
