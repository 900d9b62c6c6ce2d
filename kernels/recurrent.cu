// What one step of a recurrent layer does to each unit of each stream. A row is a stream; its four gates of an LSTM, input,
// forget, output and candidate, follow one another. `offset` is added to the gates before anything else: nothing where null, the
// same row for every stream, or with `each` a row for each.

DEVICE float gate(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = scale * x, row by row.
KERNEL(recurrent_scale)(float* y, const float* x, const float* scale, u32 streams, u32 width) {
    FOR_ROWS(row, streams) {
        FOR_POSITIONS(i, width) y[(i64)row * width + i] = scale[row] * x[(i64)row * width + i];
    }
}

// dh = dy + scale * dh, row by row; a scale of 1 where it is null.
KERNEL(recurrent_join)(float* dh, const float* dy, const float* scale, u32 streams, u32 width) {
    FOR_ROWS(row, streams) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            dh[at] = dy[at] + (scale ? scale[row] : 1.0f) * dh[at];
        }
    }
}

// cell = cont * f * previous + i * g and hidden = o * tanh(cell), where the gates become i, f, o and g; next = next_cont *
// hidden, where it is not null.
KERNEL(lstm_forward)(
    float* gates, const float* offset, u32 each, const float* previous, const float* cont, float* cell, float* hidden,
    const float* next_cont, float* next, u32 streams, u32 width
) {
    FOR_ROWS(row, streams) {
        float* own = gates + 4 * (i64)row * width;
        const float* add = offset ? offset + (each ? 4 * (i64)row * width : 0) : nullptr;
        FOR_POSITIONS(d, width) {
            const i64 at = (i64)row * width + d;
            float v[4];
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const float x = own[(i64)k * width + d] + (add ? add[(i64)k * width + d] : 0.0f);
                v[k] = k < 3 ? gate(x) : tanhf(x);
                own[(i64)k * width + d] = v[k];
            }
            const float c = cont[row] * v[1] * previous[at] + v[0] * v[3], h = v[2] * tanhf(c);
            cell[at] = c;
            hidden[at] = h;
            if (next) next[at] = next_cont[row] * h;
        }
    }
}

// The gradients of the gates before they became i, f, o and g, and dc, of the cells after, that of the cells before.
KERNEL(lstm_backward)(
    float* dgates, float* dc, const float* gates, const float* previous, const float* cell, const float* cont,
    const float* dh, u32 streams, u32 width
) {
    FOR_ROWS(row, streams) {
        const float* own = gates + 4 * (i64)row * width;
        float* to = dgates + 4 * (i64)row * width;
        FOR_POSITIONS(d, width) {
            const i64 at = (i64)row * width + d;
            const float i = own[d], f = own[(i64)width + d], o = own[2 * (i64)width + d], g = own[3 * (i64)width + d];
            const float t = tanhf(cell[at]), by_cell = dc[at] + dh[at] * o * (1.0f - t * t);
            to[d] = by_cell * g * i * (1.0f - i);
            to[(i64)width + d] = by_cell * cont[row] * previous[at] * f * (1.0f - f);
            to[2 * (i64)width + d] = dh[at] * t * o * (1.0f - o);
            to[3 * (i64)width + d] = by_cell * i * (1.0f - g * g);
            dc[at] = by_cell * cont[row] * f;
        }
    }
}

// z = tanh(z + offset); next as above.
KERNEL(recurrent_tanh_forward)(
    float* z, const float* offset, u32 each, const float* next_cont, float* next, u32 streams, u32 width
) {
    FOR_ROWS(row, streams) {
        FOR_POSITIONS(i, width) {
            const i64 at = (i64)row * width + i;
            const float h = tanhf(z[at] + offset[each ? at : i]);
            z[at] = h;
            if (next) next[at] = next_cont[row] * h;
        }
    }
}

// dz = dy * (1 - y * y).
KERNEL(recurrent_tanh_backward)(float* dz, const float* y, const float* dy, i64 n) {
    FOR_ELEMENTS(i, n) dz[i] = dy[i] * (1.0f - y[i] * y[i]);
}

// to = the sum of `steps` blocks of n numbers.
KERNEL(recurrent_sum_steps)(float* to, const float* from, u32 steps, i64 n) {
    FOR_ELEMENTS(i, n) {
        float sum = 0;
        for (u32 s = 0; s < steps; ++s) sum += from[s * n + i];
        to[i] = sum;
    }
}
