// From one format of a blob to another: the type of elements, and whether channels come first or last.

template <typename To, typename From> DEVICE void cast(To* y, const From* x, u32 add, i64 n) {
    const u32 size = 8;
    const i64 packs = aligned(y) && aligned(x) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<From, size> v;
        Pack<To, size> w;
        v.read(x + size * q);
        if (add) w.read(y + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) w.v[k] = add ? w.v[k] + v.v[k] : v.v[k];
        w.write(y + size * q);
    }
    FOR_ELEMENTS(r, n - size * packs) {
        const i64 i = size * packs + r;
        y[i] = add ? (float)y[i] + (float)x[i] : (float)x[i];
    }
}

// y = x, or y += x.
KERNEL(format_narrow)(bf16* y, const float* x, u32 add, i64 n) { cast(y, x, add, n); }
KERNEL(format_widen)(float* y, const bf16* x, u32 add, i64 n) { cast(y, x, add, n); }

// The transposes of matrices of rows x columns: y = or += those. A block of 32 x 8 threads takes a square of 32 x 32,
// so that neighbours read and write neighbouring elements, and a thread four of its rows; squares in x, matrices in y.
// All four are on their way before the first is looked at: of a square at the edge, what lies outside is read as what is
// last inside.
template <typename To, typename From>
DEVICE void transpose(To* y, const From* x, u32 add, u32 matrices, u32 rows, u32 columns, float* square) {
    const u32 across = (columns + 31) / 32, square_row = blockIdx.x / across;
    const u32 top = square_row * 32, left = (blockIdx.x - square_row * across) * 32;
    const u32 row = top + threadIdx.y, column = left + threadIdx.x;       // of the first it reads
    const u32 to_row = left + threadIdx.y, to_column = top + threadIdx.x; // of the first it writes
    const bool whole = top + 32 <= rows && left + 32 <= columns;
    float* put = square + threadIdx.y * 33 + threadIdx.x;
    const float* take = square + threadIdx.x * 33 + threadIdx.y;
    for (u32 m = blockIdx.y; m < matrices; m += gridDim.y) {
        const From* from = x + (i64)m * rows * columns;
        To* to = y + (i64)m * rows * columns + ((i64)to_row * rows + to_column);
        From v[4];
        if (whole) {
            from += (i64)row * columns + column;
#pragma unroll
            for (u32 s = 0; s < 4; ++s) v[s] = from[(i64)(8 * s) * columns];
        } else {
            from += column < columns ? column : columns - 1;
#pragma unroll
            for (u32 s = 0; s < 4; ++s) v[s] = from[(i64)(row + 8 * s < rows ? row + 8 * s : rows - 1) * columns];
        }
#pragma unroll
        for (u32 s = 0; s < 4; ++s) put[8 * s * 33] = v[s];
        __syncthreads();
        if (whole && !add) {
#pragma unroll
            for (u32 s = 0; s < 4; ++s) to[(i64)(8 * s) * rows] = take[8 * s];
        } else if (to_column < rows) {
            To old[4];
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                if (add && to_row + 8 * s < columns) old[s] = to[(i64)(8 * s) * rows];
            }
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                if (to_row + 8 * s >= columns) continue;
                to[(i64)(8 * s) * rows] = add ? (float)old[s] + take[8 * s] : take[8 * s];
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
