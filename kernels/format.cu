// From one format of a blob to another: the type of elements, and whether channels come first or last.

template <typename To, typename From> DEVICE void cast(To* y, const From* x, u32 add, i64 n) {
    const bool whole = aligned(y) && aligned(x);
    FOR_ELEMENTS(q, (n + 3) / 4) {
        if (whole && 4 * q + 4 <= n) {
            Pack<From, 4> v;
            Pack<To, 4> w;
            v.read(x + 4 * q);
            if (add) w.read(y + 4 * q);
#pragma unroll
            for (int k = 0; k < 4; ++k) w.v[k] = add ? w.v[k] + v.v[k] : v.v[k];
            w.write(y + 4 * q);
            continue;
        }
        for (i64 i = 4 * q; i < n && i < 4 * q + 4; ++i) y[i] = add ? (float)y[i] + (float)x[i] : (float)x[i];
    }
}

// y = x, or y += x.
KERNEL(format_narrow)(bf16* y, const float* x, u32 add, i64 n) { cast(y, x, add, n); }
KERNEL(format_widen)(float* y, const bf16* x, u32 add, i64 n) { cast(y, x, add, n); }

// The transposes of matrices of rows x columns: y = or += those. A block of 32 x 8 threads takes a square of 32 x 32,
// so that neighbours read and write neighbouring elements; squares in x, matrices in y.
template <typename To, typename From>
DEVICE void transpose(To* y, const From* x, u32 add, u32 matrices, u32 rows, u32 columns, float* square) {
    const u32 across = (columns + 31) / 32;
    const u32 top = blockIdx.x / across * 32, left = blockIdx.x % across * 32;
    for (u32 m = blockIdx.y; m < matrices; m += gridDim.y) {
        const i64 base = (i64)m * rows * columns;
        for (u32 k = threadIdx.y; k < 32; k += blockDim.y) {
            const u32 row = top + k, column = left + threadIdx.x;
            if (row < rows && column < columns) square[k * 33 + threadIdx.x] = x[base + (i64)row * columns + column];
        }
        __syncthreads();
        for (u32 k = threadIdx.y; k < 32; k += blockDim.y) {
            const u32 column = left + k, row = top + threadIdx.x;
            if (row < rows && column < columns) {
                const i64 at = base + (i64)column * rows + row;
                const float v = square[threadIdx.x * 33 + k];
                y[at] = add ? (float)y[at] + v : v;
            }
        }
        __syncthreads();
    }
}

KERNEL(format_transpose)(float* y, const float* x, u32 add, u32 matrices, u32 rows, u32 columns) {
    __shared__ float square[32 * 33];
    transpose(y, x, add, matrices, rows, columns, square);
}
KERNEL(format_transpose_bf16)(bf16* y, const bf16* x, u32 add, u32 matrices, u32 rows, u32 columns) {
    __shared__ float square[32 * 33];
    transpose(y, x, add, matrices, rows, columns, square);
}
KERNEL(format_transpose_narrow)(bf16* y, const float* x, u32 add, u32 matrices, u32 rows, u32 columns) {
    __shared__ float square[32 * 33];
    transpose(y, x, add, matrices, rows, columns, square);
}
KERNEL(format_transpose_widen)(float* y, const bf16* x, u32 add, u32 matrices, u32 rows, u32 columns) {
    __shared__ float square[32 * 33];
    transpose(y, x, add, matrices, rows, columns, square);
}
