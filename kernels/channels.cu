// Layers that treat a channel's elements alike: Scale, Bias, PReLU, and the bias of products. See CHANNEL for `channels`.

// y = x s + b, then max(y, 0) with `relu`; without b where it is null, without s where that is. y may be x.
template <typename T>
DEVICE void channels_affine_of(
    T* y, const T* x, const float* s, const float* b, u32 relu, u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            float v = x[at];
            if (s) v *= s[c];
            if (b) v += b[c];
            y[at] = relu && v < 0 ? 0.0f : v;
        }
    }
}
KERNELS(channels_affine, channels_affine_bf16,
    (T* y, const T* x, const float* s, const float* b, u32 relu, u32 rows, u32 width, u32 channels),
    (y, x, s, b, relu, rows, width, channels))

// Sums of dy x (where x is not null) and of dy.
template <typename T>
DEVICE void channels_partials_of(float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner, float*
    exchange) {
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32, float* sums) {
        const float d = dy[i];
        sums[0] += x ? d * x[i] : 0.0f;
        sums[1] += d;
    });
}
KERNELS_ADDING(channels_partials, channels_partials_bf16,
    (float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, dy, x, outer, channels, inner, exchange))

// ds and db (where not null) take up the sums: added to with `add`, else overwritten.
KERNEL(channels_finish)(float* ds, float* db, const float* partial, u32 chunks, u32 channels, u32 add) {
    FOR_ELEMENTS(c, channels) {
        if (ds) ds[c] = (add ? ds[c] : 0.0f) + channel_sum(partial, chunks, channels, (u32)c, 0);
        if (db) db[c] = (add ? db[c] : 0.0f) + channel_sum(partial, chunks, channels, (u32)c, 1);
    }
}

// `shared`: one slope for all channels.
template <typename T>
DEVICE void prelu_forward_of(T* y, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const float v = x[at];
            y[at] = v > 0 ? v : v * slopes[shared ? 0 : CHANNEL(row, i, channels)];
        }
    }
}
KERNELS(prelu_forward, prelu_forward_bf16,
    (T* y, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels),
    (y, x, slopes, shared, rows, width, channels))

// dx may be dy.
template <typename T>
DEVICE void prelu_backward_of(
    T* dx, const T* dy, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const float d = dy[at];
            dx[at] = x[at] > 0 ? d : d * slopes[shared ? 0 : CHANNEL(row, i, channels)];
        }
    }
}
KERNELS(prelu_backward, prelu_backward_bf16,
    (T* dx, const T* dy, const T* x, const float* slopes, u32 shared, u32 rows, u32 width, u32 channels),
    (dx, dy, x, slopes, shared, rows, width, channels))

template <typename T>
DEVICE void prelu_partials_of(float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner, float*
    exchange) {
    channel_partials<1>(partial, outer, channels, inner, exchange, [=](i64 i, u32, float* sums) {
        const float v = x[i];
        sums[0] += v > 0 ? 0.0f : dy[i] * v;
    });
}
KERNELS_ADDING(prelu_partials, prelu_partials_bf16,
    (float* partial, const T* dy, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, dy, x, outer, channels, inner, exchange))

// In one block. With `shared`, all channels add to one slope.
KERNEL(prelu_finish)(float* da, const float* partial, u32 chunks, u32 channels, u32 shared) {
    __shared__ float exchange[32];
    float all = 0;
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
        const float sum = channel_sum(partial, chunks, channels, c, 0);
        if (!shared) da[c] += sum;
        all += sum;
    }
    if (!shared) return;
    all = block_reduce<Sum>(all, exchange);
    if (threadIdx.x == 0) da[0] += all;
}

// Rows of `width` elements, from one distance apart to another: parts of a concatenation.
template <typename T>
DEVICE void channels_copy_of(T* to, const T* from, u32 rows, u32 width, i64 to_pitch, i64 from_pitch) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) to[row * to_pitch + i] = from[row * from_pitch + i];
    }
}
KERNELS(channels_copy, channels_copy_bf16,
    (T* to, const T* from, u32 rows, u32 width, i64 to_pitch, i64 from_pitch),
    (to, from, rows, width, to_pitch, from_pitch))
