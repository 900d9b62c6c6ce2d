//! SGD: h ← m·h + η·g, u = h.

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(_: &SolverParameter) -> (&'static str, f32) {
    ("solver_sgd", 0.0)
}

pub(super) fn apply(u: Update, arrays: Arrays<'_>) {
    let (m, eta) = (u.momentum, u.rate);
    arrays.update(u, |g, h| {
        *h = m * *h + eta * g;
        *h
    });
}
