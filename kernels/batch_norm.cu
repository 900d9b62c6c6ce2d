// BatchNorm, and BatchNorm with Scale and ReLU in one. See CHANNEL for `channels`.

// The statistics take one read: sums of x - k and of (x - k)^2, with the channel's first value for k. A sample is never
// far from the mean, measured in deviations, so nothing cancels.
template <typename T>
DEVICE void bn_statistics_of(float* partial, const T* x, u32 outer, u32 channels, u32 inner, float* exchange) {
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32 c, float* sums) {
        const float v = x[i] - x[(i64)c * inner];
        sums[0] += v;
        sums[1] += v * v;
    });
}
KERNELS_ADDING(bn_statistics, bn_statistics_bf16,
    (float* partial, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, x, outer, channels, inner, exchange))

// Mean and 1/sqrt(variance + eps) of each channel, kept in saved memory too where there is any, and the running sums:
// each becomes what is new + keep * itself. `count` is the number of values of a channel.
template <typename T>
DEVICE void bn_statistics_finish_of(
    float* mean, float* inverse, float* kept_mean, float* kept_inverse, float* sum_mean, float* sum_variance,
    float* sum_weight, const float* partial, const T* x, u32 chunks, u32 channels, u32 inner, float count,
    float keep, float unbias, float eps
) {
    FOR_ELEMENTS(c, channels) {
        const float off = channel_sum(partial, chunks, channels, (u32)c, 0) / count;
        const float square = channel_sum(partial, chunks, channels, (u32)c, 1) / count;
        const float rest = square - off * off, m = x[c * inner] + off;
        const float variance = rest > 0 ? rest : rest <= 0 ? 0.0f : rest;
        const float inv = 1.0f / sqrtf(variance + eps);
        mean[c] = m;
        inverse[c] = inv;
        if (kept_mean) kept_mean[c] = m;
        if (kept_inverse) kept_inverse[c] = inv;
        sum_mean[c] = m + keep * sum_mean[c];
        sum_variance[c] = unbias * variance + keep * sum_variance[c];
        if (c == 0) sum_weight[0] = 1.0f + keep * sum_weight[0];
    }
}
KERNELS(bn_statistics_finish, bn_statistics_finish_bf16,
    (float* mean, float* inverse, float* kept_mean, float* kept_inverse, float* sum_mean, float* sum_variance,
     float* sum_weight, const float* partial, const T* x, u32 chunks, u32 channels, u32 inner, float count,
     float keep, float unbias, float eps),
    (mean, inverse, kept_mean, kept_inverse, sum_mean, sum_variance, sum_weight, partial, x, chunks, channels, inner,
     count, keep, unbias, eps))

// The same from the running sums.
KERNEL(bn_global)(
    float* mean, float* inverse, float* kept_mean, float* kept_inverse, const float* sum_mean,
    const float* sum_variance, const float* sum_weight, u32 channels, float eps
) {
    const float weight = sum_weight[0], unit = weight == 0 ? 0.0f : 1.0f / weight;
    FOR_ELEMENTS(c, channels) {
        const float m = unit * sum_mean[c], inv = 1.0f / sqrtf(unit * sum_variance[c] + eps);
        if (mean) mean[c] = m;
        inverse[c] = inv;
        if (kept_mean) kept_mean[c] = m;
        if (kept_inverse) kept_inverse[c] = inv;
    }
}

// Rounded in one way wherever it is computed, so that forward and backward agree on its sign.
DEVICE float bn_affine(float x, float mean, float inverse, float gamma, float beta) {
    return __fmaf_rn(x - mean, inverse * gamma, beta);
}

// y = gamma (x - mean) inverse + beta, gamma 1 and beta 0 where null; max with 0 where `relu`. y may be x.
template <typename T>
DEVICE void bn_normalize_of(
    T* y, const T* x, const float* mean, const float* inverse, const float* gamma, const float* beta, u32 relu,
    u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            const float v = bn_affine(x[at], mean[c], inverse[c], gamma ? gamma[c] : 1.0f, beta ? beta[c] : 0.0f);
            y[at] = relu && v < 0 ? 0.0f : v;
        }
    }
}
KERNELS(bn_normalize, bn_normalize_bf16,
    (T* y, const T* x, const float* mean, const float* inverse, const float* gamma, const float* beta, u32 relu, u32
     rows, u32 width, u32 channels),
    (y, x, mean, inverse, gamma, beta, relu, rows, width, channels))

// Sums of dy and of dy y, y being the normalized values.
template <typename T>
DEVICE void bn_backward_partials_of(float* partial, const T* dy, const T* y, u32 outer, u32 channels, u32 inner,
    float* exchange) {
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32, float* sums) {
        const float d = dy[i];
        sums[0] += d;
        sums[1] += d * y[i];
    });
}
KERNELS_ADDING(bn_backward_partials, bn_backward_partials_bf16,
    (float* partial, const T* dy, const T* y, u32 outer, u32 channels, u32 inner),
    (partial, dy, y, outer, channels, inner, exchange))

// The sums, divided by the number of values of a channel.
KERNEL(bn_backward_finish)(float* a, float* b, const float* partial, u32 chunks, u32 channels, float count) {
    FOR_ELEMENTS(c, channels) {
        a[c] = channel_sum(partial, chunks, channels, (u32)c, 0) / count;
        b[c] = channel_sum(partial, chunks, channels, (u32)c, 1) / count;
    }
}

// dx = (dy - a - y b) inverse. dx may be dy.
template <typename T>
DEVICE void bn_backward_of(
    T* dx, const T* dy, const T* y, const float* inverse, const float* a, const float* b, u32 rows, u32 width,
    u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            dx[at] = (dy[at] - a[c] - y[at] * b[c]) * inverse[c];
        }
    }
}
KERNELS(bn_backward, bn_backward_bf16,
    (T* dx, const T* dy, const T* y, const float* inverse, const float* a, const float* b, u32 rows, u32 width, u32
     channels),
    (dx, dy, y, inverse, a, b, rows, width, channels))

// Sums of g and of g xhat, with g = dy where the ReLU let through.
template <typename T>
DEVICE void bn_fused_partials_of(
    float* partial, const T* dy, const T* x, const float* mean, const float* inverse, const float* gamma,
    const float* beta, u32 relu, u32 outer, u32 channels, u32 inner, float* exchange
) {
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32 c, float* sums) {
        const float v = x[i], m = mean[c], inv = inverse[c];
        const float g = relu && !(bn_affine(v, m, inv, gamma[c], beta ? beta[c] : 0.0f) > 0) ? 0.0f : dy[i];
        sums[0] += g;
        sums[1] += g * ((v - m) * inv);
    });
}
KERNELS_ADDING(bn_fused_partials, bn_fused_partials_bf16,
    (float* partial, const T* dy, const T* x, const float* mean, const float* inverse, const float* gamma, const
     float* beta, u32 relu, u32 outer, u32 channels, u32 inner),
    (partial, dy, x, mean, inverse, gamma, beta, relu, outer, channels, inner, exchange))

// The gradients of gamma and beta take up the sums, and a and b their share for each value: none where the statistics do
// not depend on the batch.
KERNEL(bn_fused_finish)(
    float* a, float* b, float* d_gamma, float* d_beta, const float* partial, u32 chunks, u32 channels, float share
) {
    FOR_ELEMENTS(c, channels) {
        const float sum = channel_sum(partial, chunks, channels, (u32)c, 0);
        const float product = channel_sum(partial, chunks, channels, (u32)c, 1);
        if (d_gamma) d_gamma[c] += product;
        if (d_beta) d_beta[c] += sum;
        a[c] = sum * share;
        b[c] = product * share;
    }
}

// dx = gamma inverse (g - a - xhat b). dx may be dy.
template <typename T>
DEVICE void bn_fused_backward_of(
    T* dx, const T* dy, const T* x, const float* mean, const float* inverse, const float* gamma, const float* beta,
    const float* a, const float* b, u32 relu, u32 rows, u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            const float v = x[at], m = mean[c], inv = inverse[c];
            const float g = relu && !(bn_affine(v, m, inv, gamma[c], beta ? beta[c] : 0.0f) > 0) ? 0.0f : dy[at];
            dx[at] = inv * gamma[c] * (g - a[c] - (v - m) * inv * b[c]);
        }
    }
}
KERNELS(bn_fused_backward, bn_fused_backward_bf16,
    (T* dx, const T* dy, const T* x, const float* mean, const float* inverse, const float* gamma, const float* beta,
     const float* a, const float* b, u32 relu, u32 rows, u32 width, u32 channels),
    (dx, dy, x, mean, inverse, gamma, beta, a, b, relu, rows, width, channels))
