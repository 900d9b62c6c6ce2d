//! Micro-kernels of the matrix multiplication, and the choice among them.
//!
//! A micro-kernel multiplies a panel of A (`rows` × k, packed k-major or with strides) by a panel of B (k × `cols`) and
//! adds the product to a tile of C whose rows are `ldc` apart. Everything larger (blocking, packing, threads) is built on it.

use std::any::Any;
use std::sync::OnceLock;

use crate::Float;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// The instruction set that the numerics run on.
///
/// Chosen once, at first use, as the widest that the processor has; `LGM_KERNEL=avx512|avx2|neon|portable` in the
/// environment asks for another (and is ignored where the processor lacks it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// AArch64 with NEON, which all its processors have.
    Neon,
    /// What the compiler makes of plain Rust for the target's base instruction set.
    Portable,
}

impl Kernel {
    /// Every kernel, widest first.
    pub const ALL: [Kernel; 4] = [Kernel::Avx512, Kernel::Avx2, Kernel::Neon, Kernel::Portable];

    /// The kernel in use.
    #[inline]
    pub fn active() -> Kernel {
        static ACTIVE: OnceLock<Kernel> = OnceLock::new();
        *ACTIVE.get_or_init(|| {
            let asked = std::env::var("LGM_KERNEL").ok().and_then(|name| Kernel::named(&name));
            let usable = |k: &Kernel| k.is_available();
            asked.filter(usable).or_else(|| Kernel::ALL.into_iter().find(usable)).unwrap_or(Kernel::Portable)
        })
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Avx512 | Kernel::Avx2 => false,
            Kernel::Neon => cfg!(target_arch = "aarch64"),
            Kernel::Portable => true,
        }
    }

    /// The kernel of that name, in lower case.
    pub fn named(name: &str) -> Option<Kernel> {
        Some(match name {
            "avx512" => Kernel::Avx512,
            "avx2" => Kernel::Avx2,
            "neon" => Kernel::Neon,
            "portable" => Kernel::Portable,
            _ => return None,
        })
    }
}

/// The arguments of one micro-kernel call. Strides are in elements.
pub(crate) struct TileArgs<T> {
    /// Inner extent.
    pub k: usize,
    /// Element (i, p) of A is at `i * a_row + p * a_step`.
    pub a: *const T,
    pub a_row: usize,
    pub a_step: usize,
    /// `k` rows of `cols` elements, `ldb` apart.
    pub b: *const T,
    pub ldb: usize,
    /// `rows` rows of `cols` elements, `ldc` apart.
    pub c: *mut T,
    pub ldc: usize,
    /// Factor of the product.
    pub alpha: T,
    /// Add to C; otherwise overwrite it without reading it.
    pub accumulate: bool,
}

/// A micro-kernel and the largest tile it takes.
pub(crate) struct Micro<T> {
    /// Most rows of a tile.
    pub mr: usize,
    /// Most columns of a tile.
    pub nr: usize,
    /// `run(rows, cols, args)`, with 1 ≤ rows ≤ mr and 1 ≤ cols ≤ nr.
    ///
    /// The caller answers for the pointers in the arguments and for the processor's having the instructions.
    pub run: unsafe fn(usize, usize, &TileArgs<T>),
    /// Copies a panel whose inner index runs along contiguous memory; see [`crate::pack`].
    pub transpose: unsafe fn(usize, usize, *const T, usize, *mut T, usize),
}

/// The micro-kernel for a type.
pub(crate) fn micro<T: Float>(kernel: Kernel) -> &'static Micro<T> {
    let chosen: &'static dyn Any = match (kernel, size_of::<T>()) {
        #[cfg(target_arch = "x86_64")]
        (Kernel::Avx512, 4) => &avx512::F32,
        #[cfg(target_arch = "x86_64")]
        (Kernel::Avx512, _) => &avx512::F64,
        #[cfg(target_arch = "x86_64")]
        (Kernel::Avx2, 4) => &avx2::F32,
        #[cfg(target_arch = "x86_64")]
        (Kernel::Avx2, _) => &avx2::F64,
        #[cfg(target_arch = "aarch64")]
        (Kernel::Neon, 4) => &neon::F32,
        #[cfg(target_arch = "aarch64")]
        (Kernel::Neon, _) => &neon::F64,
        (_, 4) => &portable::F32,
        _ => &portable::F64,
    };
    match chosen.downcast_ref::<Micro<T>>() {
        Some(micro) => micro,
        None => unreachable!("Float is f32 or f64"),
    }
}

/// Compiles a function once for each instruction set of [`Kernel`] and calls the one in use.
///
/// The body is plain Rust that the compiler vectorises; generic parameters stand in square brackets.
#[macro_export]
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$($gen:tt)*]($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($gen)*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($gen)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$($gen)*>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($gen)*>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::Kernel::active() {
                    // SAFETY: the active kernel is one whose instructions the processor has.
                    $crate::Kernel::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::Kernel::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;
