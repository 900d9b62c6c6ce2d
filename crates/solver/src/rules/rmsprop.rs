//! RMSProp: h ← ρ·h + (1 − ρ)·g², u = η·g / (√h + δ).

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(p: &SolverParameter) -> (&'static str, f32) {
    ("solver_rmsprop", p.rms_decay())
}

pub(super) fn apply(p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
    let (rho, delta, eta) = (p.rms_decay(), p.delta(), u.rate);
    arrays.update(u, |g, h| {
        *h = rho * *h + (1.0 - rho) * g * g;
        eta * g / (h.sqrt() + delta)
    });
}
