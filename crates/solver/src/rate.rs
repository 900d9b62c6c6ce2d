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

use lgm_core::{Error, Result};
use lgm_proto::SolverParameter;
use tracing::info;

/// A learning-rate policy, as a solver's `lr_policy` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The table above says what each is.
pub enum Policy {
    Fixed,
    Step,
    Exp,
    Inv,
    MultiStep,
    Poly,
    Sigmoid,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 7] =
        [Policy::Fixed, Policy::Step, Policy::Exp, Policy::Inv, Policy::MultiStep, Policy::Poly, Policy::Sigmoid];

    /// The name in a prototxt.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Fixed => "fixed",
            Policy::Step => "step",
            Policy::Exp => "exp",
            Policy::Inv => "inv",
            Policy::MultiStep => "multistep",
            Policy::Poly => "poly",
            Policy::Sigmoid => "sigmoid",
        }
    }

    /// The policy of a solver's `lr_policy`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn of(p: &SolverParameter) -> Result<Policy> {
        let found = Policy::ALL.into_iter().find(|policy| policy.name() == p.lr_policy());
        found.ok_or_else(|| Error::unknown_among("unknown value", p.lr_policy(), &Policy::ALL.map(Policy::name)))
    }

    /// The learning rate at iteration `iter`. `current_step` is Caffe's counter of steps taken, which solver states save;
    /// `step` sets it and `multistep` advances it by at most one a call.
    pub fn rate(self, p: &SolverParameter, iter: i32, current_step: &mut i32) -> f32 {
        let (base, gamma, power, t) = (p.base_lr() as f64, p.gamma() as f64, p.power() as f64, iter as f64);
        let rate = match self {
            Policy::Fixed => base,
            Policy::Step => {
                *current_step = iter / p.stepsize().max(1);
                base * gamma.powi(*current_step)
            }
            Policy::Exp => base * gamma.powf(t),
            Policy::Inv => base * (1.0 + gamma * t).powf(-power),
            Policy::MultiStep => {
                if p.stepvalue.get(*current_step as usize).is_some_and(|&at| iter >= at) {
                    *current_step += 1;
                    info!("MultiStep Status: Iteration {iter}, step = {current_step}");
                }
                base * gamma.powi(*current_step)
            }
            Policy::Poly => base * (1.0 - t / p.max_iter() as f64).powf(power),
            Policy::Sigmoid => base / (1.0 + (-gamma * (t - p.stepsize() as f64)).exp()),
        };
        rate as f32
    }
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
        let policy = Policy::of(&p).unwrap();
        (0..=iter).map(|i| policy.rate(&p, i, &mut step)).last().unwrap()
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
