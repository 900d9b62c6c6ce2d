//! AdaDelta: h ← m·h + (1 − m)·g², v = g·√((s + δ)/(h + δ)), s ← m·s + (1 − m)·v², u = η·v.

use lgm_proto::SolverParameter;

use super::{Arrays, Update};

pub(super) fn kernel(_: &SolverParameter) -> (&'static str, f32) {
    ("solver_adadelta", 0.0)
}

pub(super) fn apply(p: &SolverParameter, u: Update, arrays: Arrays<'_>) {
    let (m, delta, eta) = (p.momentum(), p.delta(), u.rate);
    arrays.update_two(u, |g, h, s| {
        *h = m * *h + (1.0 - m) * g * g;
        let v = g * ((*s + delta) / (*h + delta)).sqrt();
        *s = m * *s + (1.0 - m) * v * v;
        eta * v
    });
}
