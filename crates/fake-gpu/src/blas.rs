//! libcublas.so.13

use std::ffi::{c_char, c_int, c_void};

use cudarc::cublas::sys::{
    self, cublasAtomicsMode_t, cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t, cublasOperation_t,
    cudaDataType, cudaStream_t,
};
use lgm_core::{Element, Format, Shape};
use lgm_cpu::{Gemm, MatMut, MatRef};
use lgm_cuda::sim::rounded_to_tf32;

use crate::enter::functions;
use crate::gpu::Gpu;
use crate::memory::read;
use crate::objects::BlasHandle;
use crate::status::{Refusal, give};

/// CUBLAS_STATUS_NOT_INITIALIZED, _INVALID_VALUE, _NOT_SUPPORTED
const NOT_INITIALIZED: Refusal = 1;
const INVALID_VALUE: Refusal = 7;
const NOT_SUPPORTED: Refusal = 15;

/// # Safety
/// The place is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGetProperty(kind: c_int, value: *mut c_int) -> c_int {
    let Some(part) = usize::try_from(kind).ok().and_then(|kind| [13, 1, 0].get(kind).copied()) else {
        return INVALID_VALUE;
    };
    // SAFETY: the caller's promise.
    unsafe { give(value, part) }.map_or_else(|status| status, |()| 0)
}

/// The status in words.
#[unsafe(no_mangle)]
pub extern "C" fn cublasGetStatusName(status: c_int) -> *const c_char {
    let name = match status {
        0 => c"CUBLAS_STATUS_SUCCESS",
        1 => c"CUBLAS_STATUS_NOT_INITIALIZED",
        7 => c"CUBLAS_STATUS_INVALID_VALUE",
        13 => c"CUBLAS_STATUS_EXECUTION_FAILED",
        15 => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"CUBLAS_STATUS_INTERNAL_ERROR",
    };
    name.as_ptr()
}

/// The status in more words.
#[unsafe(no_mangle)]
pub extern "C" fn cublasGetStatusString(_status: c_int) -> *const c_char {
    c"as the fake GPU has it".as_ptr()
}

// SAFETY, of all blocks: the places are the caller's, who has them valid, as the header asks.
functions! { sys, Blas, cublasStatus_t;
    fn cublasCreate_v2(handle: *mut cublasHandle_t) [not_recorded] |gpu| {
        let new = gpu.handle();
        gpu.products.insert(new, BlasHandle::default());
        unsafe { give(handle, new as cublasHandle_t) }
    }
    fn cublasDestroy_v2(handle: cublasHandle_t) [not_recorded releases] |gpu| {
        gpu.products.remove(&(handle as usize)).map(drop).ok_or(NOT_INITIALIZED)
    }
    fn cublasSetStream_v2(handle: cublasHandle_t, stream: cudaStream_t) [] |gpu| {
        // As documented, this takes a workspace away that was set before.
        *gpu.product(handle)? = BlasHandle { stream: stream as usize, workspace: (0, 0) };
        Ok(())
    }
    fn cublasSetWorkspace_v2(handle: cublasHandle_t, at: *mut c_void, bytes: usize) [] |gpu| {
        gpu.product(handle)?.workspace = (at as u64, bytes);
        if !(at as usize).is_multiple_of(256) {
            gpu.violation("cublasSetWorkspace with an address that is no multiple of 256");
        }
        if gpu.must_be_memory(at as u64, bytes, "cuBLAS's workspace") { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cublasSetAtomicsMode(handle: cublasHandle_t, mode: cublasAtomicsMode_t) [] |gpu| {
        if mode != cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED {
            gpu.violation("cublasSetAtomicsMode to one whose sums differ from run to run");
        }
        gpu.product(handle).map(drop)
    }
    fn cublasSetMathMode(handle: cublasHandle_t, mode: cublasMath_t) [] |gpu| {
        if mode != cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION {
            gpu.violation("cublasSetMathMode to one that adds parts of sums in less than single precision");
        }
        gpu.product(handle).map(drop)
    }
    fn cublasGemmEx_64(
        handle: cublasHandle_t, ta: cublasOperation_t, tb: cublasOperation_t, m: i64, n: i64, k: i64,
        alpha: *const c_void, a: *const c_void, at: cudaDataType, lda: i64, b: *const c_void, bt: cudaDataType, ldb: i64,
        beta: *const c_void, c: *mut c_void, ct: cudaDataType, ldc: i64, compute: cublasComputeType_t,
        algorithm: cublasGemmAlgo_t,
    ) [] |gpu| {
        let factors = unsafe { [alpha.cast::<f32>().read(), beta.cast::<f32>().read()] };
        let blobs = [(a as u64, at, lda, 0), (b as u64, bt, ldb, 0), (c as u64, ct, ldc, 0)];
        gpu.multiply(handle, [ta, tb], [m, n, k], factors, blobs, 1, (compute, algorithm))
    }
    fn cublasGemmStridedBatchedEx_64(
        handle: cublasHandle_t, ta: cublasOperation_t, tb: cublasOperation_t, m: i64, n: i64, k: i64,
        alpha: *const c_void, a: *const c_void, at: cudaDataType, lda: i64, sa: i64, b: *const c_void, bt: cudaDataType,
        ldb: i64, sb: i64, beta: *const c_void, c: *mut c_void, ct: cudaDataType, ldc: i64, sc: i64, batch: i64,
        compute: cublasComputeType_t, algorithm: cublasGemmAlgo_t,
    ) [] |gpu| {
        let factors = unsafe { [alpha.cast::<f32>().read(), beta.cast::<f32>().read()] };
        let blobs = [(a as u64, at, lda, sa), (b as u64, bt, ldb, sb), (c as u64, ct, ldc, sc)];
        gpu.multiply(handle, [ta, tb], [m, n, k], factors, blobs, batch, (compute, algorithm))
    }
}

/// A matrix as it is given: its address, the type of its elements, elements from one column to the next and from one matrix
/// of a batch to the next.
type Given = (u64, cudaDataType, i64, i64);

/// A matrix, column by column.
#[derive(Clone, Copy)]
struct Matrix {
    at: u64,
    element: Element,
    /// Elements from one column to the next.
    ld: usize,
    /// Elements to the next matrix of a batch.
    stride: usize,
    /// Elements from the first to the last.
    length: usize,
}

impl Matrix {
    fn new((at, of, ld, stride): Given, rows: usize, columns: usize) -> Result<Matrix, Refusal> {
        let (ld, stride) = (size(ld)?, size(stride)?);
        if ld < rows.max(1) {
            return Err(INVALID_VALUE);
        }
        let length = if rows * columns == 0 { 0 } else { (columns - 1) * ld + rows };
        Ok(Matrix { at, element: element(of).ok_or(NOT_SUPPORTED)?, ld, stride, length })
    }

    /// One of a batch.
    fn of_batch(self, i: usize) -> Matrix {
        Matrix { at: self.at + (i * self.stride * self.element.bytes()) as u64, ..self }
    }

    fn format(&self) -> Format {
        Format { element: self.element, ..Format::PLAIN }
    }

    /// # Safety
    /// It is memory of the device.
    unsafe fn values(&self) -> Vec<f32> {
        // SAFETY: the caller's promise.
        unsafe { read(self.at, self.length, self.format(), &Shape::from([self.length])) }
    }
}

fn size(value: i64) -> Result<usize, Refusal> {
    usize::try_from(value).map_err(|_| INVALID_VALUE)
}

fn element(of: cudaDataType) -> Option<Element> {
    match of {
        cudaDataType::CUDA_R_32F => Some(Element::F32),
        cudaDataType::CUDA_R_16BF => Some(Element::Bf16),
        _ => None,
    }
}

impl Gpu {
    fn product(&mut self, handle: cublasHandle_t) -> Result<&mut BlasHandle, Refusal> {
        self.products.get_mut(&(handle as usize)).ok_or(NOT_INITIALIZED)
    }

    /// C ← α · op(A) · op(B) + β · C, column by column: op(A) m × k, op(B) k × n.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &mut self,
        handle: cublasHandle_t,
        ops: [cublasOperation_t; 2],
        extents: [i64; 3],
        [alpha, beta]: [f32; 2],
        matrices: [Given; 3],
        batch: i64,
        (compute, algorithm): (cublasComputeType_t, cublasGemmAlgo_t),
    ) -> Result<(), Refusal> {
        let BlasHandle { stream, workspace } = *self.product(handle)?;
        if workspace.1 == 0 {
            self.violation("a product without a workspace of ours: cuBLAS takes one of its own, which is not recorded");
        }
        let transposed = |op: cublasOperation_t| match op {
            cublasOperation_t::CUBLAS_OP_N => Ok(false),
            cublasOperation_t::CUBLAS_OP_T => Ok(true),
            _ => Err(NOT_SUPPORTED),
        };
        let [ta, tb] = [transposed(ops[0])?, transposed(ops[1])?];
        let ([m, n, k], batch) = ([size(extents[0])?, size(extents[1])?, size(extents[2])?], size(batch)?);
        let turned = |t: bool, rows: usize, columns: usize| if t { (columns, rows) } else { (rows, columns) };
        let ((rows_a, columns_a), (rows_b, columns_b)) = (turned(ta, m, k), turned(tb, k, n));
        let a = Matrix::new(matrices[0], rows_a, columns_a)?;
        let b = Matrix::new(matrices[1], rows_b, columns_b)?;
        let c = Matrix::new(matrices[2], m, n)?;
        let short = match compute {
            cublasComputeType_t::CUBLAS_COMPUTE_32F => false,
            cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32 => true,
            _ => return Err(NOT_SUPPORTED),
        };
        let narrow = a.element == Element::Bf16;
        let known = a.element == b.element && (narrow || c.element == Element::F32) && !(short && narrow);
        if !known || algorithm != cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT {
            return Err(NOT_SUPPORTED);
        }
        self.counted().products += 1;
        let dry = self.settings.dry;
        let work = move |gpu: &mut Gpu| {
            for i in 0..batch {
                let all = [a, b, c].map(|matrix| matrix.of_batch(i));
                for (matrix, name) in all.iter().zip(["A", "B", "C"]) {
                    let bytes = matrix.length * matrix.element.bytes();
                    if !gpu.must_be_memory(matrix.at, bytes, &format!("{name} of a product")) {
                        return;
                    }
                }
                if dry || m * n == 0 {
                    continue;
                }
                // SAFETY: checked above.
                let [mut va, mut vb, mut vc] = all.map(|matrix| unsafe { matrix.values() });
                if short {
                    va.iter_mut().chain(&mut vb).for_each(|v| *v = rounded_to_tf32(*v));
                }
                // Read row by row, what is stored column by column is its transpose: Cᵀ = op(B)ᵀ · op(A)ᵀ.
                let left = MatRef::with_stride(&vb, columns_b, rows_b, b.ld).t_if(tb);
                let right = MatRef::with_stride(&va, columns_a, rows_a, a.ld).t_if(ta);
                Gemm { alpha, a: left, b: right, beta, c: MatMut::with_stride(&mut vc, n, m, c.ld) }.run();
                let bytes = c.format().encode(&Shape::from([vc.len()]), &vc);
                // SAFETY: checked above.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), all[2].at as *mut u8, bytes.len()) };
            }
            if gpu.must_be_memory(workspace.0, workspace.1, "cuBLAS's workspace") && !dry {
                // A library may write anything there.
                // SAFETY: checked above.
                unsafe { (workspace.0 as *mut u8).write_bytes(0xff, workspace.1.min(4096)) };
            }
        };
        self.put(stream, "product", work)
    }
}
