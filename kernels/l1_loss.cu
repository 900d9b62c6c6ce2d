// L1Loss: sums over positions, each a thread's, which goes over its channels. b may be null.

#define VALUES                                                                                                         \
    const float *a, const float *b, u32 located, float share, float epsilon, float plateau, u32 items, u32 channels,   \
        u32 inner

// The difference at element i; not a number where it counts as nothing.
DEVICE float l1_difference(const float* a, const float* b, i64 i) { return b ? a[i] - b[i] : a[i]; }

DEVICE bool is_number(float v) { return v == v; }

// The first element of a position.
DEVICE i64 l1_base(i64 position, u32 channels, u32 inner) {
    const i64 n = position / inner;
    return n * channels * inner + (position - n * inner);
}

// The sum of squares of a position's channels, and how many are numbers.
DEVICE float l1_squares(const float* a, const float* b, i64 base, u32 channels, u32 inner, float& known) {
    float sum = 0;
    for (u32 c = 0; c < channels; ++c) {
        const float d = l1_difference(a, b, base + (i64)c * inner);
        if (is_number(d)) sum += d * d, known += 1;
    }
    return sum;
}

KERNEL(l1_partials)(float* partial, VALUES) {
    TALLYING;
    FOR_ELEMENTS(p, (i64)items * inner) {
        const i64 base = l1_base(p, channels, inner);
        float known = 0;
        const float squares = share * l1_squares(a, b, base, channels, inner, known);
        tally.counts += known / (float)channels;
        if (located) {
            tally.loss += sqrtf((squares >= plateau * plateau ? squares : 0.0f) + epsilon);
        } else {
            for (u32 c = 0; c < channels; ++c) {
                const float size = fabsf(l1_difference(a, b, base + (i64)c * inner));
                if (size >= plateau) tally.loss += size;
            }
        }
    }
    PUT_TALLY(partial);
}

KERNEL(l1_backward)(float* to, const float* d_loss, const float* z, float sign, VALUES) {
    const float scale = sign * d_loss[0] * z[0];
    FOR_ELEMENTS(p, (i64)items * inner) {
        const i64 base = l1_base(p, channels, inner);
        float factor = scale, known = 0;
        if (located) {
            const float squares = share * l1_squares(a, b, base, channels, inner, known);
            factor = squares >= plateau * plateau ? scale * share / sqrtf(squares + epsilon) : 0.0f;
        }
        for (u32 c = 0; c < channels; ++c) {
            const i64 i = base + (i64)c * inner;
            const float d = l1_difference(a, b, i);
            float slope = 0;
            if (located) {
                slope = is_number(d) ? d : 0.0f;
            } else if (fabsf(d) >= plateau) {
                slope = d > 0 ? 1.0f : d < 0 ? -1.0f : 0.0f;
            }
            to[i] = factor * slope;
        }
    }
}
