// Layers that treat every element alone. An output may be an input's memory.

template <typename T>
DEVICE void pointwise_fill_of(T* y, float value, i64 n) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) ? n / size : 0;
    Pack<T> v;
#pragma unroll
    for (u32 k = 0; k < size; ++k) v.v[k] = value;
    FOR_ELEMENTS(q, packs) v.write(y + size * q);
    FOR_ELEMENTS(i, n - size * packs) y[size * packs + i] = value;
}
KERNELS(pointwise_fill, (T* y, float value, i64 n), (y, value, n))

// BARE (a, b,) is a, b, without the parentheses.
#define BARE(...) __VA_ARGS__
// A layer y = f(x): name_forward and name_backward, each for floats and bf16. `params` are the numbers that they take, `args`
// their names, each with a comma behind it. `f` is an expression in x, `df` one in dy and v, which is the bottom or the
// top, as the layer reads.
#define POINTWISE(name, params, args, f, df)                                                                           \
    template <typename T> DEVICE void name##_forward_of(T* y, const T* bottom, BARE params i64 n) {                    \
        map1(y, bottom, n, [=](float x) -> float { return f; });                                                       \
    }                                                                                                                  \
    KERNELS(name##_forward, (T* y, const T* x, BARE params i64 n), (y, x, BARE args n))                                \
    template <typename T>                                                                                              \
    DEVICE void name##_backward_of(T* dx, const T* top_diff, const T* read, BARE params i64 n) {                       \
        map2(dx, top_diff, read, n, [=](float dy, float v) -> float { return df; });                                   \
    }                                                                                                                  \
    KERNELS(name##_backward, (T* dx, const T* dy, const T* v, BARE params i64 n), (dx, dy, v, BARE args n))

DEVICE float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// base^power by the simplest arithmetic that gives it.
DEVICE float raised(float base, float power) {
    return power == 1.0f ? base : power == 2.0f ? base * base : powf(base, power);
}

POINTWISE(relu, (float slope,), (slope,), x < 0 ? slope * x : x, v > 0 ? dy : slope * dy)
POINTWISE(relu6, (float slope,), (slope,), fminf(x < 0 ? slope * x : x, 6.0f),
          v < 6.0f ? (v > 0 ? dy : slope * dy) : 0.0f)
POINTWISE(sigmoid, (), (), logistic(x), dy * v * (1.0f - v))
POINTWISE(swish, (float beta,), (beta,), x * logistic(beta * x),
          dy * logistic(beta * v) * (1.0f + beta * v * (1.0f - logistic(beta * v))))
POINTWISE(tanh, (), (), tanhf(x), dy * (1.0f - v * v))
POINTWISE(power, (float power, float scale, float shift,), (power, scale, shift,), raised(scale * x + shift, power),
          dy * (power * scale) * raised(scale * v + shift, power - 1.0f))
POINTWISE(power_linear, (float power, float scale, float shift,), (power, scale, shift,), scale * x + shift, scale * dy)
POINTWISE(absval, (), (), fabsf(x), v > 0 ? dy : v < 0 ? -dy : 0.0f)
POINTWISE(bnll, (), (), (x < 0 ? 0.0f : x) + log1pf(expf(-fabsf(x))), -dy * expm1f(-v))
POINTWISE(clip, (float low, float high,), (low, high,), x > high ? high : x < low ? low : x,
          v >= low && v <= high ? dy : 0.0f)
POINTWISE(elu, (float alpha,), (alpha,), x > 0 ? x : alpha * expm1f(x), v > 0 ? dy : dy * (v + alpha))
POINTWISE(elu_falling, (float alpha,), (alpha,), x > 0 ? x : alpha * expm1f(x), v > 0 ? dy : dy * alpha * expf(v))
POINTWISE(hard_swish, (), (), x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f,
          v <= -3.0f ? 0.0f : v >= 3.0f ? dy : dy * (2.0f * v + 3.0f) / 6.0f)
POINTWISE(exp, (float inner, float outer,), (inner, outer,), outer * expf(inner * x), dy * (v * inner))
POINTWISE(log, (float unit, float scale, float shift,), (unit, scale, shift,), unit * logf(scale * x + shift),
          dy * (unit * scale) / (scale * v + shift))

template <typename T>
DEVICE void threshold_forward_of(T* y, const T* x, float threshold, i64 n) {
    map1(y, x, n, [=](float v) { return v > threshold ? 1.0f : 0.0f; });
}
KERNELS(threshold_forward, (T* y, const T* x, float threshold, i64 n), (y, x, threshold, n))

// y = ca a + cb b: sums of two, and the gradients of several readers.
template <typename T>
DEVICE void eltwise_sum_of(T* y, const T* a, const T* b, float ca, float cb, i64 n) {
    map2(y, a, b, n, [=](float u, float v) { return ca * u + cb * v; });
}
KERNELS(eltwise_sum, (T* y, const T* a, const T* b, float ca, float cb, i64 n), (y, a, b, ca, cb, n))

// The same, then max(y, 0).
template <typename T>
DEVICE void eltwise_rectified_sum_of(T* y, const T* a, const T* b, float ca, float cb, i64 n) {
    map2(y, a, b, n, [=](float u, float v) {
        const float sum = ca * u + cb * v;
        return sum < 0 ? 0.0f : sum;
    });
}
KERNELS(eltwise_rectified_sum,
    (T* y, const T* a, const T* b, float ca, float cb, i64 n),
    (y, a, b, ca, cb, n))

template <typename T>
DEVICE void eltwise_scale_of(T* y, const T* x, float c, i64 n) {
    map1(y, x, n, [=](float v) { return c * v; });
}
KERNELS(eltwise_scale, (T* y, const T* x, float c, i64 n), (y, x, c, n))

template <typename T>
DEVICE void eltwise_product_of(T* y, const T* a, const T* b, i64 n) {
    map2(y, a, b, n, [](float u, float v) { return u * v; });
}
KERNELS(eltwise_product, (T* y, const T* a, const T* b, i64 n), (y, a, b, n))

// dx = dy y / x: the gradient of a product by one factor.
template <typename T>
DEVICE void eltwise_quotient_of(T* dx, const T* dy, const T* y, const T* x, i64 n) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(dx) && aligned(dy) && aligned(y) && aligned(x) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> d, v, w;
        d.read(dy + size * q);
        v.read(y + size * q);
        w.read(x + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) d.v[k] = d.v[k] * (v.v[k] / w.v[k]);
        d.write(dx + size * q);
    }
    FOR_ELEMENTS(r, n - size * packs) {
        const i64 i = size * packs + r;
        dx[i] = dy[i] * (y[i] / x[i]);
    }
}
KERNELS(eltwise_quotient, (T* dx, const T* dy, const T* y, const T* x, i64 n), (dx, dy, y, x, n))

// The larger of two, and which bottom it came from (unless `chosen` is null): on equality the second.
template <typename T>
DEVICE void eltwise_max_first_of(T* y, float* chosen, const T* a, const T* b, i64 n) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(chosen) && aligned(a) && aligned(b) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> u, v;
        Pack<float, size> from;
        u.read(a + size * q);
        v.read(b + size * q);
#pragma unroll
        for (u32 k = 0; k < size; ++k) {
            const bool first = u.v[k] > v.v[k];
            from.v[k] = first ? 0.0f : 1.0f;
            v.v[k] = first ? u.v[k] : v.v[k];
        }
        if (chosen) from.write(chosen + size * q);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(r, n - size * packs) {
        const i64 i = size * packs + r;
        const float u = a[i], v = b[i];
        const bool first = u > v;
        if (chosen) chosen[i] = first ? 0.0f : 1.0f;
        y[i] = first ? u : v;
    }
}
KERNELS(eltwise_max_first,
    (T* y, float* chosen, const T* a, const T* b, i64 n),
    (y, chosen, a, b, n))

// The larger of y and bottom `index`: on equality y.
template <typename T>
DEVICE void eltwise_max_next_of(T* y, float* chosen, const T* x, int index, i64 n) {
    const u32 size = Pack<T>::size;
    const i64 packs = aligned(y) && aligned(chosen) && aligned(x) ? n / size : 0;
    FOR_ELEMENTS(q, packs) {
        Pack<T> u, v;
        Pack<float, size> from = {};
        u.read(x + size * q);
        v.read(y + size * q);
        if (chosen) from.read(chosen + size * q);
        bool any = false;
#pragma unroll
        for (u32 k = 0; k < size; ++k) {
            const bool next = u.v[k] > v.v[k];
            any = any || next;
            from.v[k] = next ? (float)index : from.v[k];
            v.v[k] = next ? u.v[k] : v.v[k];
        }
        if (!any) continue;
        if (chosen) from.write(chosen + size * q);
        v.write(y + size * q);
    }
    FOR_ELEMENTS(r, n - size * packs) {
        const i64 i = size * packs + r;
        if (x[i] > y[i]) {
            y[i] = x[i];
            if (chosen) chosen[i] = (float)index;
        }
    }
}
KERNELS(eltwise_max_next,
    (T* y, float* chosen, const T* x, int index, i64 n),
    (y, chosen, x, index, n))

template <typename T>
DEVICE void eltwise_max_backward_of(T* dx, const T* dy, const float* chosen, int index, i64 n) {
    map2(dx, dy, chosen, n, [=](float d, float from) { return from == (float)index ? d : 0.0f; });
}
KERNELS(eltwise_max_backward,
    (T* dx, const T* dy, const float* chosen, int index, i64 n),
    (dx, dy, chosen, index, n))

// Element i draws word i mod 4 of counter batch * 2^32 + i / 4.
template <typename T>
DEVICE void dropout_apply_of(T* y, const T* x, const u32* clock, u64 stream, u32 least_kept, float scale, i64 n) {
    const u64 seed = clock_seed(clock), from = clock_batch(clock) << 32;
    const bool whole = aligned(x) && aligned(y);
    FOR_ELEMENTS(q, (n + 3) / 4) {
        const Words words = philox(seed, stream, from + (u64)q);
        if (whole && 4 * q + 4 <= n) {
            Pack<T, 4> v;
            v.read(x + 4 * q);
#pragma unroll
            for (int k = 0; k < 4; ++k) v.v[k] = words.w[k] >= least_kept ? v.v[k] * scale : 0.0f;
            v.write(y + 4 * q);
            continue;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const i64 i = 4 * q + k;
            if (i < n) y[i] = words.w[k] >= least_kept ? x[i] * scale : 0.0f;
        }
    }
}
KERNELS(dropout_apply,
    (T* y, const T* x, const u32* clock, u64 stream, u32 least_kept, float scale, i64 n),
    (y, x, clock, stream, least_kept, scale, n))
