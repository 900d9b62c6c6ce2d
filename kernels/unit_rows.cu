// Weights of unit length, and angular margins of them.

// A warp for each row, over its length. `to` may be `from`.
KERNEL(unit_rows)(float* to, const float* from, u32 rows, u32 width, float eps) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = blockIdx.x * warps + threadIdx.x / WARP; i < rows; i += gridDim.x * warps) {
        float sum = 0;
        for (u32 k = lane; k < width; k += WARP) {
            const float w = from[(i64)i * width + k];
            sum += w * w;
        }
        const float scale = 1.0f / sqrtf(warp_reduce<Sum>(sum) + eps);
        for (u32 k = lane; k < width; k += WARP) to[(i64)i * width + k] = from[(i64)i * width + k] * scale;
    }
}

// MarginInnerProduct: of what is kept of each item (see angular_own), the factors of the gradient of its features, of unit
// length together. `shown` gets lambda unless it is null.
KERNEL(angular_unit)(float* kept, float* shown, const float* lambda, u32 items) {
    if (shown && blockIdx.x == 0 && threadIdx.x == 0) shown[0] = lambda[0];
    if (!kept) return;
    FOR_ELEMENTS(i, items) {
        float* keep = kept + 4 * i;
        const float all = 1.0f + lambda[0], cross = keep[1] * all - lambda[0], rest = keep[2] * all;
        const float length = sqrtf(cross * cross + rest * rest), unit = length > 0 ? 1.0f / length : 0.0f;
        keep[1] = (cross * unit + lambda[0]) / all;
        keep[2] = rest * unit / all;
    }
}

// NormFace's Normalize. A warp for each position: its channels over their norm, which goes to `kept` and `shown` where those are
// not null. y may be x.
KERNEL(unit_channels)(
    float* y, float* kept, float* shown, const float* x, float eps, u32 l1, u32 positions, u32 channels, u32 inner
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 p = blockIdx.x * warps + threadIdx.x / WARP; p < positions; p += gridDim.x * warps) {
        const i64 base = (i64)(p / inner) * channels * inner + p % inner;
        float sum = 0;
        for (u32 c = lane; c < channels; c += WARP) {
            const float v = x[base + (i64)c * inner];
            sum += l1 ? fabsf(v) : v * v;
        }
        sum = warp_reduce<Sum>(sum) + eps;
        const float norm = l1 ? sum : sqrtf(sum);
        for (u32 c = lane; c < channels; c += WARP) y[base + (i64)c * inner] = x[base + (i64)c * inner] / norm;
        if (lane == 0) {
            if (kept) kept[p] = norm;
            if (shown) shown[p] = norm;
        }
    }
}

KERNEL(unit_channels_backward)(
    float* dx, const float* dy, const float* y, const float* norms, const float* d_norm, u32 l1, u32 positions,
    u32 channels, u32 inner
) {
    const u32 warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    for (u32 p = blockIdx.x * warps + threadIdx.x / WARP; p < positions; p += gridDim.x * warps) {
        const i64 base = (i64)(p / inner) * channels * inner + p % inner;
        float along = 0;
        for (u32 c = lane; c < channels; c += WARP) along += dy[base + (i64)c * inner] * y[base + (i64)c * inner];
        along = warp_reduce<Sum>(along);
        const float norm = norms[p], of_norm = d_norm ? d_norm[p] : 0.0f;
        for (u32 c = lane; c < channels; c += WARP) {
            const i64 i = base + (i64)c * inner;
            const float v = y[i], u = !l1 ? v : v > 0 ? 1.0f : v < 0 ? -1.0f : 0.0f;
            dx[i] = (dy[i] - u * along) / norm + of_norm * u;
        }
    }
}
