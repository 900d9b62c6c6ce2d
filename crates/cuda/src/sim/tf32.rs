//! Factors as tensor cores take them: TF32 has the exponents of single precision and 10 of its 23 bits of mantissa.

/// The nearest number of TF32, of two as near the one further from zero (PTX's `cvt.rna.tf32.f32`). What is not finite
/// stays as it is.
pub fn rounded(v: f32) -> f32 {
    if !v.is_finite() {
        return v;
    }
    // The 13 bits that go, and half of the last that stays: a carry out of the mantissa raises the exponent as it should.
    f32::from_bits((v.to_bits() + 0x1000) & !0x1fff)
}

#[cfg(test)]
mod tests {
    use super::rounded;

    /// What comes of the bits, with either sign.
    fn bits(v: u32) -> u32 {
        let (plus, minus) = (rounded(f32::from_bits(v)).to_bits(), rounded(f32::from_bits(v | 1 << 31)).to_bits());
        assert_eq!(minus, plus | 1 << 31, "{v:08x}");
        plus
    }

    #[test]
    fn the_nearest_and_away_from_zero_halfway() {
        // 1, the number above it in TF32, and what lies between.
        assert_eq!(
            [0x3f80_0000, 0x3f80_0fff, 0x3f80_1000, 0x3f80_1001].map(bits),
            [0x3f80_0000, 0x3f80_0000, 0x3f80_2000, 0x3f80_2000]
        );
        // Halfway above an odd last bit: away from zero too, which here is to even.
        assert_eq!([0x3f80_2fff, 0x3f80_3000].map(bits), [0x3f80_2000, 0x3f80_4000]);
        // All ones carry into the exponent: 2 - 2^-23 gives 2.
        assert_eq!(bits(0x3fff_ffff), 2.0f32.to_bits());
        assert_eq!(rounded(0.1), 0.099_975_586);
        assert_eq!(rounded(-3.0), -3.0);
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(bits(0), 0);
        // Below the least normal number there are steps of 2^-136; half of one counts as one.
        assert_eq!([1, 0x0fff, 0x1000, 0x007f_ffff].map(bits), [0, 0, 0x2000, 0x0080_0000]);
        // The largest number of TF32, and what is nearer to the power of two above it.
        assert_eq!([0x7f7f_e000, 0x7f7f_efff].map(bits), [0x7f7f_e000; 2]);
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
        assert_eq!(rounded(f32::NEG_INFINITY), f32::NEG_INFINITY);
        // A NaN whose mantissa would carry away is one still.
        assert_eq!([0x7f80_0001, 0x7fff_ffff].map(bits), [0x7f80_0001, 0x7fff_ffff]);
    }

    #[test]
    fn off_by_no_more_than_half_of_the_last_bit() {
        let mut state = 1u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let v = f32::from_bits(0x2000_0000 + (state >> 2));
            let short = rounded(v);
            assert!((short - v).abs() <= v * 2f32.powi(-11) && rounded(short) == short, "{v:e} gave {short:e}");
        }
    }
}
