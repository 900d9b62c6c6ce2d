//! A device without a device: the kernels of `kernels/`, compiled by the machine's C++ compiler and run on the host.
//!
//! For tests. It is slow, but sees what a device would hide: memory never written reads as NaN, writes beside a block,
//! pointers to nowhere, a launch whose arguments do not have the kernel's types, and barriers that some threads do not
//! reach are errors; running the threads in reverse order shows what depends on their order.
//!
//! Products are made in the precision of the device, as a GPU's tensor cores would: with [`Precision::Tf32`], factors are
//! rounded to TF32 and sums are in single precision.
//!
//! Convolutions are the layer's own, by its kernels, unless the device is made with a library of them ([`Sim::with_library`]),
//! which then stands in for cuDNN: what a GPU does.
//!
//! Reads beside a block give NaN; AddressSanitizer names the line. With `LGM_SIM_SANITIZE=1` it is compiled in; its library
//! must be there from the start:
//!
//! ```text
//! LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 LGM_SIM_SANITIZE=1 target/debug/deps/lgm_layers-… on_device
//! ```

mod build;
mod convolution;
mod memory;
mod recording;
#[cfg(test)]
mod tests;
mod tf32;

use std::borrow::Cow;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lgm_core::{
    Arg, ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Element, Error, Format, Gemm, Grid, Result, Shape,
};
use lgm_cpu::{MatMut, MatRef};

use crate::{Allocator, Precision};
use convolution::Library;

pub use build::{Kernels, kernels};
pub use convolution::{add_products, is_known};
pub use memory::Blocks;
pub use recording::Simulated;
pub use tf32::rounded as rounded_to_tf32;

/// In which order the threads of a block, and the blocks, take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reversed,
}

/// The simulated device and its queue. Work is done when it is put there.
pub struct Sim {
    kernels: &'static Kernels,
    order: Order,
    precision: Precision,
    capacity: u64,
    blocks: Mutex<Blocks>,
    library: Mutex<Library>,
}

impl Sim {
    /// A device of 64 GiB, in single precision.
    ///
    /// # Errors
    /// When there is no C++ compiler, or it refuses the kernels.
    pub fn new(order: Order) -> Result<Sim> {
        Sim::with_capacity(order, 64 << 30)
    }

    /// A device that gives out at most `capacity` bytes, in single precision.
    ///
    /// # Errors
    /// As for [`Sim::new`].
    pub fn with_capacity(order: Order, capacity: u64) -> Result<Sim> {
        Ok(Sim::of(kernels()?, order, capacity))
    }

    fn of(kernels: &'static Kernels, order: Order, capacity: u64) -> Sim {
        let precision = Precision::Fp32;
        Sim { kernels, order, precision, capacity, blocks: Mutex::default(), library: Mutex::default() }
    }

    /// The device, one with a library that does these passes of convolutions; the layer does the others.
    #[must_use]
    pub fn with_library(self, passes: &[ConvolutionPass]) -> Sim {
        Sim { library: Mutex::new(Library::of(passes)), ..self }
    }

    /// The device, one that makes products in this precision.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Sim {
        Sim { precision, ..self }
    }

    /// Whether the library was asked for a pass of a convolution that it does.
    pub fn plans_convolutions(&self) -> bool {
        self.library().has_plans()
    }

    /// Sets bytes to a value.
    ///
    /// # Errors
    /// When they are not memory of the device.
    pub fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        self.blocks().check(at, bytes, "memory to fill")?;
        // SAFETY: checked above.
        unsafe { (at.0 as *mut u8).write_bytes(value, bytes) };
        Ok(())
    }

    /// The precision of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allocator for Sim {
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let mut blocks = self.blocks();
        let free = self.capacity.saturating_sub(blocks.used());
        lgm_core::ensure!(
            bytes as u64 <= free,
            "the device is out of memory: {bytes} bytes were asked for and {free} are free; try a smaller batch_size"
        );
        blocks.alloc(bytes)
    }

    fn free(&self, block: DevicePtr) -> Result<()> {
        self.blocks().free(block)
    }

    fn free_bytes(&self) -> Result<(u64, u64)> {
        Ok((self.capacity.saturating_sub(self.blocks().used()), self.capacity))
    }
}

/// The letter of an argument's type in a signature, and its bits.
fn letter(arg: &Arg) -> (char, u64) {
    match *arg {
        Arg::Ptr(p) => ('p', p.0),
        Arg::I32(v) => ('i', v as u32 as u64),
        Arg::U32(v) => ('u', v as u64),
        Arg::I64(v) => ('l', v as u64),
        Arg::U64(v) => ('m', v),
        Arg::F32(v) => ('f', v.to_bits() as u64),
    }
}

/// The elements of a matrix of `rows` rows of `columns`, `ld` apart.
fn extent(rows: usize, columns: usize, ld: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * ld + columns }
}

/// Elements in single precision.
///
/// # Safety
/// The memory holds so many elements, for as long as they are looked at.
unsafe fn widened<'a>(at: DevicePtr, len: usize, element: Element) -> Cow<'a, [f32]> {
    if element == Element::F32 {
        // SAFETY: the caller's promise.
        return Cow::Borrowed(unsafe { std::slice::from_raw_parts(at.0 as *const f32, len) });
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(at.0 as *const u8, len * element.bytes()) };
    Cow::Owned(Format { element, ..Format::PLAIN }.decode(&Shape::from([len]), bytes))
}

impl DeviceQueue for Sim {
    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        let Some(signature) = self.kernels.signature(kernel) else {
            return Err(Error::internal(format!("there is no kernel '{kernel}'")));
        };
        let (found, mut bits): (String, Vec<u64>) = args.iter().map(letter).unzip();
        if found != signature {
            return Err(Error::internal(format!(
                "kernel '{kernel}' takes arguments of types {signature}, found {found} (p pointer, i int, u unsigned, \
                 l long long, m unsigned long long, f float)"
            )));
        }
        let [x, y, z] = grid.blocks;
        let [_, _, depth] = grid.threads;
        let threads = grid.threads.iter().map(|&t| t as u64).product::<u64>();
        if x == 0 || x > i32::MAX as u32 || y == 0 || y > 65535 || z == 0 || z > 65535 || depth > 64 || threads > 1024 {
            return Err(Error::internal(format!("kernel '{kernel}': no device takes {grid:?}")));
        }
        for (i, arg) in args.iter().enumerate() {
            if let Arg::Ptr(p) = *arg
                && p != DevicePtr::NULL
            {
                self.blocks().check(p, 0, &format!("argument {i} of kernel '{kernel}'"))?;
            }
        }
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|b| (b as *mut u64).cast()).collect();
        // SAFETY: the arguments have the types of the signature; on a little-endian machine a value's address is that of
        // its low word. That kernels stay within their blocks is what this device is for finding out.
        unsafe { self.kernels.run(kernel, grid, self.order, &mut pointers)? };
        self.blocks().check_zones(&format!("kernel '{kernel}'"))
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        let (number, strides) = g.batch;
        let (a_rows, a_columns) = if g.trans_a { (g.k, g.m) } else { (g.m, g.k) };
        let (b_rows, b_columns) = if g.trans_b { (g.n, g.k) } else { (g.k, g.n) };
        let (a_len, b_len) = (extent(a_rows, a_columns, g.lda), extent(b_rows, b_columns, g.ldb));
        let c_len = extent(g.m, g.n, g.ldc);
        if g.lda < a_columns || g.ldb < b_columns || g.ldc < g.n {
            return Err(Error::internal(format!("a matrix has rows longer than the distance between them: {g:?}")));
        }
        for i in 0..number {
            let (a, b) = (g.a.elements(i * strides[0], g.factors), g.b.elements(i * strides[1], g.factors));
            let c = g.c.elements(i * strides[2], g.result);
            let blocks = self.blocks();
            blocks.check(a, g.factors.bytes() * a_len, "A of a product")?;
            blocks.check(b, g.factors.bytes() * b_len, "B of a product")?;
            blocks.check(c, g.result.bytes() * c_len, "C of a product")?;
            // SAFETY: checked above; the queue's user keeps C apart from A and B.
            let [a, b] = unsafe { [(a, a_len), (b, b_len)].map(|(at, len)| widened(at, len, g.factors)) };
            let shortened = |factors: Cow<'_, [f32]>| factors.iter().map(|&v| tf32::rounded(v)).collect();
            let [a, b] = if self.precision.shortens(g) { [a, b].map(shortened) } else { [a, b] };
            let a = MatRef::with_stride(&a, a_rows, a_columns, g.lda).t_if(g.trans_a);
            let b = MatRef::with_stride(&b, b_rows, b_columns, g.ldb).t_if(g.trans_b);
            let product = |c: &mut [f32]| {
                let c = MatMut::with_stride(c, g.m, g.n, g.ldc);
                lgm_cpu::Gemm { alpha: g.alpha, a, b, beta: g.beta, c }.run();
            };
            if g.result == Element::F32 {
                // SAFETY: as above.
                product(unsafe { std::slice::from_raw_parts_mut(c.0 as *mut f32, c_len) });
                continue;
            }
            // SAFETY: as above.
            let mut sums = unsafe { widened(c, c_len, g.result) }.into_owned();
            product(&mut sums);
            let format = Format { element: g.result, ..Format::PLAIN };
            let narrow = format.encode(&Shape::from([c_len]), &sums);
            // SAFETY: as above; as many bytes as were checked.
            unsafe { std::ptr::copy_nonoverlapping(narrow.as_ptr(), c.0 as *mut u8, narrow.len()) };
        }
        Ok(())
    }

    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        Ok(self.library().workspace(conv, pass))
    }

    fn convolution(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        self.library().run(&self.blocks(), self.precision, (conv, pass), result, operands, workspace)?;
        self.blocks().check_zones(&format!("{pass:?} of a convolution"))
    }

    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        let blocks = self.blocks();
        blocks.check(from, bytes, "the source of a copy")?;
        blocks.check(to, bytes, "the target of a copy")?;
        if from.0 < to.0 + bytes as u64 && to.0 < from.0 + bytes as u64 && bytes > 0 {
            return Err(Error::internal("source and target of a copy overlap"));
        }
        // SAFETY: checked above.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) };
        Ok(())
    }

    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()> {
        self.fill(at, 0, bytes)
    }

    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        self.blocks().check(to, from.len(), "the target of an upload")?;
        // SAFETY: checked above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.0 as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.blocks().check(from, to.len(), "the source of a download")?;
        // SAFETY: checked above.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
