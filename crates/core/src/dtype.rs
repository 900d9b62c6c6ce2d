//! Element types and the floating-point trait that layer code is written over.

use std::fmt;

/// What one element of a blob is stored as.
///
/// Training runs in [`DType::F32`]; [`DType::F64`] exists on the CPU so that gradients can be checked by finite
/// differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
        })
    }
}

/// A host floating-point type that layers compute in: `f32` or `f64`.
///
/// Sealed in effect: [`crate::space`] turns blob memory into slices of `T` on the strength of [`Float::DTYPE`].
pub trait Float:
    num_traits::Float
    + num_traits::NumAssign
    + num_traits::FloatConst
    + std::iter::Sum
    + Default
    + fmt::Debug
    + fmt::Display
    + Send
    + Sync
    + sealed::Sealed
    + 'static
{
    /// The storage type this is the host form of.
    const DTYPE: DType;
    /// Rounds from double precision.
    fn of(x: f64) -> Self;
    /// Widens to double precision.
    fn f64(self) -> f64;
}

impl Float for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self as f64
    }
}

impl Float for f64 {
    const DTYPE: DType = DType::F64;
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// Runs a block with a type name bound to the host type of a [`DType`]:
/// `with_float!(dtype, T => self.run::<T>(io))`.
#[macro_export]
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}
