//! In which precision products are made.

use std::fmt;
use std::str::FromStr;

use lgm_core::Error;

/// The precision of matrix products and convolutions; everything else is single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision throughout.
    Fp32,
    /// Factors rounded to TF32's 10 bits of mantissa, sums in single precision (tensor cores; sm_80 and newer, and
    /// single precision on older GPUs).
    #[default]
    Tf32,
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "fp32" => Ok(Precision::Fp32),
            "tf32" => Ok(Precision::Tf32),
            "bf16" => Err(Error::config("precision bf16 is not available yet; use tf32 (the default) or fp32")),
            _ => {
                let hint = lgm_core::nearest(text, ["fp32", "tf32"]).map(|n| format!("; did you mean {n}?"));
                let hint = hint.unwrap_or_default();
                Err(Error::config(format!("unknown precision '{text}'{hint} (there are fp32 and tf32)")))
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Precision;

    #[test]
    fn text_and_back() {
        for precision in [Precision::Fp32, Precision::Tf32] {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("TF32".parse::<Precision>().unwrap(), Precision::Tf32);
        assert_eq!(Precision::default(), Precision::Tf32);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let text = |t: &str| t.parse::<Precision>().unwrap_err().to_string();
        assert_eq!(text("bf16"), "precision bf16 is not available yet; use tf32 (the default) or fp32");
        assert_eq!(text("fp23"), "unknown precision 'fp23'; did you mean fp32? (there are fp32 and tf32)");
        assert!(text("double").starts_with("unknown precision 'double'"));
    }
}
