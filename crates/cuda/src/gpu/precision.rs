//! In which precision products are made.

use std::fmt;
use std::str::FromStr;

use lgm_core::{ChannelsLast, Element, Error, Gemm, Storage, TENSOR_CORES_FROM};

/// The precision of matrix products and convolutions, and with [`Precision::Bf16`] of what lies between layers; everything
/// else is single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision throughout.
    Fp32,
    /// Factors rounded to TF32's 10 bits of mantissa, sums in single precision (tensor cores; sm_80 and newer). Single
    /// precision on older GPUs, and for products too small to gain by it, of less than 2²⁷ multiply-adds.
    #[default]
    Tf32,
    /// Blobs stored in bf16, and so the factors of products; sums, statistics, losses, parameters and their gradients in
    /// single precision (sm_80 and newer).
    Bf16,
}

impl Precision {
    /// Refuses what a GPU of a name and compute capability cannot do.
    ///
    /// # Errors
    /// When it cannot, with what it has and what is needed.
    pub(crate) fn check(self, name: &str, (major, minor): (u32, u32)) -> Result<(), Error> {
        lgm_core::ensure!(
            self != Precision::Bf16 || major >= 8,
            "precision bf16 needs compute capability 8.0 (Ampere) or newer; {name} is of {major}.{minor}: take tf32 (the \
             default) or fp32"
        );
        Ok(())
    }

    /// What a product of so many multiply-adds is made in where blobs are single precision: tensor cores have nothing to
    /// gain on a small one.
    pub(crate) fn of_product(self, multiply_adds: usize) -> Precision {
        if multiply_adds < TENSOR_CORES_FROM { Precision::Fp32 } else { self }
    }

    /// Whether the factors of a product are rounded to TF32. Those of 16 bits go to the tensor cores as they are.
    pub(crate) fn shortens(self, gemm: &Gemm) -> bool {
        let precision = self.of_product(gemm.batch.0 * gemm.m * gemm.n * gemm.k);
        precision != Precision::Fp32 && gemm.factors == Element::F32 && !gemm.exact
    }

    /// What layers should store where they have the choice and there are tensor cores for it, which take channels last.
    pub fn storage(self) -> Storage {
        let channels_last = ChannelsLast::WhereItPays;
        match self {
            Precision::Fp32 => Storage::default(),
            Precision::Tf32 => Storage { element: Element::F32, channels_last },
            Precision::Bf16 => Storage { element: Element::Bf16, channels_last },
        }
    }

    /// The same on a GPU of a compute capability: the tensor cores of those before sm_80 take no single precision.
    pub(crate) fn storage_on(self, (major, _): (u32, u32)) -> Storage {
        if major < 8 { Storage::default() } else { self.storage() }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "fp32" => Ok(Precision::Fp32),
            "tf32" => Ok(Precision::Tf32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(Error::unknown_among("unknown precision", text, &["fp32", "tf32", "bf16"])),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for precision in [Precision::Fp32, Precision::Tf32, Precision::Bf16] {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("TF32".parse::<Precision>().unwrap(), Precision::Tf32);
        assert_eq!(Precision::default(), Precision::Tf32);
    }

    #[test]
    fn small_products_stay_in_single_precision() {
        for precision in [Precision::Fp32, Precision::Tf32, Precision::Bf16] {
            assert_eq!(precision.of_product(TENSOR_CORES_FROM - 1), Precision::Fp32);
            assert_eq!(precision.of_product(TENSOR_CORES_FROM), precision);
        }
    }

    #[test]
    fn channels_are_last_where_there_are_tensor_cores_for_it() {
        let last = |element| Storage { element, channels_last: ChannelsLast::WhereItPays };
        assert_eq!(Precision::Tf32.storage_on((8, 0)), last(Element::F32));
        assert_eq!(Precision::Bf16.storage_on((9, 0)), last(Element::Bf16));
        let plain = [Precision::Tf32.storage_on((7, 5)), Precision::Fp32.storage_on((9, 0))];
        assert_eq!(plain, [Storage::default(); 2]);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let text = |t: &str| t.parse::<Precision>().unwrap_err().to_string();
        assert_eq!(text("fp23"), "unknown precision 'fp23'; did you mean 'fp32'? (there are fp32, tf32, bf16)");
        assert!(text("double").starts_with("unknown precision 'double'"));
    }

    #[test]
    fn a_gpu_without_bf16_is_named() {
        assert!(Precision::Bf16.check("H100", (9, 0)).is_ok() && Precision::Tf32.check("T4", (7, 5)).is_ok());
        let text = Precision::Bf16.check("T4", (7, 5)).unwrap_err().to_string();
        assert!(text.contains("compute capability 8.0 (Ampere)") && text.contains("T4 is of 7.5"), "{text}");
    }
}
