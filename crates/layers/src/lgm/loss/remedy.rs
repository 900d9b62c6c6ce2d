//! What keeps learned variances positive and the training of them finite; see the module above.

use lgm_core::Float;

/// Multiples of the floor below which the gradient of a variance is damped.
const DAMPED_BELOW: f64 = 10.0;
/// Multiples of the floor that the spring's pull stays below, so that it does not throw a variance far above the floor.
const STRONGEST_PULL: f64 = 100.0;

/// Turns the gradient of the loss by a variance into the one given to the solver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remedy<T> {
    floor: T,
    damped_below: T,
    strongest_pull: T,
    d_loss: T,
}

impl Remedy<f32> {
    /// The floor, and the limits that follow from it, as kernels take them.
    pub fn limits(floor: f32) -> [f32; 3] {
        let Remedy { floor, damped_below, strongest_pull, .. } = Remedy::new(floor, 1.0);
        [floor, damped_below, strongest_pull]
    }
}

impl<T: Float> Remedy<T> {
    /// With the smallest variance the loss computes with, and the gradient of the loss.
    pub fn new(floor: f32, d_loss: T) -> Self {
        let floor = f64::from(floor);
        Remedy {
            floor: T::of(floor),
            damped_below: T::of(DAMPED_BELOW * floor),
            strongest_pull: T::of(STRONGEST_PULL * floor),
            d_loss: d_loss.abs(),
        }
    }

    /// The gradient for a variance `s` that the loss has the gradient `g` by, computed with max(s, floor).
    pub fn apply(&self, s: T, g: T) -> T {
        let share = (s.max(self.floor) / self.damped_below).min(T::one());
        let damped = g * share * share;
        if s > self.floor {
            return damped;
        }
        let pull = self.strongest_pull / (T::one() + self.strongest_pull / (self.floor - s));
        damped.min(T::zero()) - self.d_loss * pull
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variances_in_order_have_their_own_gradient() {
        let remedy = Remedy::new(0.01, 1.0f64);
        for (s, g) in [(1.0, -3.0), (0.11, 5.0), (1e3, 1e-9)] {
            assert_eq!(remedy.apply(s, g), g);
        }
    }

    #[test]
    fn small_ones_are_damped_and_lost_ones_called_back() {
        let remedy = Remedy::new(0.01, 1.0f64);
        let close =
            |found: f64, want: f64| assert!((found - want).abs() < 1e-6 * want.abs().max(1.0), "{found} {want}");
        close(remedy.apply(0.05, 8.0), 2.0);
        close(remedy.apply(0.02, -100.0), -4.0);
        // At the floor: down is refused, up is damped.
        close(remedy.apply(f64::from(0.01f32), 7.0), 0.0);
        close(remedy.apply(f64::from(0.01f32), -7.0), -0.07);
        // Below it, the spring pulls up whatever the loss says.
        close(remedy.apply(-2.0, 1e6), -2.01 / 3.01);
        close(remedy.apply(-2.0, -100.0), -1.0 - 2.01 / 3.01);
        close(remedy.apply(-1e300, 0.0), -1.0);
    }
}
