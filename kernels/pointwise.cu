// Layers that treat every element alone. An output may be an input's memory.

KERNEL(pointwise_fill)(float* y, float value, i64 n) { FOR_ELEMENTS(i, n) y[i] = value; }

KERNEL(relu_forward)(float* y, const float* x, float slope, i64 n) {
    map1(y, x, n, [=](float v) { return v < 0 ? slope * v : v; });
}

// `sign` is the top where the slope is not negative, else the bottom.
KERNEL(relu_backward)(float* dx, const float* dy, const float* sign, float slope, i64 n) {
    map2(dx, dy, sign, n, [=](float d, float s) { return s > 0 ? d : slope * d; });
}

KERNEL(sigmoid_forward)(float* y, const float* x, i64 n) {
    map1(y, x, n, [](float v) { return 1.0f / (1.0f + expf(-v)); });
}

KERNEL(sigmoid_backward)(float* dx, const float* dy, const float* y, i64 n) {
    map2(dx, dy, y, n, [](float d, float v) { return d * v * (1.0f - v); });
}

KERNEL(tanh_forward)(float* y, const float* x, i64 n) {
    map1(y, x, n, [](float v) { return tanhf(v); });
}

KERNEL(tanh_backward)(float* dx, const float* dy, const float* y, i64 n) {
    map2(dx, dy, y, n, [](float d, float v) { return d * (1.0f - v * v); });
}

// y = (scale x + shift)^power, by the simplest arithmetic that gives it.
DEVICE float raised(float base, float power) {
    return power == 1.0f ? base : power == 2.0f ? base * base : powf(base, power);
}

KERNEL(power_forward)(float* y, const float* x, float power, float scale, float shift, i64 n) {
    map1(y, x, n, [=](float v) { return raised(scale * v + shift, power); });
}

KERNEL(power_backward)(float* dx, const float* dy, const float* x, float power, float scale, float shift, i64 n) {
    const float slope = power * scale, below = power - 1.0f;
    map2(dx, dy, x, n, [=](float d, float v) { return d * slope * raised(scale * v + shift, below); });
}

// y = ca a + cb b: sums of two, and the gradients of several readers.
KERNEL(eltwise_sum)(float* y, const float* a, const float* b, float ca, float cb, i64 n) {
    map2(y, a, b, n, [=](float u, float v) { return ca * u + cb * v; });
}

KERNEL(eltwise_scale)(float* y, const float* x, float c, i64 n) {
    map1(y, x, n, [=](float v) { return c * v; });
}

KERNEL(eltwise_product)(float* y, const float* a, const float* b, i64 n) {
    map2(y, a, b, n, [](float u, float v) { return u * v; });
}

// dx = dy y / x: the gradient of a product by one factor.
KERNEL(eltwise_quotient)(float* dx, const float* dy, const float* y, const float* x, i64 n) {
    FOR_ELEMENTS(i, n) dx[i] = dy[i] * (y[i] / x[i]);
}

// The larger of two, and which bottom it came from (unless `chosen` is null): on equality the second.
KERNEL(eltwise_max_first)(float* y, float* chosen, const float* a, const float* b, i64 n) {
    FOR_ELEMENTS(i, n) {
        const float u = a[i], v = b[i];
        const bool first = u > v;
        if (chosen) chosen[i] = first ? 0.0f : 1.0f;
        y[i] = first ? u : v;
    }
}

// The larger of y and bottom `index`: on equality y.
KERNEL(eltwise_max_next)(float* y, float* chosen, const float* x, int index, i64 n) {
    FOR_ELEMENTS(i, n) {
        if (x[i] > y[i]) {
            y[i] = x[i];
            if (chosen) chosen[i] = (float)index;
        }
    }
}

KERNEL(eltwise_max_backward)(float* dx, const float* dy, const float* chosen, int index, i64 n) {
    map2(dx, dy, chosen, n, [=](float d, float from) { return from == (float)index ? d : 0.0f; });
}

// Element i draws word i mod 4 of counter batch * 2^32 + i / 4.
KERNEL(dropout_apply)(float* y, const float* x, const u32* clock, u64 stream, u32 least_kept, float scale, i64 n) {
    const u64 seed = clock_seed(clock), from = clock_batch(clock) << 32;
    const bool whole = aligned(x) && aligned(y);
    FOR_ELEMENTS(q, (n + 3) / 4) {
        const Words words = philox(seed, stream, from + (u64)q);
        if (whole && 4 * q + 4 <= n) {
            float4 v = ((const float4*)x)[q];
            v.x = words.w[0] >= least_kept ? v.x * scale : 0.0f;
            v.y = words.w[1] >= least_kept ? v.y * scale : 0.0f;
            v.z = words.w[2] >= least_kept ? v.z * scale : 0.0f;
            v.w = words.w[3] >= least_kept ? v.w * scale : 0.0f;
            ((float4*)y)[q] = v;
            continue;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const i64 i = 4 * q + k;
            if (i < n) y[i] = words.w[k] >= least_kept ? x[i] * scale : 0.0f;
        }
    }
}
