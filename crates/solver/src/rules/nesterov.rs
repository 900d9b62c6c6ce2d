//! Nesterov's accelerated gradient: h' = m·h + η·g, u = (1 + m)·h' − m·h.

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(_: &SolverParameter) -> (&'static str, f32) {
    ("solver_nesterov", 0.0)
}

pub(super) fn apply(p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
    let (m, eta) = (p.momentum(), u.rate);
    arrays.update(u, |g, h| {
        let before = *h;
        *h = m * before + eta * g;
        (1.0 + m) * *h - m * before
    });
}
