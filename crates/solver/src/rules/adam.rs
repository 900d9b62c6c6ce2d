//! Adam: m₁ ← β₁m₁ + (1 − β₁)g, m₂ ← β₂m₂ + (1 − β₂)g², u = η·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m₁/(√m₂ + δ).

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(p: &SolverParameter) -> (&'static str, f32) {
    ("solver_adam", p.momentum2())
}

/// √(1 − β₂ᵗ)/(1 − β₁ᵗ) at iteration `iter`, which makes up for averages that start at zero.
pub(super) fn correction(p: &SolverParameter, iter: i32) -> f32 {
    let (b1, b2, t) = (p.momentum() as f64, p.momentum2() as f64, iter as f64 + 1.0);
    ((1.0 - b2.powf(t)).sqrt() / (1.0 - b1.powf(t))) as f32
}

pub(super) fn apply(p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
    let (b1, b2, delta) = (p.momentum(), p.momentum2(), p.delta());
    let eta = u.rate * correction(p, u.iter);
    arrays.update_two(u, |g, m1, m2| {
        *m1 = b1 * *m1 + (1.0 - b1) * g;
        *m2 = b2 * *m2 + (1.0 - b2) * g * g;
        eta * *m1 / (m2.sqrt() + delta)
    });
}
