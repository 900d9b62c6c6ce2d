// MVN: rows less their mean, divided by their deviation. A block for each row.

// y = (x - mean) / (deviation + eps), of which the reciprocal goes to `scales` unless that is null; without
// `normalize`, x - mean. y may be x.
template <typename T>
DEVICE void mvn_forward_of(T* y, float* scales, const T* x, u32 normalize, float eps, u32 width, float* exchange) {
    const i64 base = (i64)blockIdx.x * width;
    float sum = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[base + i];
    const float mean = block_reduce<Sum>(sum, exchange) / width;
    float scale = 1;
    if (normalize) {
        float squares = 0;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            const float d = x[base + i] - mean;
            squares += d * d;
        }
        const float deviation = sqrtf(block_reduce<Sum>(squares, exchange) / width) + eps;
        scale = deviation > 0 ? 1 / deviation : 0;
        if (scales && threadIdx.x == 0) scales[blockIdx.x] = scale;
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[base + i] = (x[base + i] - mean) * scale;
}
KERNELS_ADDING(mvn_forward,
    (T* y, float* scales, const T* x, u32 normalize, float eps, u32 width),
    (y, scales, x, normalize, eps, width, exchange))

// dx = (dy - mean dy - y * mean (dy y)) * scale; without y and scales, dy - mean dy. dx may be dy.
template <typename T>
DEVICE void mvn_backward_of(T* dx, const T* dy, const T* y, const float* scales, u32 width, float* exchange) {
    const i64 base = (i64)blockIdx.x * width;
    float sum = 0, products = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float d = dy[base + i];
        sum += d;
        if (y) products += d * y[base + i];
    }
    const float mean = block_reduce<Sum>(sum, exchange) / width;
    const float along = y ? block_reduce<Sum>(products, exchange) / width : 0;
    const float scale = scales ? scales[blockIdx.x] : 1;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float d = dy[base + i] - mean;
        dx[base + i] = (y ? d - y[base + i] * along : d) * scale;
    }
}
KERNELS_ADDING(mvn_backward,
    (T* dx, const T* dy, const T* y, const float* scales, u32 width),
    (dx, dy, y, scales, width, exchange))
