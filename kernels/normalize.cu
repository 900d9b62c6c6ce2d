// Normalize: u = x / norm, y = s u. A norm is that of an item, of which a block goes along, or of a position's channels, of
// which a thread does. `inverse` gets 1 / norm; it and u may be null. s has one scale, or one for each channel.

DEVICE float scale_of(const float* s, u32 shared, u32 channel) { return s[shared ? 0 : channel]; }

template <typename T>
DEVICE void normalize_items_of(
    T* y, T* u, float* inverse, const T* x, const float* s, u32 shared, float eps, u32 outer, u32 channels, u32 inner,
    float* exchange
) {
    const u32 width = channels * inner;
    const i64 base = (i64)blockIdx.x * width;
    float sum = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = x[base + i];
        sum += v * v;
    }
    const float factor = 1 / sqrtf(block_reduce<Sum>(sum, exchange) + eps);
    if (inverse && threadIdx.x == 0) inverse[blockIdx.x] = factor;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = x[base + i] * factor;
        if (u) u[base + i] = v;
        y[base + i] = scale_of(s, shared, i / inner) * v;
    }
}
KERNELS_ADDING(normalize_items,
    (T* y, T* u, float* inverse, const T* x, const float* s, u32 shared, float eps, u32 outer, u32 channels, u32 inner),
    (y, u, inverse, x, s, shared, eps, outer, channels, inner, exchange))

// dx = (g - u * the sum of g u) / norm, with g = s dy.
template <typename T>
DEVICE void normalize_items_backward_of(
    T* dx, const T* dy, const T* u, const float* inverse, const float* s, u32 shared, u32 outer, u32 channels, u32 inner,
    float* exchange
) {
    const u32 width = channels * inner;
    const i64 base = (i64)blockIdx.x * width;
    float sum = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        sum += scale_of(s, shared, i / inner) * dy[base + i] * u[base + i];
    }
    sum = block_reduce<Sum>(sum, exchange);
    const float factor = inverse[blockIdx.x];
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        dx[base + i] = (scale_of(s, shared, i / inner) * dy[base + i] - u[base + i] * sum) * factor;
    }
}
KERNELS_ADDING(normalize_items_backward,
    (T* dx, const T* dy, const T* u, const float* inverse, const float* s, u32 shared, u32 outer, u32 channels, u32 inner),
    (dx, dy, u, inverse, s, shared, outer, channels, inner, exchange))

template <typename T>
DEVICE void normalize_positions_of(
    T* y, T* u, float* inverse, const T* x, const float* s, u32 shared, float eps, u32 outer, u32 channels, u32 inner
) {
    FOR_ELEMENTS(p, (i64)outer * inner) {
        const i64 item = p / inner, base = item * channels * inner + (p - item * inner);
        float sum = 0;
#pragma unroll 4
        for (u32 c = 0; c < channels; ++c) {
            const float v = x[base + (i64)c * inner];
            sum += v * v;
        }
        const float factor = 1 / sqrtf(sum + eps);
        if (inverse) inverse[p] = factor;
        for (u32 c = 0; c < channels; ++c) {
            const i64 at = base + (i64)c * inner;
            const float v = x[at] * factor;
            if (u) u[at] = v;
            y[at] = scale_of(s, shared, c) * v;
        }
    }
}
KERNELS(normalize_positions,
    (T* y, T* u, float* inverse, const T* x, const float* s, u32 shared, float eps, u32 outer, u32 channels, u32 inner),
    (y, u, inverse, x, s, shared, eps, outer, channels, inner))

template <typename T>
DEVICE void normalize_positions_backward_of(
    T* dx, const T* dy, const T* u, const float* inverse, const float* s, u32 shared, u32 outer, u32 channels, u32 inner
) {
    FOR_ELEMENTS(p, (i64)outer * inner) {
        const i64 item = p / inner, base = item * channels * inner + (p - item * inner);
        float sum = 0;
#pragma unroll 4
        for (u32 c = 0; c < channels; ++c) {
            const i64 at = base + (i64)c * inner;
            sum += scale_of(s, shared, c) * dy[at] * u[at];
        }
        const float factor = inverse[p];
        for (u32 c = 0; c < channels; ++c) {
            const i64 at = base + (i64)c * inner;
            dx[at] = (scale_of(s, shared, c) * dy[at] - u[at] * sum) * factor;
        }
    }
}
KERNELS(normalize_positions_backward,
    (T* dx, const T* dy, const T* u, const float* inverse, const float* s, u32 shared, u32 outer, u32 channels, u32 inner),
    (dx, dy, u, inverse, s, shared, outer, channels, inner))
