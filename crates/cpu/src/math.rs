//! Elementary functions that loops over `f32` can be vectorised with; in `f64` they are the standard library's.
//!
//! In single precision they are within 4e-7 relative (about three units in the last place) of the true values, which the
//! tests measure.

use crate::Float;

/// 2⁰…: `1.5 · 2²³`; adding it rounds to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Runs the single-precision form of a function where T is `f32`. The widenings cancel out in compilation.
#[inline(always)]
fn single<T: Float>(x: T, f32: impl Fn(f32) -> f32, wide: impl Fn(T) -> T) -> T {
    if size_of::<T>() == 4 { T::of(f32(x.f64() as f32) as f64) } else { wide(x) }
}

/// eˣ.
#[inline(always)]
pub fn exp<T: Float>(x: T) -> T {
    single(x, exp_f32, T::exp)
}

/// eˣ − 1, accurate near zero.
#[inline(always)]
pub fn exp_m1<T: Float>(x: T) -> T {
    single(x, exp_m1_f32, T::exp_m1)
}

/// The natural logarithm.
#[inline(always)]
pub fn ln<T: Float>(x: T) -> T {
    single(x, ln_f32, T::ln)
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh<T: Float>(x: T) -> T {
    single(
        x,
        |x| {
            // Beyond ±10 the result is ±1 to the last bit; NaN passes through the comparisons.
            let y = if x > 10.0 { 10.0 } else { x };
            let y = if y < -10.0 { -10.0 } else { y };
            let e = exp_m1_f32(2.0 * y);
            e / (e + 2.0)
        },
        T::tanh,
    )
}

/// ln(1 + eˣ), which neither overflows nor loses small values.
#[inline(always)]
pub fn softplus<T: Float>(x: T) -> T {
    let above = if x < T::zero() { T::zero() } else { x };
    above + single(exp(-x.abs()), ln_1p_of_fraction, T::ln_1p)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<T: Float>(x: T) -> T {
    T::one() / (T::one() + exp(-x))
}

/// (n, eʳ − 1) with x = n·ln 2 + r and |r| ≤ ln 2 / 2.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series: the first term left out is below 6e-9.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + c;
    }
    ((shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32), p * r * r + r)
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    let y = if x > 89.0 { 89.0 } else { x };
    let y = if y < -104.0 { -104.0 } else { y };
    let (n, p) = reduce(y);
    // In two factors, so that results below the normal range round rather than wrap.
    let half = n >> 1;
    (p + 1.0) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn exp_m1_f32(x: f32) -> f32 {
    let y = if x > 88.0 { 88.0 } else { x };
    let y = if y < -80.0 { -80.0 } else { y };
    let (n, p) = reduce(y);
    let scale = power_of_two(n);
    let e = scale * p + (scale - 1.0);
    if x > 88.7 { f32::INFINITY } else { e }
}

#[inline(always)]
fn ln_f32(x: f32) -> f32 {
    // Subnormal arguments are scaled into the normal range first.
    let tiny = x < f32::MIN_POSITIVE;
    let (y, bias) = if tiny { (x * 8_388_608.0, 23.0) } else { (x, 0.0) };
    // x = m·2ᵉ with m in [√½, √2), by an offset that carries mantissas above √2 into the exponent.
    let bits = y.to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let e = (bits >> 23) as i32 - 127;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let s = f / (m + 1.0);
    let z = s * s;
    // ln m = 2·artanh s.
    let series = z * (2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0))));
    // 2s = f − s·f keeps the leading term exact.
    let n = e as f32 - bias;
    let r = n * LN2_LOW - s * (f - series) + f + n * LN2_HIGH;
    let r = if x == f32::INFINITY { x } else { r };
    let r = if x == 0.0 { f32::NEG_INFINITY } else { r };
    if x >= 0.0 { r } else { f32::NAN }
}

/// ln(1 + x) for x from 0 to 1.
#[inline(always)]
fn ln_1p_of_fraction(x: f32) -> f32 {
    // 2·artanh s, whose series ends below 2e-8 of its first term for s up to ⅓.
    let s = x / (x + 2.0);
    let z = s * s;
    let mut p = 1.0 / 15.0;
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0] {
        p = p * z + c;
    }
    2.0 * s + 2.0 * s * (z * p)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, range: (f64, f64), bound: f64, f: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64) {
        for i in 0..=200_000 {
            let x = (range.0 + (range.1 - range.0) * i as f64 / 200_000.0) as f32;
            let (found, want) = (f(x) as f64, want(x as f64));
            let error = ((found - want) / want.abs().max(f32::MIN_POSITIVE as f64)).abs();
            assert!(error <= bound, "{name}({x}) = {found}, not {want}: off by {error:e}");
        }
    }

    #[test]
    fn accuracy_in_single_precision() {
        check("exp", (-87.0, 88.7), 2.5e-7, exp::<f32>, f64::exp);
        check("exp", (-1.0, 1.0), 2.5e-7, exp::<f32>, f64::exp);
        check("exp_m1", (-40.0, 88.0), 4e-7, exp_m1::<f32>, f64::exp_m1);
        check("exp_m1", (-0.01, 0.01), 3e-7, exp_m1::<f32>, f64::exp_m1);
        check("ln", (1e-6, 3.0), 3e-7, ln::<f32>, f64::ln);
        check("ln", (1.0, 1e30), 3e-7, ln::<f32>, f64::ln);
        check("softplus", (-80.0, 80.0), 3e-7, softplus::<f32>, |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
        check("softplus", (-2.0, 2.0), 3e-7, softplus::<f32>, |x| x.exp().ln_1p());
        check("tanh", (-12.0, 12.0), 4e-7, tanh::<f32>, f64::tanh);
        check("tanh", (-1e-3, 1e-3), 4e-7, tanh::<f32>, f64::tanh);
        check("sigmoid", (-80.0, 80.0), 4e-7, sigmoid::<f32>, |x| 1.0 / (1.0 + (-x).exp()));
    }

    #[test]
    fn limits() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0f32), 1.0);
        assert!((exp(-100.0f32) as f64 / (-100.0f64).exp() - 1.0).abs() < 0.02, "subnormal results");
        assert_eq!(exp_m1(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_m1(f32::NEG_INFINITY), -1.0);
        assert_eq!(ln(0.0f32), f32::NEG_INFINITY);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert_eq!(ln(1.0f32), 0.0);
        assert!((ln(1e-40f32) as f64 - (1e-40f32 as f64).ln()).abs() < 1e-4);
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(0.0f32)), (1.0, -1.0, 0.0));
        assert_eq!((softplus(f32::INFINITY), softplus(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        for f in [exp::<f32>, exp_m1::<f32>, ln::<f32>, softplus::<f32>, tanh::<f32>, sigmoid::<f32>] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(ln(-1.0f32).is_nan());
        assert_eq!(exp(1.0f64), std::f64::consts::E);
    }
}
