// Sums and extremes of rows: Reduction, EuclideanLoss.

// What is summed; any other number: squares.
const int SUM = 0, ABSOLUTE = 1;

// A block for each row (in x) and each of its parts (in y). Sums of (x - b), of its absolute value or of its square; b is 0
// where null.
KERNEL(reduction_partials)(float* partial, const float* x, const float* b, int operation, i64 width) {
    __shared__ float exchange[32];
    const i64 len = (width + gridDim.y - 1) / gridDim.y, start = blockIdx.y * len;
    const i64 end = start + len < width ? start + len : width, base = blockIdx.x * width;
    float sum = 0;
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        const float v = b ? x[base + i] - b[base + i] : x[base + i];
        sum += operation == SUM ? v : operation == ABSOLUTE ? fabsf(v) : v * v;
    }
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == 0) partial[(i64)blockIdx.x * gridDim.y + blockIdx.y] = sum;
}

// y = coeff * the parts' sum.
KERNEL(reduction_finish)(float* y, const float* partial, u32 parts, float coeff, u32 rows) {
    FOR_ELEMENTS(row, rows) {
        double sum = 0;
        for (u32 k = 0; k < parts; ++k) sum += partial[row * parts + k];
        y[row] = (float)((double)coeff * sum);
    }
}

// dx = d, d sign x or 2 d x, with d = coeff * dy of the row.
KERNEL(reduction_backward)(float* dx, const float* dy, const float* x, int operation, float coeff, u32 rows, u32 width) {
    FOR_ROWS(row, rows) {
        const float d = coeff * dy[row];
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const float v = operation == SUM ? 1.0f : x[at];
            const float sign = v > 0 ? 1.0f : v < 0 ? -1.0f : v;
            dx[at] = operation == SUM ? d : operation == ABSOLUTE ? d * sign : 2.0f * d * v;
        }
    }
}

// Whether value a at i is more extreme than b at j; what is not a number is most so, and of equals the first.
DEVICE bool beats(float a, i64 i, float b, i64 j, u32 largest) {
    const bool a_nan = a != a, b_nan = b != b;
    if (a_nan || b_nan) return a_nan && (!b_nan || i < j);
    return a == b ? i < j : largest ? a > b : a < b;
}

// A block for each row: coeff * its extreme, and where that is (unless `index` is null). No row is empty.
KERNEL(reduction_extreme)(float* y, u32* index, const float* x, u32 largest, float coeff, u32 width) {
    __shared__ float values[32];
    __shared__ u32 places[32];
    const i64 base = (i64)blockIdx.x * width;
    // A thread without elements takes the first: it changes nothing.
    u32 place = threadIdx.x < width ? threadIdx.x : 0;
    float best = x[base + place];
    for (u32 i = threadIdx.x + blockDim.x; i < width; i += blockDim.x) {
        const float v = x[base + i];
        if (beats(v, i, best, place, largest)) best = v, place = i;
    }
    for (int apart = 16; apart > 0; apart >>= 1) {
        const float v = __shfl_xor_sync(ALL_LANES, best, apart);
        const u32 i = __shfl_xor_sync(ALL_LANES, place, apart);
        if (beats(v, i, best, place, largest)) best = v, place = i;
    }
    if (threadIdx.x % WARP == 0) {
        values[threadIdx.x / WARP] = best;
        places[threadIdx.x / WARP] = place;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 w = 1; w < blockDim.x / WARP; ++w) {
        if (beats(values[w], places[w], best, place, largest)) best = values[w], place = places[w];
    }
    y[blockIdx.x] = coeff * best;
    if (index) index[blockIdx.x] = place;
}

KERNEL(reduction_extreme_backward)(float* dx, const float* dy, const u32* index, float coeff, u32 rows, u32 width) {
    FOR_ROWS(row, rows) {
        const u32 place = index[row];
        const float d = coeff * dy[row];
        FOR_POSITIONS(i, width) dx[(i64)row * width + i] = i == place ? d : 0.0f;
    }
}

// da = dL / items (a - b), or minus that with `sign` -1.
KERNEL(euclidean_backward)(float* d, const float* a, const float* b, const float* d_loss, float items, float sign, i64 n) {
    const float scale = sign * (d_loss[0] / items);
    map2(d, a, b, n, [=](float u, float v) { return scale * (u - v); });
}
