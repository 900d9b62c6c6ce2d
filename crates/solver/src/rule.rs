//! The six update rules, each one fused pass over a parameter, its gradient and its history.
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

use lgm_cpu::{BLOCK, for_each_part_of, vectorized};
use lgm_proto::SolverParameter;

/// The rules by name.
pub const RULES: [&str; 6] = ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"];

/// How many history arrays a rule keeps for each parameter.
pub fn histories(rule: &str) -> usize {
    if matches!(rule, "AdaDelta" | "Adam") { 2 } else { 1 }
}

/// Adam's factor on the learning rate at iteration `iter`, which makes up for averages that start at zero: 1 for the
/// other rules.
pub(crate) fn correction(p: &SolverParameter, iter: i32) -> f32 {
    if p.r#type() != "Adam" {
        return 1.0;
    }
    let (b1, b2, t) = (p.momentum() as f64, p.momentum2() as f64, iter as f64 + 1.0);
    ((1.0 - b2.powf(t)).sqrt() / (1.0 - b1.powf(t))) as f32
}

/// What one parameter's update needs besides its arrays.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Factor on the raw gradient: clipping and 1 / `iter_size`.
    pub scale: f32,
    /// Learning rate times `lr_mult`.
    pub rate: f32,
    /// Weight decay times `decay_mult`.
    pub decay: f32,
    /// Decay towards zero by sign instead of by size.
    pub l1: bool,
    /// The iteration, from 0.
    pub iter: i32,
}

/// Updates one parameter: `data`, its gradient `diff`, and its histories (`second` is empty for rules with one).
pub fn apply(
    p: &SolverParameter,
    u: Update,
    data: &mut [f32],
    diff: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let (m, delta, eta) = (p.momentum(), p.delta(), u.rate);
    let sign = |w: f32| {
        if w > 0.0 {
            1.0
        } else if w < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    let gradient = |g: f32, w: f32| u.scale * g + u.decay * if u.l1 { sign(w) } else { w };
    macro_rules! each {
        (|$g:ident, $h:ident| $update:block) => {
            for_each_part_of([data, diff, first], BLOCK, |_, [w, d, h]| {
                update(w, d, h, &|$g, w, $h| {
                    let $g = gradient($g, w);
                    $update
                })
            })
        };
        (|$g:ident, $h:ident, $s:ident| $update:block) => {
            for_each_part_of([data, diff, first, second], BLOCK, |_, [w, d, h, s]| {
                update_two(w, d, h, s, &|$g, w, $h, $s| {
                    let $g = gradient($g, w);
                    $update
                })
            })
        };
    }
    match p.r#type() {
        "Nesterov" => each!(|g, h| {
            let before = *h;
            *h = m * before + eta * g;
            (1.0 + m) * *h - m * before
        }),
        "AdaGrad" => each!(|g, h| {
            *h += g * g;
            eta * g / (h.sqrt() + delta)
        }),
        "RMSProp" => {
            let rho = p.rms_decay();
            each!(|g, h| {
                *h = rho * *h + (1.0 - rho) * g * g;
                eta * g / (h.sqrt() + delta)
            })
        }
        "AdaDelta" => each!(|g, h, s| {
            *h = m * *h + (1.0 - m) * g * g;
            let v = g * ((*s + delta) / (*h + delta)).sqrt();
            *s = m * *s + (1.0 - m) * v * v;
            eta * v
        }),
        "Adam" => {
            let (b1, b2) = (m, p.momentum2());
            let eta = eta * correction(p, u.iter);
            each!(|g, m1, m2| {
                *m1 = b1 * *m1 + (1.0 - b1) * g;
                *m2 = b2 * *m2 + (1.0 - b2) * g * g;
                eta * *m1 / (m2.sqrt() + delta)
            })
        }
        _ => each!(|g, h| {
            *h = m * *h + eta * g;
            *h
        }),
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
        for rule in RULES {
            for l1 in [false, true] {
                let p = SolverParameter {
                    r#type: Some(rule.into()),
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
                    let u = match rule {
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
                    let update = Update { scale: 0.5, rate: rate as f32, decay: decay as f32, l1, iter: iter as i32 };
                    apply(&p, update, &mut data, &mut diff, &mut first, &mut second[..histories(rule) - 1]);
                    assert!((data[0] as f64 - w).abs() < 1e-5, "{rule} step {iter}: {} against {w}", data[0]);
                    assert!((diff[0] as f64 - u).abs() < 1e-5, "{rule} update");
                }
            }
        }
    }
}
