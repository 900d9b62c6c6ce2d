//! Memory of a CUDA device, and the queue that work on it goes through.
//!
//! A layer's device half ([`crate::DeviceLayer`]) sees addresses and puts kernels and matrix multiplications on a
//! [`DeviceQueue`]; who runs them, a GPU's stream or the kernels compiled for the host, it cannot tell. Everything on a
//! queue runs in the order it was put there. Blobs are stored in the [`Format`](crate::Format)s that layers have settled on;
//! parameters, their gradients, saved memory and scratch are `f32`, laid out as on the host.

use crate::{ConvolutionPass, DeviceCall, DeviceConvolution, Element, Result, Space, Storage};

/// The memory of a CUDA device.
#[derive(Clone, Copy, Debug)]
pub struct Device;

impl Space for Device {
    type Addr = DevicePtr;
    type Call<'a> = DeviceCall<'a>;
}

/// The address of a byte on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address: what a kernel gets for an output nobody wants.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        DevicePtr(self.0 + bytes as u64)
    }

    /// The address `elements` single-precision numbers further on.
    #[must_use]
    pub fn floats(self, elements: usize) -> Self {
        self.offset(4 * elements)
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    Ptr(DevicePtr),
    /// An `int`.
    I32(i32),
    /// An `unsigned`.
    U32(u32),
    /// A `long long`.
    I64(i64),
    /// An `unsigned long long`.
    U64(u64),
    /// A `float`.
    F32(f32),
}

macro_rules! arg_from {
    ($($from:ty => $arg:ident),+) => {
        $(impl From<$from> for Arg {
            fn from(value: $from) -> Arg {
                Arg::$arg(value)
            }
        })+
    };
}
arg_from!(DevicePtr => Ptr, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32);

impl From<Option<DevicePtr>> for Arg {
    fn from(value: Option<DevicePtr>) -> Arg {
        Arg::Ptr(value.unwrap_or(DevicePtr::NULL))
    }
}

/// The arguments of a kernel, in order: `args![x, n as i32, 0.5f32]`.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::Arg::from($arg)),*] };
}

/// How a kernel's threads are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block in x, y, z.
    pub threads: [u32; 3],
}

impl Grid {
    /// Threads of a block unless a kernel wants another number.
    pub const THREADS: u32 = 256;
    /// The most blocks a kernel that strides over its elements gets.
    const MOST_BLOCKS: u32 = 4096;

    /// For a kernel that strides over `n` elements, each thread one or more.
    pub fn elements(n: usize) -> Grid {
        let blocks = n.div_ceil(Self::THREADS as usize).clamp(1, Self::MOST_BLOCKS as usize) as u32;
        Grid::rows(blocks as usize, Self::THREADS)
    }

    /// For a kernel that gives each of `rows` rows a block of `threads` threads.
    pub fn rows(rows: usize, threads: u32) -> Grid {
        Grid { blocks: [rows.max(1) as u32, 1, 1], threads: [threads, 1, 1] }
    }
}

/// C ← α · op(A) · op(B) + β · C for row-major matrices, once or for a batch of equal strides.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// A is stored transposed.
    pub trans_a: bool,
    /// B is stored transposed.
    pub trans_b: bool,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The extent summed over.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f32,
    /// First element of A.
    pub a: DevicePtr,
    /// Elements between rows of A as stored.
    pub lda: usize,
    /// First element of B.
    pub b: DevicePtr,
    /// Elements between rows of B as stored.
    pub ldb: usize,
    /// Factor on what C holds; with 0 it is not read.
    pub beta: f32,
    /// First element of C.
    pub c: DevicePtr,
    /// Elements between rows of C.
    pub ldc: usize,
    /// Products to make: number, and elements between one and the next A, B and C.
    pub batch: (usize, [usize; 3]),
    /// Never in less than single precision: for distances, whose small differences a shortened mantissa would lose.
    pub exact: bool,
    /// What A and B are stored as. Sums are in single precision.
    pub factors: Element,
    /// What C is stored as; single precision where the factors are.
    pub result: Element,
}

impl Gemm {
    /// C ← op(A) · op(B) with `m` rows, `n` columns and sums of `k`, once, all stored as `element` with no gap between rows.
    pub fn dense(
        [m, n, k]: [usize; 3],
        [trans_a, trans_b]: [bool; 2],
        [a, b, c]: [DevicePtr; 3],
        element: Element,
    ) -> Gemm {
        let (lda, ldb) = (if trans_a { m } else { k }, if trans_b { k } else { n });
        let (alpha, beta, batch, exact) = (1.0, 0.0, (1, [0; 3]), false);
        let (factors, result) = (element, element);
        Gemm { trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc: n, batch, exact, factors, result }
    }
}

/// What runs a device's work in order.
///
/// Nothing here waits for the device but [`DeviceQueue::finish`] and the copies that reach host memory. Whatever a layer
/// puts on a queue may be recorded and replayed many times with the same addresses and numbers: what changes from step
/// to step is read from [`DeviceCall::clock`] and [`DeviceCall::dynamic`].
pub trait DeviceQueue {
    /// What layers should store where they have the choice.
    fn storage(&self) -> Storage {
        Storage::default()
    }

    /// Runs a kernel of `kernels/` by its name.
    ///
    /// # Errors
    /// When there is no such kernel, it cannot be compiled or the device refuses it.
    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()>;

    /// A matrix multiplication, or a batch of them.
    ///
    /// # Errors
    /// When the device refuses it.
    fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Bytes of workspace that a library's convolution wants for a pass, after choosing how to run it; `None` where no
    /// library does it and the layer must. The choice is made once for each geometry and pass, and tried where memory
    /// allows; never while work is recorded.
    ///
    /// # Errors
    /// When the device refuses.
    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>>;

    /// A convolution's pass by the library; the operands are those that [`ConvolutionPass`] names, in its order, the
    /// result first.
    ///
    /// # Errors
    /// When the library refuses or [`DeviceQueue::convolution_workspace`] gave `None`.
    fn convolution(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// When the device refuses.
    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()>;

    /// Copies to the device. `from` may be reused when this returns.
    ///
    /// # Errors
    /// When the device refuses.
    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()>;

    /// Copies to the host, after all work put here before; waits for it.
    ///
    /// # Errors
    /// When the device refuses, or work before this failed.
    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()>;

    /// Waits until all work is done.
    ///
    /// # Errors
    /// When some of it failed.
    fn finish(&self) -> Result<()>;
}

/// What a kernel wrote of a value it could not take; see [`crate::DeviceLayer::explain`]. All zero: nothing wrong.
pub type Fault = [u32; 4];
