//! Layer-wise adaptive rates: each parameter's factor on the learning rate from its own norm and its gradient's.
//!
//! With ‖w‖ and ‖g‖ the L2 norms of the parameter and of its gradient (averaged over `iter_size`, clipped, without weight
//! decay), m the momentum, η the learning rate and λ = `weight_decay`:
//!
//! | setting | factor |
//! | --- | --- |
//! | `larc: true` (NVIDIA's) | (1 − m)·`larc_eta`·‖w‖ / ‖g‖; with `larc_policy` "clip" that over η, at most 1 |
//! | `local_lr_auto: true` (Intel's) | `local_gw_ratio`·‖w‖ / (‖g‖ + λ‖w‖) |
//!
//! Where one of the norms is 0 the quotient counts as 1. The factor takes the place of `lr_mult`, unless that is 0. Source:
//! You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (2017), and the forks of NVIDIA and Intel.

use lgm_proto::SolverParameter;

/// How local rates follow from norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LocalRate {
    /// Factor on the quotient, before (1 − m).
    pub trust: f32,
    /// Whether the quotient is multiplied by 1 − m.
    pub damped: bool,
    /// Factor on ‖w‖ in the denominator.
    pub decay: f32,
    /// Whether the local rate bounds the learning rate instead of multiplying it.
    pub clips: bool,
}

impl LocalRate {
    /// What a solver asks for.
    pub fn of(p: &SolverParameter) -> Option<LocalRate> {
        if p.larc() {
            return Some(LocalRate { trust: p.larc_eta(), damped: true, decay: 0.0, clips: p.larc_policy() == "clip" });
        }
        let trust = p.local_gw_ratio();
        p.local_lr_auto().then(|| LocalRate { trust, damped: false, decay: p.weight_decay(), clips: false })
    }

    /// The factor of a parameter from the squares of its norms, at a learning rate and momentum.
    pub fn factor(self, lr_mult: f32, (weights, gradients): (f64, f64), rate: f32, momentum: f32) -> f32 {
        if lr_mult <= 0.0 {
            return lr_mult;
        }
        let (w, g) = (weights.sqrt() as f32, gradients.sqrt() as f32);
        let damping = if self.damped { 1.0 - momentum } else { 1.0 };
        let local = if w > 0.0 && g > 0.0 { damping * self.trust * w / (g + self.decay * w) } else { 1.0 };
        match self.clips {
            false => local,
            true if rate > 0.0 => (local / rate).min(1.0),
            true => 1.0,
        }
    }
}
