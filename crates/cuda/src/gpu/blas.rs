//! Matrix products by cuBLAS.

use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{DevicePtr, Element, Error, Gemm, Result};

use crate::gpu::api::cublas::cublasOperation_t::{self, CUBLAS_OP_N, CUBLAS_OP_T};
use crate::gpu::api::cublas::{
    cublasAtomicsMode_t, cublasComputeType_t, cublasContext, cublasGemmAlgo_t, cublasMath_t, cudaDataType,
};
use crate::gpu::api::{CublasApi, Handle};
use crate::gpu::context::{Context, Stream};
use crate::{Precision, Version};

/// Bytes of workspace that cuBLAS gets: what NVIDIA recommends, 32 MiB from sm_90 on and 4 MiB before, kept fixed so that
/// neither the results nor recorded work depend on what else runs.
fn workspace_bytes(capability: (u32, u32)) -> usize {
    if capability.0 >= 9 { 32 << 20 } else { 4 << 20 }
}

pub(crate) struct Blas {
    context: Arc<Context>,
    api: CublasApi,
    // cuBLAS wants one caller of a handle at a time.
    handle: Mutex<Handle<cublasContext>>,
    precision: Precision,
}

impl Blas {
    pub(crate) fn new(context: &Arc<Context>, api: CublasApi, precision: Precision) -> Result<Blas> {
        context.make_current()?;
        let blas = Blas { context: context.clone(), api, handle: Mutex::new(Handle::NULL), precision };
        let mut handle = Handle::NULL;
        // SAFETY, of all calls: types are the header's, pointers and handles are live, the workspace is as long as said.
        unsafe {
            blas.check("cublasCreate", (blas.api.cublasCreate_v2)(&mut handle.0))?;
            *blas.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
            let stream = context.stream(Stream::Compute);
            blas.check("cublasSetStream", (blas.api.cublasSetStream_v2)(handle.0, stream))?;
            // After the stream: setting that one takes the workspace away.
            let bytes = workspace_bytes(context.gpu.capability);
            let at = context.alloc(bytes)?.0 as *mut c_void;
            blas.check("cublasSetWorkspace", (blas.api.cublasSetWorkspace_v2)(handle.0, at, bytes))?;
            let status = (blas.api.cublasSetAtomicsMode)(handle.0, cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED);
            blas.check("cublasSetAtomicsMode", status)?;
            // Parts of long sums, too, are added up in single precision, whatever the result is stored as.
            let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            blas.check("cublasSetMathMode", (blas.api.cublasSetMathMode)(handle.0, mode))?;
        }
        Ok(blas)
    }

    pub(crate) fn version(&self) -> Version {
        self.api.found.version
    }

    pub(crate) fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let product = ColumnMajor::of(gemm)?;
        if product.m == 0 || product.n == 0 || product.batch == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let ColumnMajor { ops: [op_a, op_b], m, n, k, a, b, c, batch } = product;
        let compute = compute_type(self.precision, gemm);
        let (alpha, beta): (*const f32, *const f32) = (&gemm.alpha, &gemm.beta);
        let (alpha, beta) = (alpha.cast::<c_void>(), beta.cast::<c_void>());
        let (factor, result, any) =
            (data_type(gemm.factors), data_type(gemm.result), cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT);
        // SAFETY: the factors live through the call; the matrices are the caller's, of the extents given.
        let (call, status) = unsafe {
            if batch == 1 {
                let run = self.api.cublasGemmEx_64;
                let status = run(
                    handle.0,
                    op_a,
                    op_b,
                    m,
                    n,
                    k,
                    alpha,
                    a.at(),
                    factor,
                    a.rows,
                    b.at(),
                    factor,
                    b.rows,
                    beta,
                    c.at().cast_mut(),
                    result,
                    c.rows,
                    compute,
                    any,
                );
                ("cublasGemmEx", status)
            } else {
                let run = self.api.cublasGemmStridedBatchedEx_64;
                let status = run(
                    handle.0,
                    op_a,
                    op_b,
                    m,
                    n,
                    k,
                    alpha,
                    a.at(),
                    factor,
                    a.rows,
                    a.stride,
                    b.at(),
                    factor,
                    b.rows,
                    b.stride,
                    beta,
                    c.at().cast_mut(),
                    result,
                    c.rows,
                    c.stride,
                    batch,
                    compute,
                    any,
                );
                ("cublasGemmStridedBatchedEx", status)
            }
        };
        self.check(call, status).map_err(|error| error.while_doing(format_args!("matrix multiplication {gemm:?}")))
    }

    fn check(&self, call: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: cuBLAS gives static texts for every number.
        let text = |get: unsafe extern "C" fn(c_int) -> *const std::ffi::c_char| unsafe {
            let text = get(status);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        let (name, meaning) = (text(self.api.cublasGetStatusName), text(self.api.cublasGetStatusString));
        let (file, version) = (self.api.found.path.display(), self.version());
        Err(Error::device(format!("cuBLAS {version} ({file}): {call} failed: {name} ({status}: {meaning})")))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let handle = *self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if !handle.is_null() && self.context.make_current().is_ok() {
            // SAFETY: the handle is alive and not used again.
            unsafe { (self.api.cublasDestroy_v2)(handle.0) };
        }
    }
}

fn data_type(element: Element) -> cudaDataType {
    match element {
        Element::F32 => cudaDataType::CUDA_R_32F,
        Element::Bf16 => cudaDataType::CUDA_R_16BF,
    }
}

fn compute_type(precision: Precision, gemm: &Gemm) -> cublasComputeType_t {
    match precision.shortens(gemm) {
        true => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => cublasComputeType_t::CUBLAS_COMPUTE_32F,
    }
}

/// A matrix of a column-major product.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Operand {
    first: DevicePtr,
    /// Elements between columns: what BLAS calls the leading dimension.
    rows: i64,
    /// Elements to the next matrix of a batch.
    stride: i64,
}

impl Operand {
    fn at(&self) -> *const c_void {
        self.first.0 as *const c_void
    }
}

/// A product as cuBLAS wants it, column by column. The transpose of a row-major matrix is the same memory read
/// column-major, so Cᵀ = op(B)ᵀ · op(A)ᵀ gives C: the operands change places, and so do rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ColumnMajor {
    ops: [cublasOperation_t; 2],
    m: i64,
    n: i64,
    k: i64,
    a: Operand,
    b: Operand,
    c: Operand,
    batch: i64,
}

impl ColumnMajor {
    fn of(gemm: &Gemm) -> Result<Self> {
        let long = |value: usize| {
            i64::try_from(value)
                .map_err(|_| Error::internal(format!("matrix product {gemm:?}: an extent is too large")))
        };
        let op = |transposed| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let (batch, strides) = gemm.batch;
        let operand = |first, rows: usize, stride| {
            // cuBLAS refuses 0 even where nothing is read.
            Ok::<_, Error>(Operand { first, rows: long(rows.max(1))?, stride: long(stride)? })
        };
        Ok(ColumnMajor {
            ops: [op(gemm.trans_b), op(gemm.trans_a)],
            m: long(gemm.n)?,
            n: long(gemm.m)?,
            k: long(gemm.k)?,
            a: operand(gemm.b, gemm.ldb, strides[1])?,
            b: operand(gemm.a, gemm.lda, strides[0])?,
            c: operand(gemm.c, gemm.ldc, strides[2])?,
            batch: long(batch)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cuBLAS computes, by its documentation; addresses are indices into one array.
    fn column_major(p: &ColumnMajor, alpha: f32, beta: f32, memory: &mut [f32]) {
        for i in 0..p.batch {
            let at =
                |o: &Operand, row: i64, column: i64| (o.first.0 as i64 + i * o.stride + row + column * o.rows) as usize;
            let [op_a, op_b] = p.ops;
            for (row, column) in (0..p.m).flat_map(|r| (0..p.n).map(move |c| (r, c))) {
                let mut sum = 0.0;
                for k in 0..p.k {
                    let a = if op_a == CUBLAS_OP_N { at(&p.a, row, k) } else { at(&p.a, k, row) };
                    let b = if op_b == CUBLAS_OP_N { at(&p.b, k, column) } else { at(&p.b, column, k) };
                    sum += memory[a] * memory[b];
                }
                let c = at(&p.c, row, column);
                memory[c] = alpha * sum + if beta == 0.0 { 0.0 } else { beta * memory[c] };
            }
        }
    }

    /// What [`Gemm`] says.
    fn row_major(g: &Gemm, memory: &mut [f32]) {
        let (batch, [sa, sb, sc]) = g.batch;
        for i in 0..batch {
            for (row, column) in (0..g.m).flat_map(|r| (0..g.n).map(move |c| (r, c))) {
                let a = |k| if g.trans_a { k * g.lda + row } else { row * g.lda + k };
                let b = |k| if g.trans_b { column * g.ldb + k } else { k * g.ldb + column };
                let (a0, b0) = (g.a.0 as usize + i * sa, g.b.0 as usize + i * sb);
                let sum: f32 = (0..g.k).map(|k| memory[a0 + a(k)] * memory[b0 + b(k)]).sum();
                let c = g.c.0 as usize + i * sc + row * g.ldc + column;
                memory[c] = g.alpha * sum + if g.beta == 0.0 { 0.0 } else { g.beta * memory[c] };
            }
        }
    }

    #[test]
    fn swapped_operands_give_the_row_major_product() {
        let sizes = [1, 2, 3, 5];
        for (m, n, k) in sizes.iter().flat_map(|m| sizes.iter().flat_map(move |n| sizes.map(|k| (*m, *n, k)))) {
            for bits in 0..16 {
                let (trans_a, trans_b) = (bits & 1 != 0, bits & 2 != 0);
                let (batch, gap) = (1 + 2 * (bits >> 2 & 1), bits >> 3);
                let (rows_a, lda) = if trans_a { (k, m + gap) } else { (m, k + gap) };
                let (rows_b, ldb) = if trans_b { (n, k + 2 * gap) } else { (k, n + 2 * gap) };
                let ldc = n + 3 * gap;
                let strides = [rows_a * lda + gap, rows_b * ldb + gap, m * ldc + gap];
                let (b, c) = (batch * strides[0], batch * (strides[0] + strides[1]));
                let gemm = Gemm {
                    trans_a,
                    trans_b,
                    m,
                    n,
                    k,
                    lda,
                    ldb,
                    ldc,
                    alpha: 2.0,
                    beta: gap as f32 * 0.5,
                    a: DevicePtr(0),
                    b: DevicePtr(b as u64),
                    c: DevicePtr(c as u64),
                    batch: (batch, strides),
                    exact: false,
                    factors: Element::F32,
                    result: Element::F32,
                };
                let mut memory: Vec<f32> = (0..c + batch * strides[2]).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
                let mut expected = memory.clone();
                row_major(&gemm, &mut expected);
                let product = ColumnMajor::of(&gemm).unwrap();
                // What cuBLAS asks of leading dimensions.
                let least = |op, normal, transposed| if op == CUBLAS_OP_N { normal } else { transposed };
                assert!(product.a.rows >= least(product.ops[0], product.m, product.k));
                assert!(product.b.rows >= least(product.ops[1], product.k, product.n));
                assert!(product.c.rows >= product.m);
                column_major(&product, gemm.alpha, gemm.beta, &mut memory);
                assert_eq!(memory, expected, "{gemm:?}");
            }
        }
    }

    #[test]
    fn exact_products_are_never_shortened() {
        let gemm = |exact, factors| Gemm {
            trans_a: false,
            trans_b: false,
            m: 1 << 10,
            n: 1 << 10,
            k: 128,
            alpha: 1.0,
            a: DevicePtr(0),
            lda: 1,
            b: DevicePtr(0),
            ldb: 1,
            beta: 0.0,
            c: DevicePtr(0),
            ldc: 1,
            batch: (1, [0; 3]),
            exact,
            factors,
            result: Element::F32,
        };
        use cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        let (f32, bf16) = (Element::F32, Element::Bf16);
        for precision in [Precision::Tf32, Precision::Bf16] {
            assert_eq!(compute_type(precision, &gemm(false, f32)), CUBLAS_COMPUTE_32F_FAST_TF32);
            assert_eq!(compute_type(precision, &gemm(true, f32)), CUBLAS_COMPUTE_32F);
            assert_eq!(compute_type(precision, &Gemm { k: 127, ..gemm(false, f32) }), CUBLAS_COMPUTE_32F);
            assert_eq!(compute_type(precision, &gemm(false, bf16)), CUBLAS_COMPUTE_32F);
        }
        assert_eq!(compute_type(Precision::Fp32, &gemm(false, f32)), CUBLAS_COMPUTE_32F);
    }
}
