//! Learning-rate policies, and what forks of Caffe add to them: a warm-up, a lower bound, and a momentum that changes.
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
//! | `poly` | (b − `min_lr`)·(1 − t / `max_iter`)^p + `min_lr` |
//! | `sigmoid` | b / (1 + e^(−γ(t − `stepsize`))) |
//! | `multifixed` (Intel's) | the `stagelr` of the first `stageiter` that is not below t, at the end the last |
//!
//! Before iteration `warmup_iter` W (Intel's) the rate is (t·b + (W − t)·`warmup_start_lr`) / W instead; before
//! `rampup_interval` T (NVIDIA's), with r = `rampup_lr`, it is r + (b − r)·(t / T)². With `min_lr` (NVIDIA's) it is no
//! less than that.
//!
//! SGD's momentum is m = `momentum`; by `momentum_policy` (NVIDIA's) "poly" m + (`max_momentum` − m)·(t / `max_iter`)^q,
//! q = `momentum_power`; by "opt" (1 − ½√η)² with η the rate, at most `max_momentum` if given. During Intel's warm-up it
//! is multiplied by the rate over the last iteration's (in the first iteration, and after a rate of 0, by 1).

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
    MultiFixed,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 8] = [
        Policy::Fixed,
        Policy::Step,
        Policy::Exp,
        Policy::Inv,
        Policy::MultiStep,
        Policy::Poly,
        Policy::Sigmoid,
        Policy::MultiFixed,
    ];

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
            Policy::MultiFixed => "multifixed",
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
        let rate = warm_up(p, iter).unwrap_or_else(|| self.after_warm_up(p, iter, current_step)) as f32;
        p.min_lr.map_or(rate, |least| rate.max(least))
    }

    fn after_warm_up(self, p: &SolverParameter, iter: i32, current_step: &mut i32) -> f64 {
        let (base, gamma, power, t) = (p.base_lr() as f64, p.gamma() as f64, p.power() as f64, iter as f64);
        match self {
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
            Policy::Poly => {
                let least = p.min_lr() as f64;
                (base - least) * (1.0 - t / p.max_iter() as f64).powf(power) + least
            }
            Policy::Sigmoid => base / (1.0 + (-gamma * (t - p.stepsize() as f64)).exp()),
            Policy::MultiFixed => {
                let mut stages = p.stageiter.iter().zip(&p.stagelr);
                let stage = stages.clone().find(|(last, _)| iter <= **last).or(stages.next_back());
                stage.map_or(base, |(_, &rate)| rate as f64)
            }
        }
    }
}

/// The rate during a warm-up; `None` after it.
fn warm_up(p: &SolverParameter, iter: i32) -> Option<f64> {
    let (base, t) = (p.base_lr() as f64, iter.max(0) as f64);
    if iter < p.warmup_iter() {
        let (start, end) = (p.warmup_start_lr() as f64, p.warmup_iter() as f64);
        return Some((t * base + (end - t) * start) / end);
    }
    if iter < p.rampup_interval() {
        let (start, part) = (p.rampup_lr() as f64, t / p.rampup_interval() as f64);
        return Some(start + (base - start) * part * part);
    }
    None
}

/// A policy of SGD's momentum, as a solver's `momentum_policy` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The head of the module says what each is.
pub enum MomentumPolicy {
    Fixed,
    Poly,
    Opt,
}

impl MomentumPolicy {
    /// The policy of a solver's `momentum_policy`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn of(p: &SolverParameter) -> Result<MomentumPolicy> {
        match p.momentum_policy() {
            "fixed" => Ok(MomentumPolicy::Fixed),
            "poly" => Ok(MomentumPolicy::Poly),
            "opt" => Ok(MomentumPolicy::Opt),
            other => Err(Error::unknown_among("unknown value", other, &["fixed", "poly", "opt"])),
        }
    }

    /// SGD's momentum at iteration `iter`, whose learning rate is `rate`.
    pub fn momentum(self, p: &SolverParameter, iter: i32, rate: f32) -> f32 {
        let (base, rate) = (p.momentum() as f64, rate as f64);
        let momentum = match self {
            MomentumPolicy::Fixed => base,
            MomentumPolicy::Poly => {
                let part = iter as f64 / p.max_iter().max(1) as f64;
                base + (p.max_momentum() as f64 - base) * part.powf(p.momentum_power() as f64)
            }
            MomentumPolicy::Opt => {
                let opt = (1.0 - 0.5 * rate.sqrt()).powi(2);
                p.max_momentum.map_or(opt, |most| opt.min(most as f64))
            }
        };
        match warm_up(p, iter - 1) {
            Some(last) if (1..p.warmup_iter()).contains(&iter) && last > 0.0 => (momentum * rate / last) as f32,
            _ => momentum as f32,
        }
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

    #[test]
    fn warm_ups_bounds_and_stages_follow_their_formulas() {
        let base = SolverParameter { lr_policy: Some("fixed".into()), base_lr: Some(0.5), ..Default::default() };
        let rates = |p: &SolverParameter, iters: &[i32]| -> Vec<f32> {
            let policy = Policy::of(p).unwrap();
            iters.iter().map(|&iter| policy.rate(p, iter, &mut 0)).collect()
        };
        let warm = SolverParameter { warmup_iter: Some(4), warmup_start_lr: Some(0.1), ..base.clone() };
        assert_eq!(rates(&warm, &[0, 1, 2, 4, 9]), [0.1, 0.2, 0.3, 0.5, 0.5]);
        let ramp = SolverParameter { rampup_interval: Some(4), rampup_lr: Some(0.1), ..base.clone() };
        assert_eq!(rates(&ramp, &[0, 2, 3, 4]), [0.1, 0.2, 0.325, 0.5]);
        let stages = SolverParameter {
            lr_policy: Some("multifixed".into()),
            stagelr: vec![0.25, 0.125, 0.5],
            stageiter: vec![2, 5, 9],
            ..base.clone()
        };
        assert_eq!(rates(&stages, &[0, 2, 3, 5, 6, 9, 10]), [0.25, 0.25, 0.125, 0.125, 0.5, 0.5, 0.5]);
        let poly = SolverParameter {
            lr_policy: Some("poly".into()),
            min_lr: Some(0.25),
            power: Some(2.0),
            max_iter: Some(10),
            ..base.clone()
        };
        assert_eq!(rates(&poly, &[0, 5, 10]), [0.5, 0.3125, 0.25]);
        let exp = SolverParameter {
            lr_policy: Some("exp".into()),
            gamma: Some(0.5),
            min_lr: Some(0.2),
            rampup_interval: Some(1),
            ..base
        };
        assert_eq!(rates(&exp, &[0, 1, 2]), [0.2, 0.25, 0.2]);
    }

    #[test]
    fn momentum_follows_its_formulas() {
        let base =
            SolverParameter { base_lr: Some(0.5), momentum: Some(0.5), max_iter: Some(10), ..Default::default() };
        let momentum =
            |p: &SolverParameter, iter: i32, rate: f32| MomentumPolicy::of(p).unwrap().momentum(p, iter, rate);
        assert_eq!(momentum(&base, 3, 0.1), 0.5);
        let poly = SolverParameter {
            momentum_policy: Some("poly".into()),
            max_momentum: Some(0.75),
            momentum_power: Some(2.0),
            ..base.clone()
        };
        assert_eq!([0, 5, 10].map(|iter| momentum(&poly, iter, 0.1)), [0.5, 0.5625, 0.75]);
        let opt = SolverParameter { momentum_policy: Some("opt".into()), ..base.clone() };
        assert_eq!(momentum(&opt, 3, 0.25), 0.5625);
        assert_eq!(momentum(&SolverParameter { max_momentum: Some(0.25), ..opt }, 3, 0.25), 0.25);
        let warm = SolverParameter { warmup_iter: Some(4), warmup_start_lr: Some(0.1), ..base };
        let seen = [0, 1, 2, 4, 5].map(|iter| momentum(&warm, iter, Policy::Fixed.rate(&warm, iter, &mut 0)));
        for (seen, want) in seen.iter().zip([0.5, 1.0, 0.75, 0.5, 0.5]) {
            assert!((seen - want).abs() < 1e-6, "{seen}, not {want}");
        }
        assert!(MomentumPolicy::of(&SolverParameter { momentum_policy: Some("x".into()), ..warm }).is_err());
    }
}
