//! The six update rules, each one fused pass over a parameter, its gradient and its history. A file a rule: its formula on
//! the host, and its kernel.
//!
//! With g the gradient (summed over `iter_size` sub-batches, scaled by clipping, divided by `iter_size`, plus weight
//! decay), η the learning rate times the parameter's `lr_mult`, m = `momentum`, δ = `delta`:
//!
//! | `type` | history and update u (w ← w − u) | source |
//! | --- | --- | --- |
//! | `SGD` | h ← m·h + η·g, u = h | |
//! | `Nesterov` | h' = m·h + η·g, u = (1 + m)·h' − m·h | Nesterov 1983, as Sutskever et al. 2013 write it |
//! | `AdaGrad` | h ← h + g², u = η·g / (√h + δ) | Duchi et al. 2011 |
//! | `RMSProp` | h ← ρ·h + (1 − ρ)·g², u = η·g / (√h + δ), ρ = `rms_decay` | Tieleman & Hinton 2012 |
//! | `AdaDelta` | h ← m·h + (1 − m)·g², v = g·√((s + δ)/(h + δ)), s ← m·s + (1 − m)·v², u = η·v | Zeiler 2012 |
//! | `Adam` | m₁ ← β₁m₁ + (1 − β₁)g, m₂ ← β₂m₂ + (1 − β₂)g², u = η·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m₁/(√m₂ + δ) | Kingma & Ba 2015 |
//!
//! The gradient's memory holds u afterwards, as in Caffe; `snapshot_diff` saves it.

use lgm_core::{Error, Result};
use lgm_cpu::{BLOCK, for_each_part_of, vectorized};
use lgm_proto::SolverParameter;

mod adadelta;
mod adagrad;
mod adam;
mod nesterov;
mod rmsprop;
mod sgd;

/// An update rule, as a solver's `type` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The table above says what each is.
pub enum Rule {
    Sgd,
    Nesterov,
    AdaGrad,
    RmsProp,
    AdaDelta,
    Adam,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 6] = [Rule::Sgd, Rule::Nesterov, Rule::AdaGrad, Rule::RmsProp, Rule::AdaDelta, Rule::Adam];

    /// The name in a prototxt.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Sgd => "SGD",
            Rule::Nesterov => "Nesterov",
            Rule::AdaGrad => "AdaGrad",
            Rule::RmsProp => "RMSProp",
            Rule::AdaDelta => "AdaDelta",
            Rule::Adam => "Adam",
        }
    }

    /// The rule of a solver's `type`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn of(p: &SolverParameter) -> Result<Rule> {
        let found = Rule::ALL.into_iter().find(|rule| rule.name() == p.r#type());
        found.ok_or_else(|| Error::unknown_among("unknown value", p.r#type(), &Rule::ALL.map(Rule::name)))
    }

    /// How many history arrays it keeps for each parameter.
    pub fn histories(self) -> usize {
        if matches!(self, Rule::AdaDelta | Rule::Adam) { 2 } else { 1 }
    }

    /// The kernel that updates parameters on a device, and the constant that it takes besides momentum and delta.
    pub(crate) fn kernel(self, p: &SolverParameter) -> (&'static str, f32) {
        match self {
            Rule::Sgd => sgd::kernel(p),
            Rule::Nesterov => nesterov::kernel(p),
            Rule::AdaGrad => adagrad::kernel(p),
            Rule::RmsProp => rmsprop::kernel(p),
            Rule::AdaDelta => adadelta::kernel(p),
            Rule::Adam => adam::kernel(p),
        }
    }

    /// The factor on the learning rate at iteration `iter`: 1 but for Adam's, which makes up for averages that start at
    /// zero.
    pub(crate) fn correction(self, p: &SolverParameter, iter: i32) -> f32 {
        if self == Rule::Adam { adam::correction(p, iter) } else { 1.0 }
    }

    /// Updates one parameter.
    pub fn apply(self, p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
        match self {
            Rule::Sgd => sgd::apply(u, arrays),
            Rule::Nesterov => nesterov::apply(p, u, arrays),
            Rule::AdaGrad => adagrad::apply(p, u, arrays),
            Rule::RmsProp => rmsprop::apply(p, u, arrays),
            Rule::AdaDelta => adadelta::apply(p, u, arrays),
            Rule::Adam => adam::apply(p, u, arrays),
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What one parameter's update needs besides its arrays.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Factor on the raw gradient: clipping and 1 / `iter_size`.
    pub scale: f32,
    /// Learning rate times `lr_mult`.
    pub rate: f32,
    /// SGD's momentum; the other rules' is the solver's.
    pub momentum: f32,
    /// Weight decay times `decay_mult`.
    pub decay: f32,
    /// Decay towards zero by sign instead of by size.
    pub l1: bool,
    /// The iteration, from 0.
    pub iter: i32,
}

impl Update {
    /// The gradient with clipping, mean and weight decay.
    fn gradient(&self, g: f32, w: f32) -> f32 {
        let sign = |w: f32| {
            if w > 0.0 {
                1.0
            } else if w < 0.0 {
                -1.0
            } else {
                0.0
            }
        };
        self.scale * g + self.decay * if self.l1 { sign(w) } else { w }
    }
}

/// One parameter's arrays, all of one length.
#[derive(Debug)]
pub struct Arrays<'a> {
    /// The parameter.
    pub data: &'a mut [f32],
    /// Its gradient, which the update takes the place of.
    pub diff: &'a mut [f32],
    /// The first history.
    pub first: &'a mut [f32],
    /// The second history; empty for rules with one.
    pub second: &'a mut [f32],
}

impl Arrays<'_> {
    /// Updates every element by `rule`, which gets the gradient and changes the history.
    fn update(self, u: Update, rule: impl Fn(f32, &mut f32) -> f32 + Sync) {
        for_each_part_of([self.data, self.diff, self.first], BLOCK, |_, [w, d, h]| {
            update(w, d, h, &|g, w, h| rule(u.gradient(g, w), h))
        })
    }

    /// As [`Arrays::update`], with two histories.
    fn update_two(self, u: Update, rule: impl Fn(f32, &mut f32, &mut f32) -> f32 + Sync) {
        for_each_part_of([self.data, self.diff, self.first, self.second], BLOCK, |_, [w, d, h, s]| {
            update_two(w, d, h, s, &|g, w, h, s| rule(u.gradient(g, w), h, s))
        })
    }
}

vectorized! {
    /// d ← f(d, w, h), w ← w − d for each element; f changes h.
    fn update[F: Fn(f32, f32, &mut f32) -> f32](w: &mut [f32], d: &mut [f32], h: &mut [f32], f: &F) {
        for ((w, d), h) in w.iter_mut().zip(d).zip(h) {
            *d = f(*d, *w, h);
            *w -= *d;
        }
    }
}

vectorized! {
    /// As [`update`], with two histories.
    fn update_two[F: Fn(f32, f32, &mut f32, &mut f32) -> f32](
        w: &mut [f32],
        d: &mut [f32],
        h: &mut [f32],
        s: &mut [f32],
        f: &F,
    ) {
        for (((w, d), h), s) in w.iter_mut().zip(d).zip(h).zip(s) {
            *d = f(*d, *w, h, s);
            *w -= *d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps of each rule on one weight against the formulas in f64.
    #[test]
    fn rules_follow_their_formulas() {
        let (m, b2, rho, delta, rate, decay) = (0.9f64, 0.99f64, 0.98f64, 1e-3f64, 0.1f64, 0.01f64);
        for rule in Rule::ALL {
            for l1 in [false, true] {
                let p = SolverParameter {
                    r#type: Some(rule.name().into()),
                    momentum: Some(m as f32),
                    momentum2: Some(b2 as f32),
                    rms_decay: Some(rho as f32),
                    delta: Some(delta as f32),
                    ..Default::default()
                };
                let (mut w, mut h, mut s) = (-0.7f64, 0.0f64, 0.0f64);
                let (mut data, mut first, mut second) = ([w as f32], [0.0f32], [0.0f32]);
                for (iter, raw) in [0.8f64, -0.3].into_iter().enumerate() {
                    let g = 0.5 * raw + decay * if l1 { w.signum() } else { w };
                    let u = match rule.name() {
                        "SGD" => {
                            h = m * h + rate * g;
                            h
                        }
                        "Nesterov" => {
                            let before = h;
                            h = m * h + rate * g;
                            (1.0 + m) * h - m * before
                        }
                        "AdaGrad" => {
                            h += g * g;
                            rate * g / (h.sqrt() + delta)
                        }
                        "RMSProp" => {
                            h = rho * h + (1.0 - rho) * g * g;
                            rate * g / (h.sqrt() + delta)
                        }
                        "AdaDelta" => {
                            h = m * h + (1.0 - m) * g * g;
                            let v = g * ((s + delta) / (h + delta)).sqrt();
                            s = m * s + (1.0 - m) * v * v;
                            rate * v
                        }
                        _ => {
                            h = m * h + (1.0 - m) * g;
                            s = b2 * s + (1.0 - b2) * g * g;
                            let t = iter as i32 + 1;
                            rate * (1.0 - b2.powi(t)).sqrt() / (1.0 - m.powi(t)) * h / (s.sqrt() + delta)
                        }
                    };
                    w -= u;
                    let mut diff = [raw as f32];
                    let (rate, decay, momentum, iter) = (rate as f32, decay as f32, m as f32, iter as i32);
                    let update = Update { scale: 0.5, rate, momentum, decay, l1, iter };
                    let second = &mut second[..rule.histories() - 1];
                    rule.apply(&p, update, Arrays { data: &mut data, diff: &mut diff, first: &mut first, second });
                    assert!((data[0] as f64 - w).abs() < 1e-5, "{rule} step {iter}: {} against {w}", data[0]);
                    assert!((diff[0] as f64 - u).abs() < 1e-5, "{rule} update");
                }
            }
        }
    }
}
