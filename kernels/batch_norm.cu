// BatchNorm, and BatchNorm with Scale, a sum and ReLU in one. See CHANNEL for `channels`.

// The statistics take one read: sums of x - k and of (x - k)^2 over each chunk, with a typical value of the chunk for k.
template <typename T>
DEVICE void bn_statistics_of(float* partial, const T* x, u32 outer, u32 channels, u32 inner, float* exchange) {
    const T* const in[] = {x};
    channel_partials<2>(partial, (T*)0, in, outer, channels, inner, exchange,
        [=](u32 c, auto width, const Chunk& chunk) {
            Pack<float, width.value> typical;
#pragma unroll
            for (u32 k = 0; k < width.value; ++k) typical.v[k] = chunk.typical(x, c + k, channels, inner);
            return typical;
        },
        [](const auto& typical, u32 k, const float* e, float* sums) {
            const float d = e[0] - typical.v[k];
            sums[0] += d;
            sums[1] += d * d;
            return 0.0f;
        });
}
KERNELS_ADDING(bn_statistics,
    (float* partial, const T* x, u32 outer, u32 channels, u32 inner),
    (partial, x, outer, channels, inner, exchange))

// How many values there are, their mean and the sum of the squares of their differences from it.
struct Moments {
    float n, mean, squares;

    // Of both together (Chan, Golub and LeVeque, 1979): nothing cancels, however far the means lie from zero.
    __device__ __forceinline__ void take(const Moments& other) {
        if (other.n == 0) return;
        const float all = n + other.n, d = other.mean - mean, share = other.n / all;
        mean += d * share;
        squares += other.squares + d * d * n * share;
        n = all;
    }
};

// Mean and 1/sqrt(variance + eps) of each channel, kept in saved memory too where there is any, and the running statistics
// where there are any: each becomes fresh * what is new + keep * itself. Blocks as for channel_sums, of up to 512 threads.
#undef BOUNDS
#define BOUNDS __launch_bounds__(512)
template <typename T>
DEVICE void bn_statistics_finish_of(
    float* mean, float* inverse, float* kept_mean, float* kept_inverse, float* sum_mean, float* sum_variance,
    float* sum_weight, const float* partial, const T* x, u32 chunks, u32 outer, u32 channels, u32 inner, float keep,
    float fresh, float unbias, float eps, float* exchange
) {
    const u32 lane = threadIdx.x % 32, c = blockIdx.x * 32 + lane, groups = blockDim.x / 32;
    Moments* const found = (Moments*)exchange;
    Moments all = {0, 0, 0};
    for (u32 j = threadIdx.x / 32; c < channels && j < chunks; j += groups) {
        const Chunk chunk(j, chunks, outer, inner);
        const float n = chunk.end - chunk.from;
        if (n == 0) continue;
        const float sum = partial[(i64)j * channels + c], square = partial[(i64)(chunks + j) * channels + c];
        const float rest = square - sum * sum / n;
        all.take({n, chunk.typical(x, c, channels, inner) + sum / n, rest < 0 ? 0.0f : rest});
    }
    found[threadIdx.x] = all;
    __syncthreads();
    if (threadIdx.x >= 32 || c >= channels) return;
    for (u32 g = 1; g < groups; ++g) all.take(found[g * 32 + lane]);
    const float variance = all.squares / all.n, inv = 1.0f / sqrtf(variance + eps);
    mean[c] = all.mean;
    inverse[c] = inv;
    if (kept_mean) kept_mean[c] = all.mean;
    if (kept_inverse) kept_inverse[c] = inv;
    if (!sum_mean) return;
    sum_mean[c] = fresh * all.mean + keep * sum_mean[c];
    sum_variance[c] = fresh * (unbias * variance) + keep * sum_variance[c];
    if (sum_weight && c == 0) sum_weight[0] = 1.0f + keep * sum_weight[0];
}
KERNELS_ADDING(bn_statistics_finish,
    (float* mean, float* inverse, float* kept_mean, float* kept_inverse, float* sum_mean, float* sum_variance,
     float* sum_weight, const float* partial, const T* x, u32 chunks, u32 outer, u32 channels, u32 inner, float keep,
     float fresh, float unbias, float eps),
    (mean, inverse, kept_mean, kept_inverse, sum_mean, sum_variance, sum_weight, partial, x, chunks, outer, channels,
     inner, keep, fresh, unbias, eps, exchange))
#undef BOUNDS
#define BOUNDS

// The same from the running sums, over their weight where they have one.
KERNEL(bn_global)(
    float* mean, float* inverse, float* kept_mean, float* kept_inverse, const float* sum_mean,
    const float* sum_variance, const float* sum_weight, u32 channels, float eps
) {
    const float weight = sum_weight ? sum_weight[0] : 1.0f, unit = weight == 0 ? 0.0f : 1.0f / weight;
    FOR_ELEMENTS(c, channels) {
        const float m = unit * sum_mean[c], inv = 1.0f / sqrtf(unit * sum_variance[c] + eps);
        if (mean) mean[c] = m;
        inverse[c] = inv;
        if (kept_mean) kept_mean[c] = m;
        if (kept_inverse) kept_inverse[c] = inv;
    }
}

// What V channels' values are made of: mean and beta 0, inverse and gamma 1 where null.
template <u32 V> struct Affine {
    Pack<float, V> mean, inverse, scale, beta;

    // Rounded in one way wherever it is computed, so that forward and backward agree on its sign.
    __device__ __forceinline__ float of(u32 k, float x) const {
        return __fmaf_rn(x - mean.v[k], scale.v[k], beta.v[k]);
    }
};

template <u32 V>
DEVICE Affine<V> affine(u32 c, const float* mean, const float* inverse, const float* gamma, const float* beta) {
    Affine<V> a = {numbers<V>(mean, c), numbers<V>(inverse, c, 1.0f), numbers<V>(gamma, c, 1.0f), numbers<V>(beta, c)};
#pragma unroll
    for (u32 k = 0; k < V; ++k) a.scale.v[k] *= a.inverse.v[k];
    return a;
}

// y = gamma (x - mean) inverse + beta + r, without r where it is null; max with 0 where `relu`. y may be x or r.
template <typename T>
DEVICE void bn_normalize_of(
    T* y, const T* x, const T* r, const float* mean, const float* inverse, const float* gamma, const float* beta,
    u32 relu, u32 rows, u32 width, u32 channels
) {
    const auto of = [=](u32 c, auto width) { return affine<width.value>(c, mean, inverse, gamma, beta); };
    const auto rectified = [=](float v) { return relu && v < 0 ? 0.0f : v; };
    if (r) {
        const T* const in[] = {x, r};
        channel_map(y, in, rows, width, channels, of,
            [=](const auto& a, u32 k, const float* e) { return rectified(a.of(k, e[0]) + e[1]); });
    } else {
        const T* const in[] = {x};
        channel_map(y, in, rows, width, channels, of,
            [=](const auto& a, u32 k, const float* e) { return rectified(a.of(k, e[0])); });
    }
}
KERNELS(bn_normalize,
    (T* y, const T* x, const T* r, const float* mean, const float* inverse, const float* gamma, const float* beta, u32
     relu, u32 rows, u32 width, u32 channels),
    (y, x, r, mean, inverse, gamma, beta, relu, rows, width, channels))

// Sums of dy and of dy y, y being the normalized values.
template <typename T>
DEVICE void bn_backward_partials_of(float* partial, const T* dy, const T* y, u32 outer, u32 channels, u32 inner,
    float* exchange) {
    const T* const in[] = {dy, y};
    channel_partials<2>(partial, (T*)0, in, outer, channels, inner, exchange, [](u32, auto, const Chunk&) { return 0; },
        [](int, u32, const float* e, float* sums) {
            sums[0] += e[0];
            sums[1] += e[0] * e[1];
            return 0.0f;
        });
}
KERNELS_ADDING(bn_backward_partials,
    (float* partial, const T* dy, const T* y, u32 outer, u32 channels, u32 inner),
    (partial, dy, y, outer, channels, inner, exchange))

// What V channels' gradients are made of.
template <u32 V> struct Gradient {
    Affine<V> affine;
    Pack<float, V> a, b;
};

// dx = (dy - a - y b) inverse. dx may be dy.
template <typename T>
DEVICE void bn_backward_of(
    T* dx, const T* dy, const T* y, const float* inverse, const float* a, const float* b, u32 rows, u32 width,
    u32 channels
) {
    const T* const in[] = {dy, y};
    channel_map(dx, in, rows, width, channels,
        [=](u32 c, auto width) {
            const u32 V = width.value;
            return Gradient<V>{{{}, numbers<V>(inverse, c), {}, {}}, numbers<V>(a, c), numbers<V>(b, c)};
        },
        [](const auto& of, u32 k, const float* e) {
            return (e[0] - of.a.v[k] - e[1] * of.b.v[k]) * of.affine.inverse.v[k];
        });
}
KERNELS(bn_backward,
    (T* dx, const T* dy, const T* y, const float* inverse, const float* a, const float* b, u32 rows, u32 width, u32
     channels),
    (dx, dy, y, inverse, a, b, rows, width, channels))

// Sums of g and of g xhat; g itself to `g` where that is not null. g is dy where the ReLU let through: by the sign of
// `gate` where that is not null, else of what forward made of x.
template <typename T>
DEVICE void bn_fused_partials_of(
    float* partial, T* g, const T* dy, const T* x, const T* gate, const float* mean, const float* inverse,
    const float* gamma, const float* beta, u32 relu, u32 outer, u32 channels, u32 inner, float* exchange
) {
    const auto of = [=](u32 c, auto width, const Chunk&) {
        return affine<width.value>(c, mean, inverse, gamma, beta);
    };
    const auto add = [](const auto& a, u32 k, float passed, float x, float* sums) {
        sums[0] += passed;
        sums[1] += passed * ((x - a.mean.v[k]) * a.inverse.v[k]);
        return passed;
    };
    if (gate) {
        const T* const in[] = {dy, x, gate};
        channel_partials<2>(partial, g, in, outer, channels, inner, exchange, of,
            [=](const auto& a, u32 k, const float* e, float* sums) {
                return add(a, k, e[2] > 0 ? e[0] : 0.0f, e[1], sums);
            });
    } else {
        const T* const in[] = {dy, x};
        channel_partials<2>(partial, g, in, outer, channels, inner, exchange, of,
            [=](const auto& a, u32 k, const float* e, float* sums) {
                return add(a, k, relu && !(a.of(k, e[1]) > 0) ? 0.0f : e[0], e[1], sums);
            });
    }
}
KERNELS_ADDING(bn_fused_partials,
    (float* partial, T* g, const T* dy, const T* x, const T* gate, const float* mean, const float* inverse, const float*
     gamma, const float* beta, u32 relu, u32 outer, u32 channels, u32 inner),
    (partial, g, dy, x, gate, mean, inverse, gamma, beta, relu, outer, channels, inner, exchange))

// dx = gamma inverse (g - a - xhat b), with g from dy as above. dx may be dy.
template <typename T>
DEVICE void bn_fused_backward_of(
    T* dx, const T* dy, const T* x, const T* gate, const float* mean, const float* inverse, const float* gamma,
    const float* beta, const float* a, const float* b, u32 relu, u32 rows, u32 width, u32 channels
) {
    const auto of = [=](u32 c, auto width) {
        const u32 V = width.value;
        Gradient<V> of = {affine<V>(c, mean, inverse, gamma, beta), numbers<V>(a, c), numbers<V>(b, c)};
#pragma unroll
        for (u32 k = 0; k < V; ++k) of.b.v[k] *= of.affine.inverse.v[k];
        return of;
    };
    const auto result = [](const auto& of, u32 k, float g, float x) {
        return of.affine.scale.v[k] * (g - of.a.v[k] - (x - of.affine.mean.v[k]) * of.b.v[k]);
    };
    if (gate) {
        const T* const in[] = {dy, x, gate};
        channel_map(dx, in, rows, width, channels, of,
            [=](const auto& of, u32 k, const float* e) { return result(of, k, e[2] > 0 ? e[0] : 0.0f, e[1]); });
    } else {
        const T* const in[] = {dy, x};
        channel_map(dx, in, rows, width, channels, of, [=](const auto& of, u32 k, const float* e) {
            return result(of, k, relu && !(of.affine.of(k, e[1]) > 0) ? 0.0f : e[0], e[1]);
        });
    }
}
KERNELS(bn_fused_backward,
    (T* dx, const T* dy, const T* x, const T* gate, const float* mean, const float* inverse, const float* gamma, const
     float* beta, const float* a, const float* b, u32 relu, u32 rows, u32 width, u32 channels),
    (dx, dy, x, gate, mean, inverse, gamma, beta, a, b, relu, rows, width, channels))

// What the sums give. Blocks as for channel_sums.
#undef BOUNDS
#define BOUNDS __launch_bounds__(1024)

// The sums, divided by the number of values of a channel.
KERNEL(bn_backward_finish)(float* a, float* b, const float* partial, u32 chunks, u32 channels, float count) {
    __shared__ float exchange[2048];
    float sums[2];
    if (!channel_sums(sums, partial, chunks, channels, exchange)) return;
    const u32 c = blockIdx.x * 32 + threadIdx.x;
    a[c] = sums[0] / count;
    b[c] = sums[1] / count;
}

// The gradients of gamma and beta take up the sums, and a and b their share for each value: none where the statistics do
// not depend on the batch.
KERNEL(bn_fused_finish)(
    float* a, float* b, float* d_gamma, float* d_beta, const float* partial, u32 chunks, u32 channels, float share
) {
    __shared__ float exchange[2048];
    float sums[2];
    if (!channel_sums(sums, partial, chunks, channels, exchange)) return;
    const u32 c = blockIdx.x * 32 + threadIdx.x;
    if (d_gamma) d_gamma[c] += sums[1];
    if (d_beta) d_beta[c] += sums[0];
    a[c] = sums[0] * share;
    b[c] = sums[1] * share;
}
#undef BOUNDS
#define BOUNDS
