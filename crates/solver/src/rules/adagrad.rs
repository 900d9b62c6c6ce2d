//! AdaGrad: h ← h + g², u = η·g / (√h + δ).

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(_: &SolverParameter) -> (&'static str, f32) {
    ("solver_adagrad", 0.0)
}

pub(super) fn apply(p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
    let (delta, eta) = (p.delta(), u.rate);
    arrays.update(u, |g, h| {
        *h += g * g;
        eta * g / (h.sqrt() + delta)
    });
}
