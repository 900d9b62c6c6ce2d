//! Elementary functions that loops over `f32` can be vectorised with; in `f64` they are the standard library's.
//!
//! In single precision they are within 4e-7 relative (about three units in the last place) of the true values, which the
//! tests measure. Polynomials are minimax fits: no others of their degrees are off by less at the worst.

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
            let e = exp_m1_of_negative(-2.0 * x.abs());
            (e / (e + 2.0)).copysign(x)
        },
        T::tanh,
    )
}

/// ln(1 + eˣ), which neither overflows nor loses small values.
#[inline(always)]
pub fn softplus<T: Float>(x: T) -> T {
    let above = if x < T::zero() { T::zero() } else { x };
    above + single(-x.abs(), |x| ln_1p_of_fraction(exp_of_negative(x)), |x| x.exp().ln_1p())
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<T: Float>(x: T) -> T {
    let f32 = |x: f32| {
        let e = exp_of_negative(-x.abs());
        (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
    };
    single(x, f32, |x| T::one() / (T::one() + (-x).exp()))
}

/// A power's exponent, and what follows from it alone.
#[derive(Clone, Copy, Debug)]
pub struct Exponent {
    y: f64,
    /// ∣x∣ʸ of zero and of infinity.
    of_zero: f32,
    of_infinity: f32,
    /// The bits of x that xʸ has too: its sign where y is odd.
    sign: u32,
    /// The least x below 0 that has no power, −∞ being above all others.
    least: f32,
}

impl Exponent {
    /// Of a finite exponent other than 0.
    pub fn new(y: f64) -> Self {
        let [of_zero, of_infinity] = if y > 0.0 { [0.0, f32::INFINITY] } else { [f32::INFINITY, 0.0] };
        let sign = if y.rem_euclid(2.0) == 1.0 { 1 << 31 } else { 0 };
        Exponent { y, of_zero, of_infinity, sign, least: if y == y.trunc() { 0.0 } else { f32::MIN } }
    }

    /// xʸ; in `f32` within two units in the last place, of zeros, infinities, NaN and negative x as the standard library's.
    #[inline(always)]
    pub fn raise<T: Float>(&self, x: T) -> T {
        single(x, |x| self.raise_f32(x), |x| x.powf(T::of(self.y)))
    }

    #[inline(always)]
    fn raise_f32(&self, x: f32) -> f32 {
        let magnitude = x.abs();
        let power = exp2_f64(self.y * log2_f64(magnitude)) as f32;
        let power = if magnitude == 0.0 { self.of_zero } else { power };
        let power = if magnitude == f32::INFINITY { self.of_infinity } else { power };
        let power = f32::from_bits(power.to_bits() | x.to_bits() & self.sign);
        let power = if x < 0.0 && x >= self.least { f32::NAN } else { power };
        if x.is_nan() { x } else { power }
    }
}

/// log₂ x of a positive finite number, off by 4e-10.
#[inline(always)]
fn log2_f64(x: f32) -> f64 {
    const ONE: u64 = 1023 << 52;
    // x = m·2ᵉ with m in [√½, √2), as in the logarithm of base e.
    const ROOT: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    let bits = f64::from(x).to_bits().wrapping_add(ONE - ROOT);
    // The exponent field as the low bits of 2⁵² + e + 1023.
    let e = f64::from_bits(bits >> 52 | 0x4330_0000_0000_0000) - (4_503_599_627_370_496.0 + 1023.0);
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(ROOT));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.431_737_766_257;
    for c in [0.576_714_314_804, 0.961_798_848_247, 2.885_390_079_788] {
        p = p * z + c;
    }
    e + s * p
}

/// 2ˣ, off by 2e-9 of it; beyond the range of `f32` something as far beyond.
#[inline(always)]
fn exp2_f64(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = if x > 1000.0 { 1000.0 } else { x };
    let x = if x < -1000.0 { -1000.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.535_336_206_885e-4;
    for c in [1.339_887_455_834e-3, 9.618_437_358_227e-3, 0.055_503_324_708, 0.240_226_479_136] {
        p = p * r + c;
    }
    let p = (p * r + 0.693_147_202_855) * r + 1.0;
    f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52))
}

/// (the bits of n + `round`, eʳ − 1) with x = n·ln 2 + r and |r| ≤ ln 2 / 2.
#[inline(always)]
fn reduce(x: f32, round: f32) -> (u32, f32) {
    let shifted = x * std::f32::consts::LOG2_E + round;
    let n = shifted - round;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Off by 3e-9 of eʳ.
    let mut p = 1.381_422_2e-3;
    for c in [8.368_899e-3, 4.166_841e-2, 0.166_665_2, 0.499_999_93] {
        p = p * r + c;
    }
    (shifted.to_bits(), p * r * r + r)
}

/// (n, eʳ − 1) as of [`reduce`].
#[inline(always)]
fn reduce_whole(x: f32) -> (i32, f32) {
    let (n, p) = reduce(x, ROUND);
    ((n as i32).wrapping_sub(ROUND.to_bits() as i32), p)
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
    let (n, p) = reduce_whole(y);
    // In two factors, so that results below the normal range round rather than wrap.
    let half = n >> 1;
    (p + 1.0) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// What, added, has [`reduce`] give the bits of n + 127 + `more`, which make 2 to the power of n + `more`.
const fn exponent(more: f32) -> f32 {
    ROUND + 127.0 + more
}

/// eˣ for x up to 0.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    let y = if x < -104.0 { -104.0 } else { x };
    // In two factors, as above; 2ⁿ⁺²⁴ is not below the normal range.
    let (n, p) = reduce(y, const { exponent(24.0) });
    (p + 1.0) * f32::from_bits(n << 23) * (1.0 / 16_777_216.0)
}

/// eˣ − 1 for x up to 0.
#[inline(always)]
fn exp_m1_of_negative(x: f32) -> f32 {
    let y = if x < -80.0 { -80.0 } else { x };
    let (n, p) = reduce(y, const { exponent(0.0) });
    let scale = f32::from_bits(n << 23);
    scale * p + (scale - 1.0)
}

#[inline(always)]
fn exp_m1_f32(x: f32) -> f32 {
    let y = if x > 88.0 { 88.0 } else { x };
    let y = if y < -80.0 { -80.0 } else { y };
    let (n, p) = reduce_whole(y);
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
    // ln m = 2·artanh s, off by 2e-9.
    let series = z * (0.666_667_76 + z * (0.399_775_37 + z * 0.298_718_55));
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
    // 2·artanh s, off by 5e-9 for s up to ⅓.
    let s = x / (x + 2.0);
    let z = s * s;
    let mut p = 0.140_122_32;
    for c in [0.139_995_7, 0.200_108_5, 0.333_332_06] {
        p = p * z + c;
    }
    let twice = s + s;
    twice + twice * (z * p)
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
    fn powers() {
        for y in [0.75, -0.25, 2.5, 1.0 / 3.0, -7.3, 17.0, 5.0, 0.01, -1e-4] {
            let exponent = Exponent::new(y);
            check("pow", (0.01, 30.0), 1.3e-7, |x| exponent.raise(x), |x| x.powf(y));
            check("pow", (0.99, 1.01), 1.3e-7, |x| exponent.raise(x), |x| x.powf(y));
            let zeros =
                [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN, -2.0, -1e-40, 1e-40, f32::MAX];
            for x in zeros {
                let (found, want) = (exponent.raise(x), x.powf(y as f32));
                let same = found.is_nan() && want.is_nan() || found.is_sign_negative() == want.is_sign_negative();
                let near = !(found - want).abs().gt(&(1e-5 * want.abs() + 1e-44)) || found == want;
                assert!(same && near && found.is_finite() == want.is_finite(), "{x}^{y} = {found}, not {want}");
            }
            assert_eq!(exponent.raise(1.7f64), 1.7f64.powf(y));
        }
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
            assert!([f32::NAN, -f32::NAN, f32::from_bits(0x7fc0_0001)].into_iter().all(|nan| f(nan).is_nan()));
        }
        assert!(ln(-1.0f32).is_nan());
        assert_eq!(exp(1.0f64), std::f64::consts::E);
    }
}
