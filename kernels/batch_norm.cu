// BatchNorm, and BatchNorm with Scale and ReLU in one. See CHANNEL for `channels`.

// The statistics take one read: sums of x - k and of (x - k)^2, with the channel's first value for k. A sample is never
// far from the mean, measured in deviations, so nothing cancels.
KERNEL(bn_statistics)(float* partial, const float* x, u32 outer, u32 channels, u32 inner) {
    __shared__ float exchange[256];
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32 c, float* sums) {
        const float v = x[i] - x[(i64)c * inner];
        sums[0] += v;
        sums[1] += v * v;
    });
}

// Mean and 1/sqrt(variance + eps) of each channel, kept in saved memory too where there is any, and the running sums:
// each becomes what is new + keep * itself. `count` is the number of values of a channel.
KERNEL(bn_statistics_finish)(
    float* mean, float* inverse, float* kept_mean, float* kept_inverse, float* sum_mean, float* sum_variance,
    float* sum_weight, const float* partial, const float* x, u32 chunks, u32 channels, u32 inner, float count,
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
KERNEL(bn_normalize)(
    float* y, const float* x, const float* mean, const float* inverse, const float* gamma, const float* beta, u32 relu,
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

// Sums of dy and of dy y, y being the normalized values.
KERNEL(bn_backward_partials)(float* partial, const float* dy, const float* y, u32 outer, u32 channels, u32 inner) {
    __shared__ float exchange[256];
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32, float* sums) {
        const float d = dy[i];
        sums[0] += d;
        sums[1] += d * y[i];
    });
}

// The sums, divided by the number of values of a channel.
KERNEL(bn_backward_finish)(float* a, float* b, const float* partial, u32 chunks, u32 channels, float count) {
    FOR_ELEMENTS(c, channels) {
        a[c] = channel_sum(partial, chunks, channels, (u32)c, 0) / count;
        b[c] = channel_sum(partial, chunks, channels, (u32)c, 1) / count;
    }
}

// dx = (dy - a - y b) inverse. dx may be dy.
KERNEL(bn_backward)(
    float* dx, const float* dy, const float* y, const float* inverse, const float* a, const float* b, u32 rows,
    u32 width, u32 channels
) {
    FOR_ROWS(row, rows) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const u32 c = CHANNEL(row, i, channels);
            dx[at] = (dy[at] - a[c] - y[at] * b[c]) * inverse[c];
        }
    }
}

// Sums of g and of g xhat, with g = dy where the ReLU let through.
KERNEL(bn_fused_partials)(
    float* partial, const float* dy, const float* x, const float* mean, const float* inverse, const float* gamma,
    const float* beta, u32 relu, u32 outer, u32 channels, u32 inner
) {
    __shared__ float exchange[256];
    channel_partials<2>(partial, outer, channels, inner, exchange, [=](i64 i, u32 c, float* sums) {
        const float v = x[i], m = mean[c], inv = inverse[c];
        const float g = relu && !(bn_affine(v, m, inv, gamma[c], beta ? beta[c] : 0.0f) > 0) ? 0.0f : dy[i];
        sums[0] += g;
        sums[1] += g * ((v - m) * inv);
    });
}

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
KERNEL(bn_fused_backward)(
    float* dx, const float* dy, const float* x, const float* mean, const float* inverse, const float* gamma,
    const float* beta, const float* a, const float* b, u32 relu, u32 rows, u32 width, u32 channels
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
